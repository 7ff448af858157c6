// The golden frames of tests/wire: what the service says is read as it is meant, and what the client says is what Python
// reads (with TOCSIN_SPOKEN, the frames are written there for it).

import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { after, test } from "node:test";

import { decode } from "../src/wire.js";
import { connect } from "../tocsin.js";
import { SUBSCRIBED, golden, settled, staged } from "./stage.js";

const EVENTS = golden("events");
const COMMANDS = golden("commands").filter(({ meaning }) => meaning.command);
const spoken = {};

/* A publication as the golden frames put it, read by the client. */
function asMessage({ position, kind, payload, attributes }, channel) {
  const data = {
    json: () => JSON.parse(payload),
    text: () => payload,
    binary: () => new Uint8Array(Buffer.from(payload, "base64")),
  }[kind]();
  const { c: from = null, u: user = null, t: at } = attributes;
  return { type: "message", channel, data, from, user, at, id: position };
}

const members = (listed) => listed.map((one) => ({ ...one, info: JSON.parse(one.info) }));

/* What the client makes of an event. */
const READ = {
  message: ({ event, channel, ...publication }) => asMessage(publication, channel),
  history: ({ event, messages, ...page }) => ({
    type: "history",
    ...page,
    messages: messages.map((one) => asMessage(one, page.channel)),
  }),
  published: ({ event, position, ...rest }) => ({ type: "published", id: position, ...rest }),
  subscribed: ({ event, presence, ...rest }) => ({
    type: "subscribed",
    ...rest,
    ...(presence && { members: members(presence.members), count: presence.count }),
  }),
  members: ({ event, ...rest }) => ({ type: "presence", ...rest, members: members(rest.members) }),
  presence: ({ event, ...rest }) => ({
    type: "presence",
    ...rest,
    joined: members(rest.joined),
    left: members(rest.left),
  }),
  plain: ({ event, ...rest }) => ({ type: event, ...rest }),
};

/* Fields that are absent on the wire are null in the meaning. */
function withoutNulls(value, but = []) {
  return Object.fromEntries(Object.entries(value).filter(([name, field]) => field !== null || but.includes(name)));
}

for (const { name, frame, meaning } of EVENTS) {
  test(`read: ${name}`, () => {
    const read = (READ[meaning.event] ?? READ.plain)(meaning);
    assert.deepEqual(withoutNulls(decode(frame)), withoutNulls(read));
  });
}

test("what is no frame is none", () => {
  for (const text of ["", "hello", '{"type":"message"', "null", new ArrayBuffer(2)]) assert.equal(decode(text), null);
});

const unanswered = () => {};

/* How a page makes the client say a command. */
const SAY = {
  subscribe: ({ tocsin }, { channel, since, history, presence }) => {
    const asked = presence === null || presence === "watch" ? presence : { info: JSON.parse(presence) };
    tocsin.channel(channel, { presence: asked }).subscribe({ since, ...(history && { history }) });
  },
  unsubscribe: ({ tocsin, socket }, { channel }) => {
    tocsin.channel(channel).subscribe();
    socket().answer("subscribe", SUBSCRIBED);
    tocsin.channel(channel).unsubscribe();
  },
  publish: ({ tocsin }, { channel, kind, payload, key, ephemeral }) => {
    const data = kind === "binary" ? new Uint8Array(Buffer.from(payload, "base64")) : JSON.parse(payload);
    tocsin.channel(channel).publish(data, { ...(key && { key }), ephemeral }).catch(unanswered);
  },
  history: ({ tocsin }, { channel, since, before, limit }) => {
    tocsin.channel(channel).history({ ...(since && { since }), ...(before && { before }), limit }).catch(unanswered);
  },
  presence: ({ tocsin }, { channel, limit, cursor }) => {
    tocsin.channel(channel).presence({ limit, ...(cursor && { cursor }) }).catch(unanswered);
  },
  authenticate: ({ clock }) => clock.pass(48_000),
  ping: ({ clock, socket }) => {
    clock.sleep(120_000); // after such a sleep the client asks whether anybody is there
    socket().say({ type: "alive" });
    clock.sleep(120_000);
    return clock.pass(0);
  },
};

/* JavaScript cannot write what it cannot hold, and writes without spaces; nor does it choose the ref. */
function sayable({ command, kind, payload, channel }) {
  if (command === "subscribe" && channel === undefined) return false;
  if (command !== "publish" || kind === "binary") return true;
  return JSON.stringify(JSON.parse(payload)) === payload;
}

for (const { name, frame, meaning } of COMMANDS.filter((row) => sayable(row.meaning))) {
  test(`say: ${name}`, async () => {
    const stage = await staged(connect, { getToken: () => meaning.token ?? null });
    const expires = meaning.command === "authenticate" ? stage.clock.now() / 1000 + 60 : null;
    await stage.open({ expires_at: expires });
    await SAY[meaning.command](stage, meaning);
    await settled();
    const { ref, key, ...said } = stage.socket().last(meaning.command);
    const { ref: other, key: given, future, ...wanted } = JSON.parse(frame);
    assert.equal(Number.isInteger(ref), true);
    if (given) assert.equal(key, given);
    else if (meaning.command === "publish") assert.equal(/^[\w-]{16,64}$/.test(key ?? ""), !said.ephemeral);
    // What is not said is as if its default were.
    const defaults = { history: 0, limit: 100, ephemeral: false, presence: null };
    const full = (command) => withoutNulls({ ...defaults, ...command, presence: attended(command.presence) });
    assert.deepEqual(full(said), full(wanted));
    spoken[name] = stage.socket().texts.at(-1);
    stage.tocsin.close();
  });
}

const attended = (presence) => (typeof presence === "object" && presence ? { info: {}, ...presence } : (presence ?? null));

after(() => {
  if (process.env.TOCSIN_SPOKEN) writeFileSync(process.env.TOCSIN_SPOKEN, JSON.stringify(spoken));
});
