/* Commands that wait for their answer, over any number of connections: publishes, and reads of the log and of members.
   What has no answer when its connection is lost is sent again on the next one, a message with its key, so that the
   service answers with the first result. A key is given up before the service forgets it: later, a repetition would
   publish twice. */

import { OutboxFull, PublishTimeout, TocsinError, isTransient, refusal } from "./errors.js";
import { LONGEST, backoff } from "./time.js";

const WINDOW = 64; // commands on the wire at most: what may be refused at once
const FASTER = 0.95; // a second: what the time between two commands is multiplied with while they are taken
const KEEP = 0.8; // part of `key_seconds` after which a key is given up

export class Outbox {
  #clock;
  #random;
  #limit;
  #entries = new Map(); // by ref, in the order in which they were given
  #onWire = 0;
  #user; // of the last connection: the service knows a key as its user's alone
  #line = null; // while there is a connection: what it was welcomed with, and how to send
  #gap = 0; // ms between commands, once the service has found them too fast
  #slowedAt = 0;
  #timer = null;
  #holdUntil = 0;

  constructor(clock, random, limit) {
    this.#clock = clock;
    this.#random = random;
    this.#limit = limit;
  }

  /* entry: `ref`, `text`; `timeout` in ms; of a publish `size` in bytes, and whether it is `ephemeral`. */
  add(entry) {
    return new Promise((resolve, reject) => {
      if (this.#entries.size >= this.#limit) throw new OutboxFull(this.#limit);
      const waiting = { ...entry, resolve, reject, sent: false, onWire: false, failures: 0, dueAt: Infinity };
      this.#entries.set(entry.ref, waiting);
      if (entry.timeout !== undefined) this.#expire(waiting, entry.timeout);
      this.#flush();
    });
  }

  /* What one user has said is never sent as another's. What was given since this connection was begun is the new
     one's. */
  opened(welcome, send) {
    if (this.#user !== undefined && this.#user !== welcome.user) {
      const error = new TocsinError("user_changed", "it was not sent: the connection is another user's now");
      for (const entry of this.#entries.values()) {
        if (entry.earlier && isPublish(entry)) this.#settle(entry, unanswered(entry, error));
      }
    }
    this.#user = welcome.user;
    this.#line = { send, most: welcome.max_data, keep: welcome.key_seconds * 1000 * KEEP };
    this.#flush();
  }

  lost() {
    this.#line = null;
    this.#hold(0);
    for (const entry of this.#entries.values()) {
      this.#takeOff(entry);
      entry.earlier = true;
      if (entry.ephemeral) this.#settle(entry, timeout(entry)); // the service would not know it again
    }
  }

  /* No connection will be made any more. */
  stop(error) {
    for (const entry of this.#entries.values()) this.#settle(entry, unanswered(entry, error));
  }

  answer(frame) {
    const entry = this.#entries.get(frame.ref);
    if (!entry) return;
    this.#takeOff(entry);
    if (frame.type !== "error") {
      this.#gap *= FASTER ** (this.#gap / 1000); // it stands for as much time
      this.#settle(entry, null, frame);
    } else if (entry.ephemeral || !isTransient(frame.code)) this.#settle(entry, refusal(frame));
    else this.#hold(this.#waitFor(entry, frame));
    this.#flush();
  }

  /* After `rate_limited` one goes at a time, as far apart as the service has asked for, and slowly faster again, until
     all are gone: who goes on at full speed is closed with 4529. Those on the wire then are refused together and count
     once. */
  #waitFor(entry, { code, retry_after: after = 0 }) {
    const asked = after * 1000;
    if (code !== "rate_limited") return asked + backoff(entry.failures++, this.#random);
    if (entry.sentAt > this.#slowedAt) {
      this.#slowedAt = this.#clock.now();
      this.#gap = Math.max(1.5 * this.#gap, asked, 1);
    }
    return Math.max(this.#gap, asked);
  }

  #flush() {
    if (!this.#entries.size) this.#gap = 0;
    for (const entry of this.#entries.values()) {
      if (!this.#line || this.#timer !== null || this.#onWire >= WINDOW) return;
      if (!entry.onWire) this.#send(entry);
    }
  }

  #send(entry) {
    const { send, most, keep } = this.#line;
    const now = this.#clock.now();
    if (now >= entry.dueAt) return this.#settle(entry, timeout(entry)); // its timer is late: this machine slept
    if (entry.size > most) return this.#settle(entry, new TocsinError("too_large", `data has at most ${most} bytes`));
    if (isPublish(entry)) this.#expire(entry, keep); // the first try counts: later ones would end later
    entry.sent = entry.onWire = true;
    entry.sentAt = now;
    this.#onWire++;
    if (this.#gap) this.#hold(this.#gap);
    send(entry.text);
  }

  #takeOff(entry) {
    if (entry.onWire) this.#onWire--;
    entry.onWire = false;
  }

  /* Send nothing for so long, or for as long as was said before; 0: go on. */
  #hold(ms) {
    const until = this.#clock.now() + ms;
    if (ms && this.#timer !== null && until <= this.#holdUntil) return;
    this.#clock.clearTimeout(this.#timer);
    this.#timer = null;
    if (!ms) return;
    this.#holdUntil = until;
    this.#timer = this.#clock.setTimeout(() => {
      this.#timer = null;
      this.#flush();
    }, ms);
  }

  #expire(entry, wait) {
    const ms = Math.min(wait, LONGEST);
    const dueAt = this.#clock.now() + ms;
    if (dueAt >= entry.dueAt) return;
    entry.dueAt = dueAt;
    this.#clock.clearTimeout(entry.timer);
    entry.timer = this.#clock.setTimeout(() => {
      this.#settle(entry, timeout(entry));
      this.#flush();
    }, ms);
  }

  #settle(entry, error, answer) {
    this.#takeOff(entry);
    this.#entries.delete(entry.ref);
    this.#clock.clearTimeout(entry.timer);
    if (error) entry.reject(error);
    else entry.resolve(answer);
  }
}

function isPublish(entry) {
  return entry.size !== undefined;
}

/* Why a command is given up: its `error`, unless it may have been heeded. */
function unanswered(entry, error) {
  return isPublish(entry) && entry.sent ? timeout(entry) : error;
}

function timeout(entry) {
  return isPublish(entry) ? new PublishTimeout(entry.sent) : new TocsinError("timeout", "no answer in time");
}
