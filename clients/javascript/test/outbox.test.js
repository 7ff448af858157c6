// What waits for an answer: sent until it is answered, always with its first key, and given up before the key is.

import assert from "node:assert/strict";
import { test } from "node:test";

import { OutboxFull, PublishTimeout, TocsinError, connect } from "../tocsin.js";
import { settled, staged } from "./stage.js";

const published = (number) => ({ type: "published", id: `4c1f9be07a2d-${number}`, duplicate: false });
const publishes = (socket) => socket.said.filter(({ type }) => type === "publish");

/* How a promise ends, without anybody waiting for it. */
function outcome(promise) {
  const found = { state: "pending" };
  promise.then(
    (value) => Object.assign(found, { state: "kept", value }),
    (error) => Object.assign(found, { state: "broken", error }),
  );
  return found;
}

test("a message that was not answered goes out again, the same to the byte", async () => {
  const stage = await staged(connect);
  const room = stage.tocsin.channel("room:42");
  const data = { text: "hi" };
  const publishing = room.publish(data);
  data.text = "changed afterwards";
  await stage.open();
  stage.socket().end(1006);
  await stage.clock.pass(250);
  await stage.open();
  const [first, second] = stage.sockets.map(({ texts }) => texts[0]);
  assert.equal(first, second);
  assert.deepEqual(JSON.parse(first).data, { text: "hi" });
  assert.match(JSON.parse(first).key, /^[0-9a-f]{32}$/);
  stage.socket().answer("publish", { ...published(126), duplicate: true });
  assert.deepEqual(await publishing, { id: "4c1f9be07a2d-126", duplicate: true });
  stage.socket().end(1006);
  await stage.clock.pass(500);
  await stage.open();
  assert.equal(publishes(stage.socket()).length, 0);
});

test("what was published without a connection goes out in order, once there is one", async () => {
  const stage = await staged(connect);
  for (let n = 0; n < 5; n++) stage.tocsin.channel("room:42").publish(n);
  await stage.clock.pass(3_600_000 * 24);
  await stage.clock.pass(0);
  await stage.open();
  assert.deepEqual(publishes(stage.socket()).map(({ data }) => data), [0, 1, 2, 3, 4]);
});

test("a key is given up at 80 % of its window, counted from the first try", async () => {
  const stage = await staged(connect);
  const publishing = outcome(stage.tocsin.channel("room:42").publish(1));
  await stage.clock.pass(10_000);
  await stage.open({ key_seconds: 10 });
  await stage.clock.pass(4000);
  stage.socket().end(1006);
  await stage.clock.pass(3000);
  await stage.open({ key_seconds: 10 });
  assert.equal(publishes(stage.socket()).length, 1);
  await stage.clock.pass(999);
  assert.equal(publishing.state, "pending");
  await stage.clock.pass(1);
  assert.ok(publishing.error instanceof PublishTimeout && publishing.error instanceof TocsinError);
  const { name, code, sent } = publishing.error;
  assert.deepEqual([name, code, sent], ["PublishTimeout", "publish_timeout", true]);
  stage.socket().answer("publish", published(1)); // too late, and harmless
});

test("a machine that slept gives up old keys before it sends anything", async () => {
  const stage = await staged(connect);
  await stage.open();
  const publishing = outcome(stage.tocsin.channel("room:42").publish(1));
  stage.clock.sleep(97_000); // of the 96 s that the key is good; no timer has fired yet
  stage.tocsin.connect();
  await settled();
  await stage.open();
  assert.deepEqual([publishes(stage.socket()).length, publishing.error.sent], [0, true]);
});

test("what one user has published is not sent as another, and what the next one publishes is", async () => {
  const stage = await staged(connect);
  const room = stage.tocsin.channel("room:42");
  const early = outcome(room.publish("before anybody was known"));
  await stage.open({ user: "ada" });
  stage.socket().answer("publish", published(1));
  const sent = outcome(room.publish("sent as ada"));
  const reading = outcome(room.history());
  stage.socket().end(1012);
  const unsent = outcome(room.publish("said while ada was away"));
  await stage.clock.pass(250);
  await stage.open({ user: "ada" });
  assert.deepEqual(publishes(stage.socket()).map(({ data }) => data), ["sent as ada", "said while ada was away"]);
  stage.socket().end(1012);
  const waiting = outcome(room.publish("and again"));
  stage.tocsin.connect(); // with bob's token
  const bobs = outcome(room.publish("said as bob"));
  await settled();
  await stage.open({ user: "bob" });
  assert.deepEqual(stage.socket().said.map(({ type, data }) => data ?? type), ["history", "said as bob"]);
  assert.deepEqual([sent, unsent].map(({ error }) => [error.name, error.sent]), Array(2).fill(["PublishTimeout", true]));
  assert.deepEqual([waiting.error.name, waiting.error.code], ["TocsinError", "user_changed"]);
  assert.deepEqual([early, reading, bobs].map(({ state }) => state), ["kept", "pending", "pending"]);
});

