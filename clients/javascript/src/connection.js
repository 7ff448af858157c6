/* The one connection of a client, as it is lost and made again. Which close codes stop and which return, and after how
   long, is the table of docs/protocol.md.

   `#turn` counts attempts. Whatever a socket, a timer or a promise of an earlier turn has to say is not heard. */

import { Channel } from "./channel.js";
import { Emitter } from "./emitter.js";
import { TocsinError, refusal } from "./errors.js";
import { Outbox } from "./outbox.js";
import { listenToPage } from "./page.js";
import { LONGEST, backoff, makeClock } from "./time.js";
import { BEARER, PROTOCOL, decode, encode } from "./wire.js";

const STOPS = /^(100[023789]|44\d\d)$/;
const [CUT, UNAUTHORIZED, GAP, ABUSE] = [1006, 4401, 4510, 4529];
const HEALTHY = 10_000; // ms open, after which the next failure counts as the first
const OPENING = 15_000; // ms in which there is a token; and from the first byte of an attempt to `welcome`
const RENEWED = 30_000; // ms at least from one renewal to the next
const PROBE = 5000; // ms in which a connection that may be dead shows that it is not
const AWAY = 30_000; // ms to stay away after 4529

export class Connection extends Emitter {
  state = "connecting";
  client = null;
  user = null;
  worker = null;
  #options;
  #clock;
  #outbox;
  #channels = new Map(); // by name
  #answers = new Map(); // by ref: who waits for an answer on this connection alone
  #refs = 0;
  #turn = 0;
  #socket = null;
  #token = null;
  #renewed = false; // a refused token has been replaced since the last health
  #failures = 0;
  #timer = null; // of opening, of silence, of waiting: one at a time
  #tokenTimer = null;
  #retries = new Set(); // timers
  #inquiry = null; // ends it
  #openedAt = null;
  #heardAt = 0;
  #silence = 0; // ms after which the socket is dead
  #returnAfter = null; // ms, as `reconnect` said
  #notBefore = 0; // what happens to the page shortens no wait that the service has asked for
  #deafen = null; // ends listening to the page
  #ended = null; // why there is no connection, and none will be made

