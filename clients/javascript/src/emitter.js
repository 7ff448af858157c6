/* What has a state and tells of events. A listener's fault is its own: it is reported as uncaught, and the others are
   called all the same. */

export class Emitter {
  #listeners = new Map();

  on(name, listener) {
    if (!this.#listeners.has(name)) this.#listeners.set(name, new Set());
    this.#listeners.get(name).add(listener);
    return () => this.off(name, listener);
  }

  off(name, listener) {
    this.#listeners.get(name)?.delete(listener);
  }

  _emit(name, event) {
    for (const listener of [...(this.#listeners.get(name) ?? [])]) {
      try {
        listener(event);
      } catch (error) {
        queueMicrotask(() => {
          throw error;
        });
      }
    }
  }

  _become(state, why) {
    if (state === this.state) return;
    this.state = state;
    this._emit("state", { state, ...why });
  }
}
