// Against a real service: TOCSIN_URL takes anybody, TOCSIN_GUARDED_URL only tokens signed with TOCSIN_SECRET.

import assert from "node:assert/strict";
import { createHmac, randomBytes } from "node:crypto";
import { describe, test } from "node:test";

import WebSocket from "ws";

import { connect } from "../tocsin.js";
import { record } from "./stage.js"; // also brings `crypto` to Node 18

const { TOCSIN_URL, TOCSIN_GUARDED_URL, TOCSIN_SECRET } = process.env;
const skip = !TOCSIN_URL && "no service is named: tests/clients/test_javascript.py does";
const options = { skip, timeout: 30_000 };
const hurried = { WebSocket, random: () => 0.05 };

/* A client that is closed when its test ends. */
function connected(context, given = {}, url = TOCSIN_URL) {
  const tocsin = connect(`${url}/ws`, { ...hurried, ...given });
  context.after(() => tocsin.close());
  return tocsin;
}

const channelName = () => `js:${randomBytes(6).toString("hex")}`;

async function until(condition, what = "the condition") {
  for (const end = Date.now() + 15_000; Date.now() < end; ) {
    if (condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  assert.fail(`${what} did not come true`);
}

/* A socket of which every one is kept, to be cut as a network does it. */
function cuttable() {
  const sockets = new Set();
  class Cuttable extends WebSocket {
    constructor(...given) {
      super(...given);
      sockets.add(this);
      this.once("close", () => sockets.delete(this));
    }
  }
  return { WebSocket: Cuttable, cut: () => [...sockets].forEach((socket) => socket.terminate()) };
}

/* The states of a client from its first `open` on: before it a service may say that it is not ready yet. */
function statesSinceOpen(context, tocsin) {
  const states = [];
  tocsin.on("state", ({ state, reason }) => {
    if (states.length || state === "open") states.push(state);
    else context.diagnostic(`${state}: ${reason}`);
  });
  return states;
}

/* A token (RFC 7519) of `seconds`. */
function token({ seconds = 60, ...claims }) {
  const now = Date.now() / 1000;
  const may = { subscribe: ["*"], publish: ["*"], history: ["*"], presence: ["*"] };
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const body = `${part({ alg: "HS256", typ: "JWT" })}.${part({ iat: now, exp: now + seconds, tocsin: may, ...claims })}`;
  return `${body}.${createHmac("sha256", TOCSIN_SECRET).update(body).digest("base64url")}`;
}

describe("on a real service", { concurrency: true }, () => {
  test("what is published comes to every subscriber, with its id, and bytes as bytes", options, async (context) => {
    const [ada, bob] = [connected(context), connected(context)];
    const name = channelName();
    const rooms = [ada.channel(name), bob.channel(name)];
    const told = rooms.map(record);
    await Promise.all(rooms.map((room) => room.subscribe()));
    const acks = [await rooms[0].publish({ text: "h\u00e9 \u{1f514}" }), await rooms[1].publish(new Uint8Array([0, 255]))];
    await until(() => told.every(({ message }) => message.length === 2));
    for (const { message } of told) {
      assert.deepEqual(message.map(({ data }) => data), [{ text: "h\u00e9 \u{1f514}" }, new Uint8Array([0, 255])]);
      assert.deepEqual(message.map(({ id }) => id), acks.map(({ id }) => id));
      assert.deepEqual(message.map(({ from }) => from), [ada.client, bob.client]);
    }
  });

  test("a client that was away has what it missed, in order, once", options, async (context) => {
    const network = cuttable();
    const ada = connected(context, network);
    const name = channelName();
    const room = ada.channel(name);
    const told = record(room);
    await room.subscribe();
    const bob = connected(context).channel(name);
    const said = [];
    for (let n = 0; n < 60; n++) {
      if (n % 20 === 5) network.cut();
      await bob.publish(n);
      said.push(n);
    }
    await until(() => told.message.length >= 60, "sixty messages");
    assert.deepEqual(told.message.map(({ data }) => data), said);
    assert.deepEqual(told.gap, []);
    assert.equal(told.state.filter(({ recovered }) => recovered).length >= 1, true);
  });

  test("through a hundred cuts each message is published exactly once", options, async (context) => {
    const network = cuttable();
    const ada = connected(context, { ...network, random: () => 0.0005 });
    const name = channelName();
    const watcher = connected(context).channel(name);
    const told = record(watcher);
    await watcher.subscribe();
    const room = ada.channel(name);
    const publishing = [];
    for (let cuts = 0; cuts < 100; cuts++) {
      await until(() => ada.state === "open", "a connection");
      for (let n = 0; n < 5; n++) publishing.push(room.publish(publishing.length));
      if (cuts % 2) await new Promise((resolve) => setTimeout(resolve, 5 * Math.random()));
      network.cut(); // when they are on their way, or their answers
    }
    const acks = await Promise.all(publishing);
    await until(() => told.message.length >= acks.length, "all messages");
    const repeated = acks.filter(({ duplicate }) => duplicate).length;
    context.diagnostic(`${acks.length} messages, ${repeated} of them asked for again after they were taken`);
    assert.deepEqual(told.message.map(({ data }) => data).sort((a, b) => a - b), acks.map((_, n) => n));
    assert.deepEqual(new Set(told.message.map(({ id }) => id)), new Set(acks.map(({ id }) => id)));
    assert.ok(repeated > 0);
  });

  test("a position that is not of this history is a gap, and an id that is none is refused", options, async (context) => {
    const ada = connected(context);
    const room = ada.channel(channelName());
    const told = record(room);
    const { recovered, reason } = await room.subscribe({ since: "000000000000-7" });
    assert.deepEqual([recovered, reason, told.gap.length], [false, "diverged", 1]);
    await assert.rejects(room.history({ since: "000000000000-7" }), { code: "gone", position: room.position });
    await assert.rejects(ada.channel("no channel").subscribe(), { code: "bad_channel" });
    await assert.rejects(ada.channel(channelName()).subscribe({ since: "nonsense" }), { code: "bad_position" });
    await assert.rejects(room.publish(1, { key: "short" }), { code: "bad_request" });
  });

  test("the same key publishes once, and history reads it back", options, async (context) => {
    const room = connected(context).channel(channelName());
    const key = "order-7c0e4b1a9d52";
    const first = await room.publish({ total: 3 }, { key });
    assert.deepEqual(await room.publish({ total: 3 }, { key }), { ...first, duplicate: true });
    await assert.rejects(room.publish({ total: 4 }, { key }), { code: "conflict" });
    const { messages, position, complete } = await room.history();
    assert.deepEqual([messages.map(({ data }) => data), position, complete], [[{ total: 3 }], first.id, true]);
    assert.deepEqual(await room.publish("typing", { ephemeral: true }), { id: null, duplicate: false });
  });

  test("hundreds of messages at once go out under the service's own rate", options, async (context) => {
    // The guarded service has the default rates: 100 a second, 200 at once.
    const ada = connected(context, { getToken: () => token({ sub: "ada" }) }, TOCSIN_GUARDED_URL);
    const states = statesSinceOpen(context, ada);
    const room = ada.channel(channelName());
    const answers = await Promise.all(Array.from({ length: 400 }, (_, n) => room.publish(n)));
    assert.equal(new Set(answers.map(({ id }) => id)).size, 400);
    assert.deepEqual(states, ["open"]);
  });

  test("who is here is told to all", options, async (context) => {
    const name = channelName();
    const [ada, bob] = ["ada", "bob"].map((who) => connected(context).channel(name, { presence: { info: { who } } }));
    await ada.subscribe();
    await bob.subscribe();
    const listed = (room) => room.members.map(({ info }) => info.who).sort();
    await until(() => listed(ada).length === 2, "two members");
    assert.deepEqual([listed(ada), listed(bob), ada.count], [["ada", "bob"], ["ada", "bob"], 2]);
    assert.equal((await ada.presence({ limit: 1 })).members.length, 1);
    bob.unsubscribe();
    await until(() => listed(ada).length === 1, "one member");
  });

  test("a loop takes what comes", options, async (context) => {
    const ada = connected(context);
    const room = ada.channel(channelName());
    const taken = [];
    const looping = (async () => {
      for await (const { data } of room) if (taken.push(data) === 3) break;
    })();
    await room.subscribe();
    for (const word of ["one", "two", "three", "four"]) await room.publish(word);
    await looping;
    assert.deepEqual(taken, ["one", "two", "three"]);
  });

  test("without a token where one is needed it stops, and says what the service has said", options, async (context) => {
    const ada = connected(context, {}, TOCSIN_GUARDED_URL);
    await assert.rejects(ada.channel(channelName()).subscribe(), { code: "unauthorized", message: /credentials are needed/ });
    assert.equal(ada.state, "stopped");
  });

  test("a refused token is replaced once", options, async (context) => {
    const tokens = [token({ sub: "ada", seconds: -60 }), token({ sub: "ada" })];
    const ada = connected(context, { getToken: () => (tokens.length > 1 ? tokens.shift() : tokens[0]) }, TOCSIN_GUARDED_URL);
    await until(() => ada.state === "open", "open");
    assert.deepEqual([ada.user, tokens.length], ["ada", 1]);
  });

  test("a token is renewed on the connection that is there", options, async (context) => {
    let shown = 0;
    const ada = connected(context, { getToken: () => token({ sub: "ada", seconds: ++shown === 1 ? 2 : 60 }) }, TOCSIN_GUARDED_URL);
    const states = statesSinceOpen(context, ada);
    await until(() => shown === 2, "a second token");
    const room = ada.channel(channelName());
    await room.subscribe();
    assert.deepEqual(states, ["open"]);
  });

  test("a channel that a token does not allow is refused, and the others are not", options, async (context) => {
    const may = { subscribe: ["js:*"], publish: ["js:*"] };
    const ada = connected(context, { getToken: () => token({ sub: "ada", tocsin: may }) }, TOCSIN_GUARDED_URL);
    await assert.rejects(ada.channel("secret").subscribe(), { code: "forbidden" });
    await assert.rejects(ada.channel("secret").publish(1), { code: "forbidden" });
    const room = ada.channel(channelName());
    await room.subscribe();
    await assert.rejects(room.history(), { code: "forbidden" });
    assert.equal(ada.state, "open");
  });
});
