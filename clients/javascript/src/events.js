/* The events of a channel as `for await` takes them, in the order in which listeners get them. */

import { TocsinError } from "./errors.js";

const BEHIND = 10_000; // events that wait at most; a loop that is further behind is told so

export class Events {
  #waiting = [];
  #taken = 0;
  #end; // undefined: more may come; null: no more; else why
  #more = null; // whoever waits for the next event waits for this
  #wake = null;
  #offs;

  constructor(channel) {
    this.#offs = ["message", "gap", "presence"].map((name) => channel.on(name, (event) => this.#push(event)));
    this.#offs.push(channel.on("state", ({ state, error }) => state === "unsubscribed" && this.end(error ?? null)));
  }

  #push(event) {
    if (this.#waiting.push(event) - this.#taken > BEHIND) this.end(new TocsinError("behind", `${BEHIND} events wait`));
    this.#wake?.();
  }

  end(why) {
    if (this.#end !== undefined) return;
    this.#end = why;
    for (const off of this.#offs) off();
    this.#wake?.();
  }

  async next() {
    while (this.#taken === this.#waiting.length) {
      this.#waiting = [];
      this.#taken = 0;
      if (this.#end) throw this.#end;
      if (this.#end === null) return { value: undefined, done: true };
      await (this.#more ??= new Promise((wake) => (this.#wake = wake)));
      this.#more = null;
    }
    if (this.#taken === BEHIND) {
      this.#waiting.splice(0, BEHIND); // a loop that never quite catches up keeps nothing
      this.#taken = 0;
    }
    return { value: this.#waiting[this.#taken++], done: false };
  }

  async return() {
    this.end(null);
    this.#waiting = [];
    this.#taken = 0;
    return { value: undefined, done: true };
  }

  [Symbol.asyncIterator]() {
    return this;
  }
}
