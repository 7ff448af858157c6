// One channel over many connections: where it goes on, what its listeners are told, who is in it.

import assert from "node:assert/strict";
import { test } from "node:test";

import { connect } from "../tocsin.js";
import { SUBSCRIBED, joined, message, record, settled, staged } from "./stage.js";

const ids = (events) => events.map(({ id }) => id.split("-")[1]).map(Number);
const names = (members) => members.map(({ member }) => member);
const person = (member, more) => ({ member, clients: 1, info: {}, ...more });

/* The connection is lost and made again. */
async function cut(stage) {
  stage.socket().end(1006);
  await stage.clock.pass(stage.changes.at(-1).delay);
  await stage.open();
}

test("messages go to every listener, in order, as they were published", async () => {
  const stage = await staged(connect);
  await stage.open();
  const { room, told } = await joined(stage);
  stage.socket().say(message(121, { text: "hi" }));
  stage.socket().say(message(122, [1]));
  assert.deepEqual(told.message, [message(121, { text: "hi" }), message(122, [1])]);
  assert.deepEqual([room.position, room.state], [message(122).id, "subscribed"]);
});

test("each connection goes on after the last message that was handed on", async () => {
  const stage = await staged(connect);
  await stage.open();
  const { room, told } = await joined(stage);
  await cut(stage);
  assert.equal(stage.socket().last("subscribe").since, SUBSCRIBED.position);
  stage.socket().answer("subscribe", { ...SUBSCRIBED, recovered: true, replayed: 3 });
  stage.socket().say(message(121));
  stage.socket().say(message(122));
  await cut(stage);
  assert.equal(stage.socket().last("subscribe").since, message(122).id); // of three that were promised two had come
  stage.socket().answer("subscribe", { ...SUBSCRIBED, position: message(122).id, recovered: true, replayed: 1 });
  stage.socket().say(message(123));
  assert.deepEqual(ids(told.message), [121, 122, 123]);
  assert.deepEqual(told.gap, []);
  const states = told.state.map(({ state }) => state);
  assert.deepEqual(states, ["subscribing", ...Array(3).fill(["subscribed", "subscribing"])].flat().slice(0, 6));
  assert.deepEqual([room.state, told.state.at(-1).recovered, told.state.at(-1).replayed], ["subscribed", true, 1]);
});

test("every channel that is wanted is resumed, and no other", async () => {
  const stage = await staged(connect);
  const [a, b, c] = ["a", "b", "c"].map((name) => stage.tocsin.channel(name));
  for (const channel of [a, b, c]) channel.subscribe().catch(() => {});
  await stage.open();
  b.unsubscribe();
  await cut(stage);
  assert.deepEqual(stage.socket().said.map(({ type, channel }) => [type, channel]), [["subscribe", "a"], ["subscribe", "c"]]);
});

test("one subscribes from an id that was kept elsewhere", async () => {
  const stage = await staged(connect);
  await stage.open();
  const room = stage.tocsin.channel("room:42");
  const subscribing = room.subscribe({ since: "4c1f9be07a2d-100", history: 20 });
  const { since, history } = stage.socket().last("subscribe");
  assert.deepEqual([since, history], ["4c1f9be07a2d-100", 20]); // `since` wins
  stage.socket().answer("subscribe", { ...SUBSCRIBED, position: since, recovered: true, replayed: 20 });
  assert.deepEqual(await subscribing, { position: since, recovered: true, replayed: 20, reason: undefined });
  assert.equal(room.subscribe(), room.subscribe()); // asked for twice is asked for once
  assert.equal(stage.socket().said.length, 1);
});

test("who hears a channel already begins elsewhere only after `unsubscribe`", async () => {
  const stage = await staged(connect);
  await stage.open();
  const { room } = await joined(stage);
  for (const options of [{ since: "4c1f9be07a2d-5" }, { since: null }, { history: 0 }]) {
    await assert.rejects(room.subscribe(options), { name: "TocsinError", code: "already_subscribed" });
  }
  assert.deepEqual([room.position, stage.socket().said.length], [SUBSCRIBED.position, 1]);
  room.unsubscribe();
  room.subscribe({ since: "4c1f9be07a2d-5" });
  assert.equal(stage.socket().last("subscribe").since, "4c1f9be07a2d-5");
});

test("a listener of `unsubscribed` may begin elsewhere at once", async () => {
  const stage = await staged(connect);
  const room = stage.tocsin.channel("room:42");
  room.subscribe();
  const off = room.on("state", ({ state }) => state === "unsubscribed" && (off(), room.subscribe({ since: "5d20-7" })));
  room.unsubscribe();
  await stage.open();
  assert.equal(stage.socket().last("subscribe").since, "5d20-7");
});

