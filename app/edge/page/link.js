/* The one connection of this page: its state in words, what it has come through in numbers, and the knife. */

import { connect } from "/client/tocsin.js";
import { socketAddress } from "./service.js";

const DROPPED = 3000; // a close code of the page's own (RFC 6455 section 7.4.2): the client takes it as a cut

const REASONS = {
  1001: "the server is going away",
  1006: "the connection was cut",
  1011: "the server had an internal error",
  1012: "the server is restarting",
  1013: "the server could not go on for now",
  4401: "the token has expired or was refused",
  4403: "not allowed, or no longer",
  4508: "this browser was silent for too long",
  4529: "too much was sent, too fast",
};

export class Link {
  counters = { reconnects: 0, recovered: 0, replayed: 0, gaps: 0, duplicates: 0 };
  ids = new Set(); // all that this page was called so far: anonymous, one is somebody else on each connection
  lostAt = null;
  away = 0; // ms, the last time
  held = Promise.resolve();

  /* `onChange()` after each change of state or counters; `onStop(error)` when the client comes back no more. */
  constructor(getToken, onChange, onStop) {
    const link = this;
    this.onChange = onChange;
    this.client = connect(socketAddress(), {
      async getToken() {
        await link.held;
        return getToken();
      },
      WebSocket: class extends WebSocket {
        constructor(...given) {
          super(...given);
          link.socket = this;
        }
      },
    });
    this.client.on("state", (event) => {
      this.turned(event);
      onChange();
      if (event.state === "stopped" && event.code !== 1000) onStop(event.error);
    });
  }

  turned({ state, code, reason, error, delay }) {
    if (state === "open") {
      this.ids.add(this.client.client);
      this.reason = "";
      if (this.lostAt !== null) {
        this.counters.reconnects++;
        this.away = performance.now() - this.lostAt;
        this.lostAt = null;
      }
      this.opened = true;
      return;
    }
    if (this.opened) this.lostAt ??= performance.now();
    if (code === DROPPED) this.reason = "dropped by you";
    else if (code !== undefined) this.reason = (error?.message ?? REASONS[code] ?? reason) || `closed with ${code}`;
    this.backAt = delay === undefined ? null : performance.now() + delay;
  }

  get worker() {
    return this.client.worker;
  }

  /* `{ state, text }`: one of connected, connecting, closed, and a word for people. */
  get status() {
    const { state } = this.client;
    if (state === "open") return { state: "connected", text: "Connected" };
    if (state === "stopped") return { state: "closed", text: "Not connected" };
    if (this.seconds("heldUntil")) return { state: "connecting", text: "Staying away" };
    return { state: "connecting", text: state === "waiting" ? "Cut off" : this.opened ? "Coming back" : "Connecting" };
  }

  /* Until the next try, or null. */
  get left() {
    return this.client.state === "open" ? null : (this.seconds("heldUntil") ?? this.seconds("backAt"));
  }

  seconds(name) {
    const left = (this[name] ?? 0) - performance.now();
    return left > 0 ? left / 1000 : null;
  }

  count(name) {
    this.counters[name]++;
    this.onChange();
  }

  /* Cut the socket under the client, which knows nothing of it; and let it back only after so many ms. */
  cut(stay = 0) {
    this.heldUntil = performance.now() + stay;
    this.held = new Promise((resolve) => setTimeout(resolve, stay));
    this.socket?.close(DROPPED);
  }
}
