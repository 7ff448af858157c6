/* The JavaScript client of Tocsin, for browsers and Node. The wire is `tocsin.v1` of docs/protocol.md.

   A Connection is lost and made again; a Channel goes on from the last message that its listeners were handed; the
   Outbox keeps every command that has no answer yet and sends it again, a message always with its first key. Ids are
   never compared here: which of them are of one history, only the service knows. */

const PROTOCOL = "tocsin.v1";
const BASE = 500; // ms; the first wait is a random part of it, and the limit doubles with each failure
const CAP = 30_000; // ms
const HEALTHY = 10_000; // ms open after which the next failure counts as the first
const OPENING = 15_000; // ms from the first byte of an attempt to `welcome`
const PROBE = 5000; // ms in which a connection that may be dead shows that it is not
const ABUSE = 30_000; // ms to stay away after 4529
const STOPS = /^(100[023789]|44\d\d)$/; // close codes after which coming back would not help
const AGAIN = /^(rate_limited|unavailable|draining|internal)$/; // error codes after which asking again helps
const KEEP = 0.8; // part of `key_seconds` after which a key is not used again
const UNDER_WAY = 100; // commands without an answer at once; the service takes 200 in a burst
const LISTED = 500; // members; of more only the number is told
const BEHIND = 10_000; // events that a `for await` may be behind
const LONGEST = 2 ** 31 - 1; // ms that a timer can wait
const HALF_PAIR = /(^|[^\\])(\\\\)*\\ud[89a-f]/; // how JSON.stringify writes half of a surrogate pair, and only that

/* Ms since 1970. Goes on while the machine sleeps, as Date does, and never back, as `performance` does: a key must not
   seem younger than it is. */
function makeClock() {
  let time = Date.now();
  let wall = time;
  let ticks = performance.now();
  const now = () => {
    const [date, tick] = [Date.now(), performance.now()];
    time += Math.max(date - wall, tick - ticks, 0);
    [wall, ticks] = [date, tick];
    return time;
  };
  return { now, setTimeout: (...given) => setTimeout(...given), clearTimeout: (timer) => clearTimeout(timer) };
}

/* What the service refused, or why there is no connection any more; `code` as in docs/protocol.md, or `closed`. */
export class TocsinError extends Error {
  name = "TocsinError";
  constructor(code, message, { retry_after: retryAfter, position } = {}) {
    super(message);
    Object.assign(this, { code, retryAfter, position });
  }
}

/* There was no answer in time. With `sent`, whether the message was taken is unknown. */
export class PublishTimeout extends TocsinError {
  name = "PublishTimeout";
  constructor(sent) {
    super("timeout", sent ? "no answer in time: whether it was taken is unknown" : "it could not be sent in time");
    this.sent = sent;
  }
}

/* As many commands wait for an answer as the outbox holds. */
export class OutboxFull extends TocsinError {
  name = "OutboxFull";
  constructor(size) {
    super("outbox_full", `${size} commands wait for an answer already`);
  }
}

/* One listener's fault is its own: it is reported as uncaught, and the others are called. */
class Emitter {
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

  _become(state, why = {}) {
    if (state === this.state) return;
    this.state = state;
    this._emit("state", { state, ...why });
  }
}

/* Commands that may be sent again, in order, over any number of connections. After `rate_limited` one goes at a time,
   as far apart as the service has asked for, until all are gone: who goes on at full speed is closed with 4529. */
class Outbox {
  #entries = new Map(); // by ref
  #underWay = 0;
  #gap = 0; // ms between commands
  #slowedAt = 0;
  #timer;

  constructor(clock, random, size) {
    Object.assign(this, { clock, random, size, welcome: null, send: null });
  }