test("a timeout of one's own ends the wait, sent or not", async () => {
  const stage = await staged(connect);
  const room = stage.tocsin.channel("room:42");
  const unsent = outcome(room.publish(1, { timeout: 3000 }));
  await stage.clock.pass(3000);
  assert.deepEqual([unsent.error.name, unsent.error.sent], ["PublishTimeout", false]);
  await stage.open();
  assert.equal(publishes(stage.socket()).length, 0);
  const sent = outcome(room.publish(1, { timeout: 3000 }));
  const reading = outcome(room.history());
  await stage.clock.pass(3000);
  assert.deepEqual([sent.error.sent, reading.state], [true, "pending"]);
});

test("a timeout that no timer can wait is as long as one can", async () => {
  const stage = await staged(connect);
  const waits = [];
  const { setTimeout } = stage.clock;
  stage.clock.setTimeout = (callback, ms) => waits.push(ms) && setTimeout(callback, ms);
  for (const timeout of [2 ** 31, Infinity]) outcome(stage.tocsin.channel("room:42").publish(1, { timeout }));
  assert.deepEqual(waits, [2 ** 31 - 1, 2 ** 31 - 1]);
});

test("at most so many wait", async () => {
  const stage = await staged(connect, { outbox: 3 });
  const room = stage.tocsin.channel("room:42");
  const kept = [1, 2, 3].map((n) => outcome(room.publish(n)));
  await assert.rejects(room.publish(4), (error) => error instanceof OutboxFull && error.code === "outbox_full");
  await stage.open();
  stage.socket().answer("publish", published(3));
  await settled();
  assert.deepEqual(kept.map(({ state }) => state), ["pending", "pending", "kept"]);
  room.publish(4);
  assert.equal(stage.socket().last("publish").data, 4);
  assert.equal(connect.length >= 1, true);
});

test("by default a thousand wait", async () => {
  const stage = await staged(connect);
  const room = stage.tocsin.channel("room:42");
  const tried = Array.from({ length: 1001 }, (_, n) => outcome(room.publish(n)));
  await settled();
  assert.deepEqual(tried.slice(-2).map(({ state }) => state), ["pending", "broken"]);
});

for (const code of ["unavailable", "draining", "internal"]) {
  test(`${code} is tried again with the same key, after what was said and some more`, async () => {
    const stage = await staged(connect);
    await stage.open();
    const publishing = outcome(stage.tocsin.channel("room:42").publish(1));
    stage.socket().answer("publish", { type: "error", code, message: "later", retry_after: 1.5 });
    const { key } = stage.socket().last("publish");
    await stage.clock.pass(1749);
    assert.equal(publishes(stage.socket()).length, 1);
    await stage.clock.pass(1);
    assert.equal(publishes(stage.socket()).length, 2);
    assert.equal(stage.socket().last("publish").key, key);
    stage.socket().answer("publish", published(1));
    await settled();
    assert.equal(publishing.state, "kept");
  });
}

for (const code of ["forbidden", "conflict", "bad_channel", "too_large", "something_new"]) {
  test(`${code} ends it`, async () => {
    const stage = await staged(connect);
    await stage.open();
    const publishing = outcome(stage.tocsin.channel("room:42").publish(1));
    stage.socket().answer("publish", { type: "error", code, message: "no" });
    await settled();
    assert.deepEqual([publishing.error.name, publishing.error.code, publishing.error.message], ["TocsinError", code, "no"]);
  });
}

test("what is read is read again over the next connection, and an answer in place of it is an error", async () => {
  const stage = await staged(connect);
  const room = stage.tocsin.channel("room:42");
  const reading = outcome(room.history({ since: "4c1f9be07a2d-1" }));
  await stage.open();
  stage.socket().end(1006);
  await stage.clock.pass(250);
  await stage.open();
  assert.equal(stage.socket().last("history").since, "4c1f9be07a2d-1");
  stage.socket().answer("history", { type: "error", code: "gone", message: "no", position: "4c1f9be07a2d-400" });
  await settled();
  assert.deepEqual([reading.error.code, reading.error.position], ["gone", "4c1f9be07a2d-400"]);
});

/* A service that takes `rate` publishes a second with a burst, answers in `away` ms, and sends away who was refused too
   often: the rules of app/core/limits.py. */
function limited(stage, { rate, burst, away = 1 }) {
  let tokens = burst;
  let patience = 500;
  let at = stage.clock.now();
  const told = { taken: [], refused: 0, sentAway: false };
  const socket = stage.socket();
  const { send } = socket;
  socket.send = (text) => {
    send.call(socket, text);
    const { ref, data } = JSON.parse(text);
    const now = stage.clock.now();
    tokens = Math.min(burst, tokens + ((now - at) / 1000) * rate);
    patience = Math.min(500, patience + ((now - at) / 1000) * 10);
    at = now;
    const taken = tokens >= 1 - 1e-6;
    if (taken) {
      tokens -= 1;
      told.taken.push(data);
    } else {
      told.refused++;
      patience -= 1;
      told.sentAway ||= patience < 0;
    }
    const wait = Math.max(0.001, Math.round(((1 - tokens) / rate) * 1000) / 1000);
    const answer = taken ? published(1) : { type: "error", code: "rate_limited", message: "slow", retry_after: wait };
    stage.clock.setTimeout(() => socket.say({ ref, ...answer }), away);
  };
  return told;
}

