/* One channel as this client hears it. It remembers the id of the last message that its listeners were handed, and goes
   on from there on each new connection. What comes of a subscription that was given up is not heard. */

import { Emitter } from "./emitter.js";
import { TocsinError, isTransient, refusal } from "./errors.js";
import { Events } from "./events.js";
import { encodeData, newKey } from "./wire.js";

const GAPS = /expired|diverged|cleared/;
const LISTED = 500; // members above which the service tells only their number

export class Channel extends Emitter {
  state = "unsubscribed";
  position = null;
  count = 0;
  #connection;
  #presence;
  #history;
  #wanted = null; // who waits for the first `subscribed`, until nobody wants to hear the channel any more
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

  subscribe({ since, history } = {}) {
    if (this.#wanted && since === undefined && history === undefined) return this.#wanted.promise;
    if (this.#wanted) return Promise.reject(new TocsinError("already_subscribed", "unsubscribe to begin elsewhere"));
    const wanted = {};
    wanted.promise = new Promise((resolve, reject) => Object.assign(wanted, { resolve, reject }));
    wanted.promise.catch(() => {}); // where nobody waits, `state` tells it
    this.#wanted = wanted;
    this.#history = history;
    if (since !== undefined) this.position = since;
    this._become("subscribing");
    this.#connection._attend(this);
    return wanted.promise;
  }

  unsubscribe() {
    if (!this.#wanted) return;
    this.#connection._command({ type: "unsubscribe", channel: this.name });
    this.position = null;
    this._end(new TocsinError("closed", "unsubscribed"));
  }

  async publish(data, { key = newKey(), timeout, ephemeral = false } = {}) {
    const { body, size } = encodeData(data);
    const command = { type: "publish", channel: this.name, ...(ephemeral ? { ephemeral } : { key }) };
    const { id, duplicate } = await this.#connection._ask(command, { body, size, ephemeral, timeout });
    return { id, duplicate };
  }

  async history({ since, before, limit } = {}) {
    const command = { type: "history", channel: this.name, since, before, limit };
    const { messages, position, complete } = await this.#connection._ask(command);
    return { messages, position, complete };
  }

  async presence({ limit, cursor } = {}) {
    const command = { type: "presence", channel: this.name, limit, cursor };
    const page = await this.#connection._ask(command);
    return { members: page.members, count: page.count, cursor: page.cursor };
  }

  [Symbol.asyncIterator]() {
    const events = new Events(this);
    if (!this.#wanted) this.subscribe().catch((error) => events.end(error));
    return events;
  }

  _configure({ presence } = {}) {
    if (presence !== undefined) this.#presence = presence;
  }

  /* Ask to hear the channel, on the connection that is open now. */
  _open() {
    const wanted = this.#wanted;
    if (!wanted) return;
    const command = {
      type: "subscribe",
      channel: this.name,
      since: this.position ?? undefined,
      history: this.#history,
      presence: this.#presence,
    };
    const answered = (answer) => {
      if (wanted !== this.#wanted) return;
      if (answer.type !== "error") this.#subscribed(answer);
      else if (!isTransient(answer.code)) this._end(refusal(answer));
      else this.#connection._later(answer.retry_after, this.#failures++, () => wanted === this.#wanted && this._open());
    };
    try {
      this.#connection._command(command, answered);
    } catch (error) {
      this._end(error); // no JSON can hold this `info` or this name
    }
  }

  /* The connection is gone. `gap`: why what was missed cannot be had, if that was said (4510). */
  _lost(gap) {
    const wanted = this.#wanted;
    if (!wanted) return;
    this._become("subscribing");
    if (gap !== undefined && wanted === this.#wanted) this.#lose(GAPS.exec(gap)?.[0] ?? "expired", null);
  }

  _end(error) {
    const wanted = this.#wanted;
    this.#wanted = null;
    this.#members.clear();
    this.count = 0;
    wanted?.reject(error);
    this._become("unsubscribed", error.code === "closed" ? {} : { error });
  }

  _received(frame) {
    if (this.state !== "subscribed") return;
    switch (frame.type) {
      case "message":
        this.position = frame.id ?? this.position;
        return this._emit("message", frame);
      case "gap":
        return this.#lose(frame.reason, frame.position);
      case "presence":
        return this.#change(frame);
      case "unsubscribed":
        return this._end(new TocsinError(frame.reason, "the channel is not allowed any more"));
    }
  }

  #subscribed({ position, recovered, replayed, reason, members, count }) {
    const wanted = this.#wanted;
    this.#failures = 0;
    this.#history = undefined; // told once
    this.position = position;
    this._become("subscribed", { recovered, replayed });
    if (recovered === false && wanted === this.#wanted) this.#lose(reason, position);
    if (members && wanted === this.#wanted) {
      this.#replace(members, count);
      this.#complete();
    }
    wanted.resolve({ position, recovered, replayed, reason });
  }

  #lose(reason, position) {
    this.position = position;
    this._emit("gap", { type: "gap", channel: this.name, reason, position });
  }

  /* What is told of one that is known already, or not known, changes nothing for listeners. */
  #change({ joined, left, count }) {
    const come = joined.filter(({ member }) => !this.#members.has(member));
    const gone = left.map(({ member }) => this.#members.get(member)).filter(Boolean);
    for (const one of joined) this.#members.set(one.member, one);
    for (const { member } of left) this.#members.delete(member);
    this.#tell(come, gone, count);
    this.#complete();
  }

  #replace(members, count) {
    const old = this.#members;
    this.#members = new Map(members.map((one) => [one.member, one]));
    const come = members.filter(({ member }) => !old.has(member));
    const gone = [...old.values()].filter(({ member }) => !this.#members.has(member));
    this.#tell(come, gone, count);
  }

  #tell(joined, left, count) {
    this.count = count;
    this._emit("presence", { type: "presence", channel: this.name, joined, left, count });
  }

  /* `subscribed` lists a hundred members, and a push for more than `LISTED` none: the others are read. */
  async #complete() {
    if (this.#reading || this.#members.size === this.count || this.count > LISTED) return;
    const wanted = this.#wanted;
    this.#reading = true;
    const page = await this.presence({ limit: 2 * LISTED }).catch(() => null);
    this.#reading = false;
    if (page && wanted && wanted === this.#wanted) this.#replace(page.members, page.count);
  }
}