  add(entry) {
    return new Promise((resolve, reject) => {
      if (this.#entries.size >= this.size) return reject(new OutboxFull(this.size));
      Object.assign(entry, { resolve, reject, failures: 0, dueAt: Infinity });
      this.#entries.set(entry.ref, entry);
      if (entry.timeout !== undefined) this.#expire(entry, entry.timeout);
      this.#flush();
    });
  }

  opened(welcome, send) {
    Object.assign(this, { welcome, send });
    this.#flush();
  }

  /* The connection is gone: what had no answer is sent again over the next one, but what the service does not keep. */
  lost() {
    this.#pause(0);
    this.#underWay = 0;
    this.send = null;
    for (const entry of this.#entries.values()) {
      entry.underWay = false;
      if (entry.sent && entry.once) this.#settle(entry, new PublishTimeout(true));
    }
  }

  stop(error) {
    for (const entry of this.#entries.values()) this.#settle(entry, entry.sent ? new PublishTimeout(true) : error);
  }

  answer(frame) {
    const entry = this.#entries.get(frame.ref);
    if (!entry) return;
    if (frame.type !== "error") this.#settle(entry, null, frame);
    else if (!AGAIN.test(frame.code) || entry.once) this.#settle(entry, refusal(frame));
    else this.#again(entry, frame);
    this.#flush();
  }

  #again(entry, { code, retry_after: after = 0 }) {
    entry.underWay = false;
    this.#underWay--;
    let wait = after * 1000;
    if (code === "rate_limited") {
      if (entry.sentAt >= this.#slowedAt) this.#gap = Math.max(this.#gap * 1.5, wait, 1); // once for all under way
      this.#slowedAt = this.clock.now();
      wait = Math.max(wait, this.#gap);
    } else wait += backoff(entry.failures++, this.random);
    this.#pause(wait);
  }

  #flush() {
    if (!this.#entries.size) this.#gap = 0;
    if (!this.send || this.#timer) return;
    for (const entry of this.#entries.values()) {
      if (this.#underWay >= UNDER_WAY) return;
      if (entry.underWay) continue;
      if (entry.size > this.welcome.max_data) {
        this.#settle(entry, new TocsinError("too_large", `data has at most ${this.welcome.max_data} bytes`));
        continue;
      }
      const now = this.clock.now();
      if (now >= entry.dueAt) {
        this.#settle(entry, new PublishTimeout(entry.sent));
        continue;
      }
      if (entry.keyed && !entry.sent) this.#expire(entry, this.welcome.key_seconds * 1000 * KEEP);
      Object.assign(entry, { sent: true, underWay: true, sentAt: now });
      this.#underWay++;
      this.send(entry.text);
      if (this.#gap) return this.#pause(this.#gap);
    }
  }

  #pause(ms) {
    this.clock.clearTimeout(this.#timer);
    this.#timer = undefined;
    if (!ms) return;
    this.#timer = this.clock.setTimeout(() => {
      this.#timer = undefined;
      this.#flush();
    }, ms);
  }

  #expire(entry, ms) {
    const dueAt = this.clock.now() + ms;
    if (dueAt >= entry.dueAt) return;
    entry.dueAt = dueAt;
    this.clock.clearTimeout(entry.timer);
    entry.timer = this.clock.setTimeout(() => {
      this.#settle(entry, new PublishTimeout(!!entry.sent));
      this.#flush();
    }, ms);
  }

  #settle(entry, error, answer) {
    this.#entries.delete(entry.ref);
    this.clock.clearTimeout(entry.timer);
    if (entry.underWay) this.#underWay--;
    error ? entry.reject(error) : entry.resolve(answer);
  }
}

class Channel extends Emitter {
  state = "unsubscribed";
  position = null;
  count = 0;
  #connection;
  #presence;
  #wanted = null; // the promise of `subscribe` with its ends, until nobody wants to hear the channel
  #history;
  #failures = 0;
  #members = new Map();
  #reading = false;

  constructor(connection, name) {
    super();
    this.#connection = connection;
    this.name = name;
  }

  get members() {
    return [...this.#members.values()];
  }

  _configure({ presence } = {}) {
    if (presence !== undefined) this.#presence = presence;
  }

  subscribe({ since, history } = {}) {
    if (!this.#wanted) {
      if (since !== undefined) this.position = since;
      this.#history = history;
      const wanted = {};
      wanted.promise = new Promise((resolve, reject) => Object.assign(wanted, { resolve, reject }));
      this.#wanted = wanted;
      this._become("subscribing");
      this.#connection._attend(this);
    }
    return this.#wanted.promise;
  }

  unsubscribe() {
    if (!this.#wanted) return;
    this.#connection._command({ type: "unsubscribe", channel: this.name });
    this._end(new TocsinError("closed", "unsubscribed"));
    this.position = null;
  }

  async publish(data, { key = newKey(), timeout, ephemeral } = {}) {
    const bytes = data instanceof ArrayBuffer ? new Uint8Array(data) : data;
    const binary = bytes instanceof Uint8Array;
    const text = binary ? toBase64(bytes) : JSON.stringify(data);
    const { id, duplicate } = await this.#connection._ask(
      { type: "publish", channel: this.name, ...(ephemeral ? { ephemeral } : { key }) },
      {
        body: binary ? `"base64":"${text}"` : `"data":${text}`,
        size: new TextEncoder().encode(text).length,
        timeout,
        keyed: !ephemeral,
        once: ephemeral,
      },
    );
    return { id, duplicate };
  }

  async history(range) {
    const page = await this.#connection._ask({ ...range, type: "history", channel: this.name });
    return { messages: page.messages.map(readable), position: page.position, complete: page.complete };
  }

  async presence(page) {
    const { members, count, cursor } = await this.#connection._ask({ ...page, type: "presence", channel: this.name });
    return { members, count, cursor };
  }

  /* Events from now on, in order: messages and gaps, and presence where it was asked for. */
  [Symbol.asyncIterator]() {
    const events = [];
    let failure; // null: ended without one
    let wake;
    const push = (event) => {
      if (events.push(event) > BEHIND) end(new TocsinError("behind", `this loop is ${BEHIND} events behind`));
      wake?.();
    };
    const end = (error) => {
      if (failure !== undefined) return;
      failure = error;
      for (const off of offs) off();
      wake?.();
    };
    const offs = ["message", "gap", "presence"].map((name) => this.on(name, push));
    offs.push(this.on("state", ({ state, error }) => state === "unsubscribed" && end(error ?? null)));
    if (!this.#wanted) this.subscribe().catch(end);
    return {
      async next() {
        while (!events.length && failure === undefined) await new Promise((resolve) => (wake = resolve));
        if (events.length) return { value: events.shift(), done: false };
        if (failure && failure.code !== "closed") throw failure;
        return { value: undefined, done: true };
      },
      async return() {
        end(null);
        events.length = 0;
        return { value: undefined, done: true };
      },
      [Symbol.asyncIterator]() {
        return this;
      },
    };
  }

  /* Ask to hear the channel on the connection that is open now. */
  _open() {
    const wanted = this.#wanted;
    if (!wanted) return;
    const since = this.position ?? undefined;
    const command = { type: "subscribe", channel: this.name, since, history: since ? undefined : this.#history };
    this.#connection._command({ ...command, presence: this.#presence }, (answer) => {
      if (wanted !== this.#wanted) return;
      if (answer.type !== "error") return this.#subscribed(answer);
      if (!AGAIN.test(answer.code)) return this._end(refusal(answer));
      this.#connection._later((answer.retry_after ?? 0) * 1000, this.#failures++, () => this._open());
    });
  }

  #subscribed(answer) {
    this.#failures = 0;
    this.position = answer.position;
    this._become("subscribed", { recovered: answer.recovered, replayed: answer.replayed });
    if (answer.recovered === false) this.#lose(answer);
    if (answer.members) {
      this.count = answer.count;
      this.#replace(answer.members);
      this.#complete();
    }
    this.#wanted?.resolve(answer);
  }

  _lost() {
    if (this.#wanted) this._become("subscribing");
  }

  /* The old `since` is of no use any more (4510): what was missed cannot be had. */
  _forget(reason) {
    if (!this.#wanted) return;
    this.#lose({ reason, position: null });
  }

  _end(error) {
    const wanted = this.#wanted;
    this.#wanted = null;
    this.#members.clear();
    this.count = 0;
    wanted?.reject(error);
    wanted?.promise.catch(() => {}); // told by `state` where nobody waits
    this._become("unsubscribed", error.code === "closed" ? {} : { error });
  }

  _received(frame) {
    if (this.state !== "subscribed") return; // of a subscription that was given up
    if (frame.type === "message") {
      this.position = frame.id ?? this.position;
      this._emit("message", readable(frame));
    } else if (frame.type === "gap") this.#lose(frame);
    else if (frame.type === "presence") this.#change(frame);
    else if (frame.type === "unsubscribed") this._end(new TocsinError(frame.reason, "not allowed any more"));
  }

  #lose({ reason, position }) {
    this.position = position;
    this._emit("gap", { type: "gap", channel: this.name, reason, position });
  }

  #change({ joined, left, count }) {
    this.count = count;
    const come = joined.filter(({ member }) => !this.#members.has(member));
    const gone = left.filter(({ member }) => this.#members.has(member)).map(({ member }) => this.#members.get(member));
    for (const one of joined) this.#members.set(one.member, one);
    for (const { member } of left) this.#members.delete(member);
    this.#tell(come, gone);
    this.#complete();
  }

  #replace(members) {
    const old = this.#members;
    this.#members = new Map(members.map((one) => [one.member, one]));
    const gone = [...old.values()].filter(({ member }) => !this.#members.has(member));
    this.#tell(members.filter(({ member }) => !old.has(member)), gone);
  }

  #tell(joined, left) {
    this._emit("presence", { type: "presence", channel: this.name, joined, left, count: this.count });
  }

  /* `subscribed` lists a hundred members, and pushes above `LISTED` none: the rest is read. */
  async #complete() {
    if (this.#reading || this.#members.size === this.count || this.count > LISTED) return;
    const wanted = this.#wanted;
    this.#reading = true;
    const page = await this.presence({ limit: 2 * LISTED }).catch(() => null);
    this.#reading = false;
    if (!page || wanted !== this.#wanted || this.state !== "subscribed") return;
    this.count = page.count;
    this.#replace(page.members);
  }
}

class Connection extends Emitter {
  state = "connecting";
  client = null;
  user = null;
  #options;
  #clock;
  #outbox;
  #channels = new Map();
  #answers = new Map(); // by ref: who waits for an answer on this connection alone
  #refs = 0;
  #turn = 0; // counts attempts: whoever waited for something of an earlier one is late
  #socket = null;
  #token = null;
  #renewed = false; // a refused token has been replaced once since the last health
  #failures = 0;
  #timer; // one at a time: of opening, of silence, of waiting
  #tokenTimer;
  #openedAt = null;
  #heardAt = 0;
  #notBefore = 0;
  #returnAfter = null; // ms, as `reconnect` said
  #silence = 0; // ms
  #unlisten;

  constructor(url, options) {
    super();
    const { clock = makeClock(), random = Math.random, outbox = 1000, ...rest } = options;
    this.#options = { WebSocket: globalThis.WebSocket, fetch: globalThis.fetch, random, ...rest };
    this.#clock = clock;
    this.#outbox = new Outbox(clock, random, outbox);
    const address = new URL(url, globalThis.location?.href);
    address.protocol = address.protocol.replace("http", "ws");
    this.url = address.href;
    this.#begin();
  }

  channel(name, options) {
    if (!this.#channels.has(name)) this.#channels.set(name, new Channel(this, name));
    const channel = this.#channels.get(name);
    channel._configure(options);
    return channel;
  }

  /* Now: without the rest of a wait, after a stop, in place of a connection that is there. */
  connect() {
    this.#failures = 0;
    this.#renewed = false;
    this.#begin();
  }

  close() {
    this.#stop(new TocsinError("closed", "closed"), { code: 1000, reason: "closed" });
  }

  _command(command, answered) {
    if (this.state !== "open") return;
    const ref = ++this.#refs;
    if (answered) this.#answers.set(ref, answered);
    this.#socket.send(checked(JSON.stringify({ ...command, ref })));
  }

  async _ask(command, { body, ...options } = {}) {
    if (this.state === "stopped") throw new TocsinError("closed", "there is no connection, and none is being made");
    if (options.once && this.state !== "open") throw new TocsinError("unavailable", "there is no connection now");
    const ref = ++this.#refs;
    const head = JSON.stringify({ ...command, ref });
    return this.#outbox.add({ ref, text: checked(body ? `${head.slice(0, -1)},${body}}` : head), ...options });
  }

  _attend(channel) {
    if (this.state === "open") channel._open();
    if (this.state === "stopped") channel._end(new TocsinError("closed", "there is no connection"));
  }

  /* Call back on this connection, if it is still there then. */
  _later(ms, failures, callback) {
    const turn = this.#turn;
    this.#clock.setTimeout(() => turn === this.#turn && callback(), ms + backoff(failures, this.#options.random));
  }

  async #begin() {
    this.#listen();
    this.#release();
    this._become("connecting");
    const turn = this.#turn;
    const { getToken, WebSocket } = this.#options;
    let socket;
    try {
      this.#token = (await getToken?.()) ?? null;
    } catch (error) {
      if (turn === this.#turn) this.#rest({ reason: "getToken failed", error });
      return;
    }
    if (turn !== this.#turn) return;
    try {
      socket = new WebSocket(this.url, this.#token ? [PROTOCOL, `tocsin.bearer.${this.#token}`] : [PROTOCOL]);
    } catch (error) {
      return this.#stop(error, { reason: error.message });
    }
    this.#socket = socket;
    // A socket that was given up may still speak; only the present one is heard.
    socket.onmessage = ({ data }) => turn === this.#turn && this.#received(data);
    socket.onclose = ({ code, reason }) => turn === this.#turn && this.#closed(code, reason);
    this.#after(OPENING, () => this.#closed(1006, "no answer"));
  }

  #received(data) {
    this.#heardAt = this.#clock.now();
    let frame;
    try {
      frame = JSON.parse(data);
    } catch {
      return this.#closed(1006, "not a frame of tocsin.v1");
    }
    const { type, ref, channel } = frame;
    if (ref !== undefined) {
      this.#answers.get(ref)?.(frame);
      this.#answers.delete(ref);
      this.#outbox.answer(frame);
    } else if (type === "welcome") this.#welcomed(frame);
    else if (type === "reconnect") this.#returnAfter = frame.after * 1000;
    else this.#channels.get(channel)?._received(frame);
  }

  #welcomed(welcome) {
    this.#openedAt = this.#heardAt;
    this.#silence = 2000 * welcome.ping;
    this.#after(this.#silence, () => this.#listenOn());
    this.#renewBefore(welcome.expires_at);
    this.client = welcome.client;
    this.user = welcome.user;
    this._become("open", { worker: welcome.worker });
    for (const channel of this.#channels.values()) channel._open();
    const socket = this.#socket;
    this.#outbox.opened(welcome, (text) => socket.send(text));
  }

  async #closed(code, reason) {
    const { state } = this;
    const after = this.#returnAfter;
    if (this.#openedAt !== null && this.#clock.now() - this.#openedAt >= HEALTHY) {
      this.#failures = 0;
      this.#renewed = false;
    }
    this.#release();
    if (code === 4510) for (const channel of this.#channels.values()) channel._forget(reason || "expired");
    if (code === 4401) this.#refused({ code, reason });
    else if (STOPS.test(code)) this.#stop(new TocsinError("closed", `${code} ${reason}`), { code, reason });
    else if (code === 1006 && state !== "open") await this.#inquire(reason);
    else if (after !== null) this.#rest({ code, reason }, after, 0);
    else if (code === 4529) this.#rest({ code, reason }, ABUSE, 0);
    else if (code === 4510 && !this.#failures) this.#rest({ code, reason }, 0, 0);
    else this.#rest({ code, reason });
  }

  /* A browser does not tell why an upgrade was refused; the service answers the same over HTTP. */
  async #inquire(reason) {
    const turn = this.#turn;
    const address = new URL("api/v1/connect", this.url.replace(/^ws/, "http"));
    address.searchParams.set("protocols", PROTOCOL);
    const asked = this.#token
      ? { headers: { authorization: `Bearer ${this.#token}` } }
      : { credentials: "include" }; // a cookie, which the upgrade carries too
    let why = { code: 1006, reason: reason || "cut before it was open" };
    let status;
    let after = 0;
    let error;
    try {
      const signal = AbortSignal.timeout(PROBE);
      const answer = await this.#options.fetch.call(globalThis, address, { cache: "no-store", signal, ...asked });
      status = answer.status;
      after = Number(answer.headers.get("retry-after")) * 1000 || 0;
      if (!answer.ok) {
        const said = (await answer.json()).error;
        error = refusal(said);
        why = { code: 1006, reason: said.message, error };
      }
    } catch {} // not reached, or not by this service: then it is as the socket said
    if (turn !== this.#turn) return;
    if (status === 401) this.#refused(why);
    else if (error && (status === 400 || status === 403)) this.#stop(error, why);
    else this.#rest(why, after);
  }

  /* The token has ended or was refused: one more is fetched, then that was it. */
  #refused(why) {
    if (!this.#options.getToken || this.#renewed) {
      return this.#stop(why.error ?? new TocsinError("unauthorized", why.reason || "the token was refused"), why);
    }
    this.#renewed = true;
    this.#begin();
  }

  /* Wait: at least `floor` ms, which no event of the page shortens, and a random time on top. */
  #rest(why, floor = 0, random = backoff(this.#failures++, this.#options.random)) {
    const wait = floor + random;
    this.#notBefore = this.#clock.now() + floor;
    this.#after(wait, () => this.#begin());
    this._become("waiting", { ...why, wait });
  }

  #stop(error, why) {
    this.#release();
    this.#unlisten?.abort();
    this.#unlisten = null;
    this.#outbox.stop(error);
    for (const channel of this.#channels.values()) channel._end(error);
    this._become("stopped", { ...why, error });
  }

  /* Give up the present connection or attempt, and tell all who had a part in it. */
  #release() {
    const socket = this.#socket;
    this.#turn++;
    this.#socket = this.#openedAt = this.#returnAfter = null;
    this.#clock.clearTimeout(this.#timer);
    this.#clock.clearTimeout(this.#tokenTimer);
    this.#answers.clear();
    this.#outbox.lost();
    for (const channel of this.#channels.values()) channel._lost();
    if (!socket) return;
    socket.onmessage = socket.onclose = null;
    socket.onerror = () => {}; // `ws` throws where nobody listens
    socket.close();
  }

  #after(ms, callback) {
    this.#clock.clearTimeout(this.#timer);
    const turn = this.#turn;
    this.#timer = this.#clock.setTimeout(() => turn === this.#turn && callback(), ms);
  }

  /* The service says `alive` in every interval. A timer that comes late says that this machine slept: then ask. */
  #listenOn() {
    const quiet = this.#clock.now() - this.#heardAt;
    if (quiet < this.#silence) this.#after(this.#silence - quiet, () => this.#listenOn());
    else if (quiet > this.#silence + PROBE) this.#probe();
    else this.#closed(1006, "silent");
  }

  #probe() {
    const since = this.#clock.now();
    this._command({ type: "ping" });
    this.#after(PROBE, () => (this.#heardAt >= since ? this.#listenOn() : this.#closed(1006, "silent")));
  }

  /* A new token is shown before the old one ends, on the same connection. */
  #renewBefore(expiresAt) {
    const { getToken } = this.#options;
    if (!getToken || !expiresAt) return;
    const left = expiresAt * 1000 - this.#clock.now();
    this.#renewIn(Math.max(1000, left - Math.min(60_000, left / 5)), 0);
  }

  #renewIn(ms, failures) {
    const turn = this.#turn;
    const again = () => turn === this.#turn && this.#renewIn(1000 + backoff(failures, this.#options.random), failures + 1);
    this.#tokenTimer = this.#clock.setTimeout(async () => {
      let token;
      try {
        token = await this.#options.getToken();
      } catch {
        return again();
      }
      if (turn !== this.#turn) return;
      this._command({ type: "authenticate", token }, (answer) => {
        if (answer.type !== "error") this.#renewBefore(answer.expires_at);
        else if (answer.code === "forbidden") this.#begin(); // of somebody else
        else again();
      });
    }, Math.min(ms, LONGEST));
  }

  /* What a page hears of its machine and of itself; elsewhere there is nothing to hear. */
  #listen() {
    if (this.#unlisten) return;
    this.#unlisten = new AbortController();
    const { signal } = this.#unlisten;
    const heard = (event) => this.#heard(event);
    for (const name of ["online", "offline", "pagehide", "pageshow"]) {
      globalThis.addEventListener?.(name, heard, { signal });
    }
    for (const name of ["visibilitychange", "resume"]) globalThis.document?.addEventListener(name, heard, { signal });
  }

  #heard({ type, persisted }) {
    if (type === "pagehide") {
      this.#release(); // with a connection a page is not kept
      this._become("waiting", { reason: "the page is put away" });
    } else if (type === "pageshow") {
      if (persisted) this.#begin();
    } else if (type === "visibilitychange" && globalThis.document.visibilityState === "hidden") {
      return;
    } else if (this.state === "open") this.#probe();
    else if (this.state === "waiting" && type !== "offline") {
      this.#after(Math.max(0, this.#notBefore - this.#clock.now()), () => this.#begin());
    }
  }
}

/* Full jitter: any time up to a limit that doubles with each failure. */
function backoff(failures, random) {
  return random() * Math.min(CAP, BASE * 2 ** failures);
}

function refusal({ code, message, ...more }) {
  return new TocsinError(code, message, more);
}

function readable(message) {
  const { base64, ...rest } = message;
  if (base64 === undefined) return message;
  return { ...rest, data: Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0)) };
}

function toBase64(bytes) {
  let binary = "";
  for (const byte of bytes) binary += String.fromCharCode(byte);
  return btoa(binary);
}

/* The service cannot answer what it cannot read, and text with half of a surrogate pair nobody can. */
function checked(text) {
  if (HALF_PAIR.test(text)) throw new TocsinError("bad_request", "this text holds half of a surrogate pair");
  return text;
}

function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function connect(url, options = {}) {
  return new Connection(url, options);
}