  constructor(url, { clock = makeClock(), random = Math.random, outbox = 1000, ...options }) {
    super();
    this.#options = { WebSocket: globalThis.WebSocket, fetch: globalThis.fetch, ...options, random };
    if (!this.#options.WebSocket) throw new TypeError("there is no WebSocket here: give one as an option");
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

  connect() {
    this.#failures = 0;
    this.#renewed = false;
    this.#begin();
  }

  close() {
    this.#stop(new TocsinError("closed", "closed by this client"));
  }

  /* Say something on the connection that is open now; its answer comes on this one or never. */
  _command(command, answered) {
    if (this.#openedAt === null) return;
    const ref = ++this.#refs;
    if (answered) this.#answers.set(ref, answered);
    this.#socket.send(encode({ ...command, ref }));
  }

  /* Ask something that is asked again until it is answered. */
  async _ask(command, { body, ...entry } = {}) {
    if (this.#ended) throw this.#ended;
    if (entry.ephemeral && this.#openedAt === null) throw new TocsinError("unavailable", "there is no connection now");
    const ref = ++this.#refs;
    return this.#outbox.add({ ref, text: encode({ ...command, ref }, body), ...entry });
  }

  _attend(channel) {
    if (this.#ended) channel._end(this.#ended);
    else if (this.#openedAt !== null) channel._open();
  }

  /* Call back after so many seconds and some, if this connection is still there. */
  _later(seconds, failures, callback) {
    const ms = (seconds ?? 0) * 1000 + backoff(failures, this.#options.random);
    const timer = this.#clock.setTimeout(() => this.#retries.delete(timer) && callback(), ms);
    this.#retries.add(timer);
  }

  /* A callback that is nothing once the turn is over. */
  #now(callback) {
    const turn = this.#turn;
    return (...given) => turn === this.#turn && callback(...given);
  }

  #after(ms, callback) {
    this.#clock.clearTimeout(this.#timer);
    this.#timer = this.#clock.setTimeout(this.#now(callback), ms);
  }

  async #begin() {
    this.#ended = null;
    this.#deafen ??= listenToPage((what) => this.#onPage(what));
    const turn = this.#release();
    if (turn === this.#turn) this._become("connecting");
    if (turn !== this.#turn) return; // by a listener
    const { WebSocket } = this.#options;
    try {
      const token = await this.#askToken(); // never before whoever called could listen
      if (turn !== this.#turn) return;
      this.#token = token;
    } catch (error) {
      if (turn === this.#turn) this.#rest({ reason: "no token could be had", error });
      return;
    }
    try {
      this.#socket = new WebSocket(this.url, this.#token === null ? [PROTOCOL] : [PROTOCOL, BEARER + this.#token]);
    } catch (error) {
      return this.#stop(error); // an address or a token that no WebSocket takes
    }
    this.#socket.onmessage = this.#now(({ data }) => this.#received(data));
    this.#socket.onclose = this.#now(({ code, reason }) => this.#closed(code, reason));
    this.#socket.onerror = () => {}; // a close follows; `ws` throws where nobody listens
    this.#after(OPENING, () => this.#closed(CUT, "no answer"));
  }

  /* Whose token it is now; null for nobody's. Also who never answers has failed. */
  async #askToken() {
    const { getToken } = this.#options;
    if (!getToken) return null;
    let timer;
    const late = new Promise((_, reject) => {
      const give = () => reject(new TocsinError("timeout", "getToken gave none in time"));
      this.#tokenTimer = timer = this.#clock.setTimeout(give, OPENING);
    });
    try {
      return (await Promise.race([getToken(), late])) ?? null;
    } finally {
      this.#clock.clearTimeout(timer);
    }
  }

  #received(data) {
    this.#heardAt = this.#clock.now();
    const frame = decode(data);
    if (!frame) return this.#closed(CUT, `this is not ${PROTOCOL}`);
    if (frame.ref !== undefined) {
      this.#answers.get(frame.ref)?.(frame);
      this.#answers.delete(frame.ref);
      this.#outbox.answer(frame);
    } else if (frame.type === "welcome") this.#welcomed(frame);
    else if (frame.type === "reconnect") this.#returnAfter = frame.after * 1000;
    else this.#channels.get(frame.channel)?._received(frame);
  }

  #welcomed(welcome) {
    const { client, user, worker } = welcome;
    Object.assign(this, { client, user, worker });
    this.#openedAt = this.#heardAt;
    this.#silence = 2000 * welcome.ping;
    this.#after(this.#silence, () => this.#listenOn());
    this.#renewBefore(welcome.expires_at);
    const turn = this.#turn;
    for (const channel of this.#channels.values()) channel._open();
    if (turn !== this.#turn) return; // by a listener
    this.#outbox.opened(welcome, (text) => this.#socket.send(text));
    this._become("open");
  }

  #closed(code, reason) {
    const wasOpen = this.#openedAt !== null;
    if (wasOpen && this.#clock.now() - this.#openedAt >= HEALTHY) {
      this.#failures = 0;
      this.#renewed = false;
    }
    const after = this.#returnAfter;
    if (this.#release(code === GAP ? reason : undefined) !== this.#turn) return;
    const why = { code, reason };
    if (code === UNAUTHORIZED) this.#refused(why);
    else if (STOPS.test(code)) this.#stop(new TocsinError("stopped", `${code} ${reason}`), why);
    else if (code === CUT && !wasOpen) this.#inquire(why);
    else if (after !== null) this.#rest(why, after, 0);
    else if (code === ABUSE) this.#rest(why, AWAY, 0);
    else if (code === GAP && this.#failures++ === 0) this.#rest(why, 0, 0); // at once, but not again and again
    else this.#rest(why);
  }

  /* A browser does not say why an upgrade was refused; the service says it again over HTTP. */
  async #inquire(why) {
    const turn = this.#turn;
    const inquiry = (this.#inquiry = new AbortController());
    this.#after(PROBE, () => inquiry.abort());
    const address = new URL("api/v1/connect", this.url.replace(/^ws/, "http"));
    address.search = new URL(this.url).search;
    address.searchParams.set("protocols", PROTOCOL);
    const headers = this.#token === null ? {} : { authorization: `Bearer ${this.#token}` };
    let status = 0;
    let after = 0;
    try {
      const { fetch } = this.#options;
      const ask = (credentials) => fetch(address, { cache: "no-store", signal: inquiry.signal, headers, credentials });
      // The upgrade has carried a cookie, if there is one. Where the service takes none, the browser keeps an answer that
      // was asked for with cookies from pages of other origins (CORS).
      const answer = await (this.#token === null ? ask("include").catch(() => ask("same-origin")) : ask("same-origin"));
      status = answer.status;
      after = 1000 * answer.headers.get("retry-after") || 0;
      if (!answer.ok) why.error = refusal((await answer.json()).error);
    } catch {
      // Not reached, or not answered by this service: all that is known is that the socket was cut.
    }
    if (turn !== this.#turn) return;
    if (why.error) why.reason = why.error.message;
    if (status === 401) this.#refused(why);
    else if (why.error && (status === 400 || status === 403)) this.#stop(why.error, why);
    else this.#rest(why, after);
  }

  /* The token has ended, or is not good: one more is asked for, once. */
  #refused(why) {
    if (this.#renewed || !this.#options.getToken) {
      return this.#stop(why.error ?? new TocsinError("unauthorized", why.reason), why);
    }
    this.#renewed = true;
    this.#begin();
  }

  /* Come back after `least` ms and a random time on top. */
  #rest(why, least = 0, more = backoff(this.#failures++, this.#options.random)) {
    this.#notBefore = this.#clock.now() + least;
    this.#after(least + more, () => this.#begin());
    this._become("waiting", { ...why, delay: least + more });
  }

  #stop(error, why = { reason: error.message }) {
    this.#ended = error;
    this.#deafen?.();
    this.#deafen = null;
    const turn = this.#release();
    if (turn !== this.#turn) return;
    this.#outbox.stop(error);
    for (const channel of this.#channels.values()) channel._end(error);
    if (turn === this.#turn) this._become("stopped", error.code === "closed" ? why : { ...why, error });
  }

  /* The turn is over: give up its socket, and tell all who had a part in it. `gap`: why what they missed cannot be had.
     Returns the new turn, which is over, too, if one who was told has called `close` or `connect`. */
  #release(gap) {
    const turn = ++this.#turn;
    this.#clock.clearTimeout(this.#timer);
    this.#clock.clearTimeout(this.#tokenTimer);
    for (const timer of this.#retries) this.#clock.clearTimeout(timer);
    this.#retries.clear();
    this.#inquiry?.abort();
    this.#socket?.close();
    this.#socket = this.#openedAt = this.#returnAfter = null;
    this.#answers.clear();
    this.#outbox.lost();
    for (const channel of this.#channels.values()) channel._lost(gap);
    return turn;
  }

  /* Something comes in every interval, if only `alive`. A timer that is late says that this machine slept: then ask. */
  #listenOn() {
    const quiet = this.#clock.now() - this.#heardAt;
    if (quiet < this.#silence) this.#after(this.#silence - quiet, () => this.#listenOn());
    else if (quiet > this.#silence + PROBE) this.#probe();
    else this.#closed(CUT, "nothing was heard for two intervals");
  }

  #probe() {
    const asked = this.#clock.now();
    this._command({ type: "ping" });
    this.#after(PROBE, () => (this.#heardAt >= asked ? this.#listenOn() : this.#closed(CUT, "no answer")));
  }

  /* Show a new token before the old one ends; not again and again where this machine's clock is ahead. If it has ended
     by that clock and was taken all the same, 4401 will say when it has. */
  #renewBefore(expiresAt, least = 1000) {
    const left = expiresAt * 1000 - this.#clock.now();
    if (left <= 0 || !expiresAt || !this.#options.getToken) return;
    this.#renewAfter(Math.max(least, left - Math.min(60_000, left / 5)), 0);
  }

  #renewAfter(ms, failures) {
    const again = this.#now(() => this.#renewAfter(1000 + backoff(failures, this.#options.random), failures + 1));
    const show = this.#now((token) =>
      this._command({ type: "authenticate", token }, (answer) => {
        if (answer.type !== "error") this.#renewBefore(answer.expires_at, RENEWED);
        else if (answer.code === "forbidden") this.#begin(); // of somebody else, who connects anew
        else again();
      }),
    );
    const renew = this.#now(() => this.#askToken().then(show).catch(again));
    this.#tokenTimer = this.#clock.setTimeout(renew, Math.min(ms, LONGEST));
  }

  #onPage(what) {
    if (what === "asleep") {
      // A page with a connection may not be kept.
      if (this.#release() === this.#turn) this._become("waiting", { reason: "the page is put away" });
    } else if (this.state === "open") this.#probe();
    else if (what === "offline") return;
    else if (this.state === "waiting") this.#after(Math.max(0, this.#notBefore - this.#clock.now()), () => this.#begin());
    else if (what === "online") this.#begin(); // what was begun without a network may hang
  }
}
