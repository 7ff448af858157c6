// What the tests play on: time that passes when it is told to, and the other end of a WebSocket.

import { webcrypto } from "node:crypto";
import { readFileSync } from "node:fs";

globalThis.crypto ??= webcrypto; // Node 18 has it under another name

export const WELCOME = {
  type: "welcome",
  client: "c9Jx2kq0Zw3mRt8a",
  user: null,
  worker: "web1/2",
  ping: 25,
  max_data: 65536,
  key_seconds: 120,
  expires_at: null,
};

export function golden(name) {
  return JSON.parse(readFileSync(new URL(`../../../tests/wire/${name}.json`, import.meta.url), "utf8"));
}

/* What was promised meanwhile is done. */
export async function settled() {
  for (let turn = 0; turn < 3; turn++) await new Promise((resolve) => setImmediate(resolve));
}

export class FakeClock {
  time = 1_790_000_000_000;
  #timers = new Map();
  #ids = 0;

  now = () => this.time;

  get pending() {
    return this.#timers.size;
  }

  setTimeout = (callback, ms) => {
    this.#timers.set(++this.#ids, { callback, at: this.time + ms });
    return this.#ids;
  };

  clearTimeout = (timer) => this.#timers.delete(timer);

  /* Timers fire in their order, each at its time. */
  async pass(ms) {
    const end = this.time + ms;
    await settled();
    for (;;) {
      const [id, timer] = [...this.#timers].sort(([, a], [, b]) => a.at - b.at)[0] ?? [];
      if (!timer || timer.at > end) break;
      this.#timers.delete(id);
      this.time = Math.max(this.time, timer.at);
      timer.callback();
      await settled();
    }
    this.time = end;
  }

  /* The machine sleeps: time goes on and no timer fires. */
  sleep(ms) {
    this.time += ms;
  }
}

/* Sockets, newest last, and what the client has said on each. */
export function fakeSockets() {
  const sockets = [];
  class FakeSocket {
    said = [];
    closed = false;

    constructor(url, protocols) {
      Object.assign(this, { url, protocols });
      sockets.push(this);
    }

    send(text) {
      this.said.push(JSON.parse(text));
      this.texts = [...(this.texts ?? []), text];
    }

    close() {
      this.closed = true;
    }

    welcome(more) {
      this.say({ ...WELCOME, ...more });
    }

    say(frame) {
      this.onmessage({ data: typeof frame === "string" ? frame : JSON.stringify(frame) });
    }

    /* Answer the last command of this type. */
    answer(type, answer) {
      const { ref, channel } = this.last(type);
      this.say({ ref, ...(channel && type !== "publish" ? { channel } : {}), ...answer });
    }

    last(type) {
      return this.said.filter((command) => command.type === type).at(-1);
    }

    end(code, reason = "") {
      this.onclose({ code, reason });
    }
  }
  return { sockets, WebSocket: FakeSocket };
}

export const SUBSCRIBED = { type: "subscribed", position: "4c1f9be07a2d-120", recovered: null, replayed: 0 };

/* A client whose other end is the test. `fetched` answers GET /api/v1/connect. */
export async function staged(connect, options = {}) {
  const clock = new FakeClock();
  const { sockets, WebSocket } = fakeSockets();
  const asked = [];
  const fetched = options.fetched ?? (() => new Response(null, { status: 204 }));
  const fetch = async (address, request) => {
    asked.push({ address: String(address), ...request });
    return fetched();
  };
  const tocsin = connect("ws://tocsin.test/ws", { clock, random: () => 0.5, WebSocket, fetch, ...options });
  const changes = [];
  tocsin.on("state", (change) => changes.push(change));
  await settled();
  const stage = { tocsin, clock, sockets, asked, changes, socket: () => sockets.at(-1) };
  /* The newest socket opens, and every subscription that was asked for is answered. */
  stage.open = async (more) => {
    stage.socket().welcome(more);
    await settled();
  };
  /* Time passes on a connection that is alive. */
  stage.live = async (ms) => {
    for (const end = clock.now() + ms; clock.now() < end; ) {
      await clock.pass(Math.min(20_000, end - clock.now()));
      stage.socket().say({ type: "alive" });
    }
  };
  return stage;
}

/* A channel that is live. */
export async function joined(stage, name = "room:42", options, answer = {}) {
  const room = stage.tocsin.channel(name, options);
  const told = record(room);
  const subscribed = room.subscribe();
  stage.socket().answer("subscribe", { ...SUBSCRIBED, ...answer });
  await subscribed;
  return { room, told };
}

export function record(room) {
  const told = { message: [], gap: [], presence: [], state: [] };
  for (const name of Object.keys(told)) room.on(name, (event) => told[name].push(event));
  return told;
}

export function message(number, data = number) {
  const id = `4c1f9be07a2d-${number}`;
  return { type: "message", channel: "room:42", id, data, from: "c1", user: null, at: 1_790_000_000_123 };
}