test("history is asked for once, and after that what was missed", async () => {
  const stage = await staged(connect);
  const room = stage.tocsin.channel("room:42");
  room.subscribe({ history: 20 });
  await stage.open();
  await cut(stage);
  assert.equal(stage.socket().last("subscribe").history, 20);
  stage.socket().answer("subscribe", SUBSCRIBED);
  await cut(stage);
  const { since, history } = stage.socket().last("subscribe");
  assert.deepEqual([since, history], [SUBSCRIBED.position, undefined]);
});

test("a gap is told with its reason, pushed or found at the resume, and it goes on from there", async () => {
  const stage = await staged(connect);
  await stage.open();
  const { room, told } = await joined(stage);
  stage.socket().say({ type: "gap", channel: "room:42", reason: "cleared", position: "5d20-400" });
  assert.equal(room.position, "5d20-400");
  await cut(stage);
  assert.equal(stage.socket().last("subscribe").since, "5d20-400");
  const lost = { ...SUBSCRIBED, recovered: false, reason: "expired", position: "5d20-900" };
  stage.socket().answer("subscribe", lost);
  assert.equal(room.position, "5d20-900");
  assert.deepEqual(told.gap, [
    { type: "gap", channel: "room:42", reason: "cleared", position: "5d20-400" },
    { type: "gap", channel: "room:42", reason: "expired", position: "5d20-900" },
  ]);
});

test("a listener that leaves while it is told of the subscription hears nothing more of it", async () => {
  for (const [event, when, gaps] of [["state", ({ state }) => state === "subscribed", 0], ["gap", () => true, 1]]) {
    const stage = await staged(connect);
    await stage.open();
    const room = stage.tocsin.channel("room:42", { presence: "watch" });
    const told = record(room);
    room.on(event, (what) => when(what) && room.unsubscribe());
    const subscribing = assert.rejects(room.subscribe({ since: "5d20-1" }), { code: "closed" });
    const lost = { recovered: false, reason: "expired", members: [person("ada")], count: 2 };
    stage.socket().answer("subscribe", { ...SUBSCRIBED, ...lost });
    await subscribing;
    assert.deepEqual([told.gap.length, told.presence, room.members, room.count], [gaps, [], [], 0]);
    assert.deepEqual([room.position, stage.socket().last("presence")], [null, undefined]);
  }
});

test("an ephemeral message has no id, and moves no position", async () => {
  const stage = await staged(connect);
  await stage.open();
  const { room, told } = await joined(stage);
  const { id, ...ephemeral } = message(1, "typing");
  stage.socket().say(ephemeral);
  assert.deepEqual([told.message[0].id, told.message[0].data, room.position], [null, "typing", SUBSCRIBED.position]);
});

test("a listener that throws breaks nothing, and is heard of", async () => {
  const stage = await staged(connect);
  await stage.open();
  const room = stage.tocsin.channel("room:42");
  const uncaught = [];
  const hear = (error) => uncaught.push(error.message);
  const others = process.listeners("uncaughtException");
  process.removeAllListeners("uncaughtException");
  process.on("uncaughtException", hear);
  room.on("message", () => {
    throw new Error("a fault of the page");
  });
  const told = record(room);
  room.subscribe();
  stage.socket().answer("subscribe", SUBSCRIBED);
  stage.socket().say(message(121));
  stage.socket().say(message(122));
  await settled();
  process.off("uncaughtException", hear);
  for (const other of others) process.on("uncaughtException", other);
  assert.deepEqual(ids(told.message), [121, 122]);
  assert.equal(room.position, message(122).id);
  assert.deepEqual(uncaught, ["a fault of the page", "a fault of the page"]);
});

test("a listener may leave, also while it is called", async () => {
  const stage = await staged(connect);
  await stage.open();
  const { room, told } = await joined(stage);
  const heard = [];
  const off = room.on("message", ({ data }) => {
    heard.push(data);
    off();
  });
  stage.socket().say(message(121));
  stage.socket().say(message(122));
  assert.deepEqual([heard, told.message.length], [[121], 2]);
});

test("after `unsubscribe` nothing comes, and a new subscription does not hear the old one", async () => {
  const stage = await staged(connect);
  await stage.open();
  const { room, told } = await joined(stage);
  room.unsubscribe();
  room.unsubscribe();
  stage.socket().say(message(121));
  room.subscribe();
  stage.socket().say(message(122));
  stage.socket().answer("unsubscribe", { type: "unsubscribed" });
  stage.socket().answer("subscribe", { ...SUBSCRIBED, position: message(122).id });
  stage.socket().say(message(123));
  assert.deepEqual(ids(told.message), [123]);
  const said = stage.socket().said.map(({ type, since }) => [type, since]);
  assert.deepEqual(said, [["subscribe", undefined], ["unsubscribe", undefined], ["subscribe", undefined]]);
});