for (const limit of [{ rate: 100, burst: 200 }, { rate: 5, burst: 5 }, { rate: 1000, burst: 10 }]) {
  test(`a full outbox goes out under ${limit.rate}/s without being sent away`, async () => {
    const stage = await staged(connect);
    const room = stage.tocsin.channel("room:42");
    const count = Math.min(1000, 60 * limit.rate);
    const done = Array.from({ length: count }, (_, n) => outcome(room.publish(n)));
    stage.socket().welcome();
    // What was sent with the welcome went into the void; the next socket is limited.
    stage.socket().end(1006);
    await stage.clock.pass(250);
    const told = limited(stage, limit);
    stage.socket().welcome();
    const least = ((count - limit.burst) / limit.rate) * 1000;
    let took = 0;
    for (; done.some(({ state }) => state === "pending") && took < 90_000; took += 1000) await stage.live(1000);
    assert.deepEqual([done.filter(({ state }) => state === "kept").length, told.sentAway], [count, false]);
    assert.ok(told.refused < 200, `${told.refused} refusals`);
    assert.ok(took < 2 * least + 3000, `${took} ms instead of ${least}`);
  });
}

test("a burst slows down what follows only for a while", async () => {
  const stage = await staged(connect);
  const told = limited(stage, { rate: 100, burst: 200, away: 50 });
  await stage.open();
  const room = stage.tocsin.channel("room:42");
  const done = [];
  const publish = () => done.push(outcome(room.publish(done.length)));
  for (let n = 0; n < 400; n++) publish();
  for (let second = 0; second < 20; second++) {
    for (let n = 0; n < 80; n++) {
      publish();
      await stage.clock.pass(1000 / 80);
    }
    stage.socket().say({ type: "alive" });
  }
  const waiting = done.filter(({ state }) => state === "pending").length;
  assert.ok(waiting < 5, `${waiting} of ${done.length} wait`);
  assert.deepEqual([told.taken.length + waiting >= done.length, told.sentAway], [true, false]);
});

test("what is refused in the same moment counts once", async () => {
  const stage = await staged(connect);
  await stage.open();
  const begin = stage.clock.now();
  const sentAt = [];
  for (let n = 0; n < 3; n++) stage.tocsin.channel("room:42").publish(n);
  const refs = publishes(stage.socket()).map(({ ref }) => ref);
  stage.socket().send = () => sentAt.push(stage.clock.now() - begin);
  for (const ref of refs) stage.socket().say({ type: "error", code: "rate_limited", message: "slow", retry_after: 0.01, ref });
  await stage.clock.pass(100);
  assert.deepEqual(sentAt, [10, 20, 30]);
});

test("ephemeral messages have no key, are never repeated, and need a connection", async () => {
  const stage = await staged(connect);
  const room = stage.tocsin.channel("room:42");
  await assert.rejects(room.publish("typing", { ephemeral: true }), { code: "unavailable" });
  await stage.open();
  const publishing = outcome(room.publish("typing", { ephemeral: true }));
  assert.deepEqual(stage.socket().last("publish").key, undefined);
  stage.socket().answer("publish", { type: "published", id: null, duplicate: false });
  await settled();
  assert.deepEqual(publishing.value, { id: null, duplicate: false });
  const lost = outcome(room.publish("typing", { ephemeral: true }));
  const limited = outcome(room.publish("typing", { ephemeral: true }));
  stage.socket().answer("publish", { type: "error", code: "rate_limited", message: "no", retry_after: 1 });
  stage.socket().end(1006);
  await stage.clock.pass(250);
  await stage.open();
  assert.deepEqual([lost.error.sent, limited.error.code, publishes(stage.socket()).length], [true, "rate_limited", 0]);
});

test("what is too large, or no JSON, is not sent: it would cost the connection", async () => {
  const stage = await staged(connect);
  await stage.open({ max_data: 10 });
  const room = stage.tocsin.channel("room:42");
  await assert.rejects(room.publish("123456789"), { code: "too_large" });
  await assert.rejects(room.publish("\u00e9\u00e9\u00e9\u00e9\u00e9"), { code: "too_large" });
  await assert.rejects(room.publish(new Uint8Array(9)), { code: "too_large" });
  await assert.rejects(room.publish(undefined), { code: "bad_request" });
  await assert.rejects(room.publish("\ud83d"), { code: "bad_request" });
  await assert.rejects(room.publish(1n), TypeError);
  assert.equal(stage.socket().said.length, 0);
  room.publish("12345678");
  room.publish("\\ud83d");
  room.publish(new Uint8Array([0, 1, 255]).buffer);
  assert.deepEqual(publishes(stage.socket()).map(({ data, base64 }) => data ?? base64), ["12345678", "\\ud83d", "AAH/"]);
});

test("every message has a key of its own", async () => {
  const stage = await staged(connect);
  await stage.open();
  for (let n = 0; n < 50; n++) stage.tocsin.channel("room:42").publish(n);
  assert.equal(new Set(publishes(stage.socket()).map(({ key }) => key)).size, 50);
});