test("an answer to a subscription that was given up is not taken for the next one's", async () => {
  const stage = await staged(connect);
  await stage.open();
  const room = stage.tocsin.channel("room:42");
  const given = assert.rejects(room.subscribe(), { code: "closed" });
  const { ref } = stage.socket().last("subscribe");
  room.unsubscribe();
  await given;
  room.subscribe();
  stage.socket().say({ ...SUBSCRIBED, ref, channel: "room:42" });
  assert.equal(room.state, "subscribing");
  stage.socket().answer("subscribe", SUBSCRIBED);
  assert.equal(room.state, "subscribed");
});

for (const code of ["forbidden", "bad_channel", "bad_position", "too_many_subscriptions"]) {
  test(`a channel that is refused with ${code} is not asked for again`, async () => {
    const stage = await staged(connect);
    const room = stage.tocsin.channel("room:42");
    const told = record(room);
    const refused = assert.rejects(room.subscribe(), { name: "TocsinError", code, message: "no" });
    await stage.open();
    stage.socket().answer("subscribe", { type: "error", code, message: "no" });
    await refused;
    assert.deepEqual([room.state, told.state.at(-1).error.code], ["unsubscribed", code]);
    await cut(stage);
    assert.equal(stage.socket().last("subscribe"), undefined);
  });
}

test("a channel that cannot be opened now is asked for again", async () => {
  const stage = await staged(connect);
  const room = stage.tocsin.channel("room:42");
  room.subscribe();
  await stage.open();
  stage.socket().answer("subscribe", { type: "error", code: "unavailable", message: "later", retry_after: 1 });
  await stage.clock.pass(1249);
  assert.equal(stage.socket().said.length, 1);
  await stage.clock.pass(1);
  assert.equal(stage.socket().said.length, 2);
  stage.socket().answer("subscribe", { type: "error", code: "rate_limited", message: "later" });
  await cut(stage); // the next connection asks by itself, and only once
  await stage.clock.pass(10_000);
  assert.equal(stage.socket().said.length, 1);
});

test("a name or an info that no JSON holds is refused, and the others are subscribed", async () => {
  const stage = await staged(connect);
  const bad = [stage.tocsin.channel("\ud83d"), stage.tocsin.channel("info", { presence: { info: { n: 1n } } })];
  const refused = bad.map((channel) => assert.rejects(channel.subscribe()));
  stage.tocsin.channel("good").subscribe();
  await stage.open();
  await Promise.all(refused);
  assert.deepEqual(stage.socket().said.map(({ channel }) => channel), ["good"]);
});

test("a channel that a new token does not allow ends", async () => {
  const stage = await staged(connect);
  await stage.open();
  const { room, told } = await joined(stage);
  stage.socket().say({ type: "unsubscribed", channel: "room:42", reason: "forbidden" });
  assert.deepEqual([room.state, told.state.at(-1).error.code], ["unsubscribed", "forbidden"]);
});

test("who is here is kept: replaced when subscribed, changed by what is pushed", async () => {
  const stage = await staged(connect);
  await stage.open();
  const [ada, bob, eve] = ["ada", "bob", "eve"].map((name) => person(name));
  const first = { members: [ada, bob], count: 2 };
  const { room, told } = await joined(stage, "room:42", { presence: { info: { name: "Ada" } } }, first);
  assert.deepEqual(stage.socket().last("subscribe").presence, { info: { name: "Ada" } });
  assert.deepEqual([room.members, room.count], [[ada, bob], 2]);
  const push = (joined, left, count) => {
    stage.socket().say({ type: "presence", channel: "room:42", joined, left, count });
    const { joined: come, left: gone, count: now } = told.presence.at(-1);
    return [names(come), names(gone), now, names(room.members)];
  };
  assert.deepEqual(push([eve], [bob], 2), [["eve"], ["bob"], 2, ["ada", "eve"]]);
  assert.deepEqual(push([person("ada", { clients: 2 })], [person("nobody")], 2), [[], [], 2, ["ada", "eve"]]);
  assert.equal(room.members[0].clients, 2);
  await cut(stage);
  assert.deepEqual(names(room.members), ["ada", "eve"]); // until it is known better
  stage.socket().answer("subscribe", { ...SUBSCRIBED, recovered: true, members: [ada, bob], count: 2 });
  const { joined: come, left: gone } = told.presence.at(-1);
  assert.deepEqual([names(come), names(gone), names(room.members)], [["bob"], ["eve"], ["ada", "bob"]]);
  room.unsubscribe();
  assert.deepEqual([room.members, room.count], [[], 0]);
});

test("members that are not listed are read, as far as they are told at all", async () => {
  const stage = await staged(connect);
  await stage.open();
  const crowd = Array.from({ length: 600 }, (_, n) => person(`m${n}`));
  const beginning = { members: crowd.slice(0, 100), count: 400 };
  const { room } = await joined(stage, "room:42", { presence: "watch" }, beginning);
  assert.deepEqual([stage.socket().last("presence").limit, room.members.length], [1000, 100]);
  const listing = { type: "presence", members: crowd.slice(0, 400), count: 400, cursor: null };
  stage.socket().answer("presence", listing);
  await settled();
  assert.deepEqual([room.members.length, room.count], [400, 400]);
  const read = () => stage.socket().said.filter(({ type }) => type === "presence").length;
  const push = (count) => stage.socket().say({ type: "presence", channel: "room:42", joined: [], left: [], count });
  push(400);
  push(600); // of so many only the number is told
  assert.deepEqual([read(), room.count], [1, 600]);
  push(450);
  push(451);
  assert.equal(read(), 2);
  stage.socket().answer("presence", { ...listing, members: crowd.slice(0, 450), count: 451 });
  await settled();
  assert.deepEqual([read(), room.members.length, room.count], [2, 450, 451]); // the next push looks again
});

test("a loop takes messages, gaps and presence in order, and subscribes by itself", async () => {
  const stage = await staged(connect);
  await stage.open();
  const room = stage.tocsin.channel("room:42", { presence: "watch" });
  const taken = [];
  const looping = (async () => {
    for await (const event of room) {
      taken.push(event.type === "message" ? event.data : event.type);
      if (event.data === 124) break;
    }
  })();
  await settled();
  stage.socket().answer("subscribe", { ...SUBSCRIBED, members: [], count: 0 });
  stage.socket().say(message(121));
  stage.socket().say(message(122));
  stage.socket().say({ type: "gap", channel: "room:42", reason: "expired", position: "5d20-1" });
  await cut(stage);
  stage.socket().answer("subscribe", { ...SUBSCRIBED, recovered: true, replayed: 2 });
  stage.socket().say(message(123));
  stage.socket().say(message(124));
  stage.socket().say(message(125));
  await looping;
  assert.deepEqual(taken, ["presence", 121, 122, "gap", 123, 124]);
  assert.equal(room.state, "subscribed");
});

test("a loop ends quietly by `unsubscribe` and `close`, after what had come, and throws what else ends it", async () => {
  const ends = [
    [({ room }) => room.unsubscribe(), null],
    [({ stage }) => stage.tocsin.close(), null],
    [({ stage }) => stage.socket().end(4403, "revoked"), "stopped"],
    [({ stage }) => stage.socket().say({ type: "unsubscribed", channel: "room:42", reason: "forbidden" }), "forbidden"],
  ];
  for (const [end, code] of ends) {
    const stage = await staged(connect);
    await stage.open();
    const { room } = await joined(stage);
    const events = room[Symbol.asyncIterator]();
    stage.socket().say(message(121));
    end({ stage, room });
    assert.equal((await events.next()).value.data, 121);
    if (code) await assert.rejects(events.next(), { code });
    else assert.deepEqual(await events.next(), { value: undefined, done: true });
    assert.equal((await events.next().catch(() => ({ done: true }))).done, true);
  }
});

test("several may wait for the next events", async () => {
  const stage = await staged(connect);
  await stage.open();
  const { room } = await joined(stage);
  const events = room[Symbol.asyncIterator]();
  const waiting = [events.next(), events.next(), events.next()];
  await settled();
  for (const number of [121, 122]) stage.socket().say(message(number));
  await settled();
  stage.socket().say(message(123));
  const taken = await Promise.all(waiting);
  assert.deepEqual(taken.map(({ value }) => value.data), [121, 122, 123]);
});

test("a loop over a channel that may not be heard throws why", async () => {
  const stage = await staged(connect);
  await stage.open();
  const events = stage.tocsin.channel("room:42")[Symbol.asyncIterator]();
  stage.socket().answer("subscribe", { type: "error", code: "forbidden", message: "no" });
  await assert.rejects(events.next(), { code: "forbidden" });
});

test("a loop that is ten thousand events behind is told, and loses nothing silently", async () => {
  const stage = await staged(connect);
  await stage.open();
  const { room } = await joined(stage);
  const events = room[Symbol.asyncIterator]();
  for (let n = 0; n < 10_100; n++) stage.socket().say(message(n));
  for (let n = 0; n < 10_001; n++) assert.equal((await events.next()).value.data, n);
  await assert.rejects(events.next(), { code: "behind" });
  assert.equal(room.state, "subscribed");
});

test("a channel of one name is one object", async () => {
  const stage = await staged(connect);
  const room = stage.tocsin.channel("room:42", { presence: "watch" });
  assert.equal(stage.tocsin.channel("room:42"), room);
  room.subscribe();
  await stage.open();
  assert.equal(stage.socket().last("subscribe").presence, "watch");
});
