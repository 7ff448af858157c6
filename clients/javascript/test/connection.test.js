// How a connection is lost and made again, with time and chance in the test's hand.

import assert from "node:assert/strict";
import { test } from "node:test";

import { connect } from "../tocsin.js";
import { SUBSCRIBED, fakeSockets, joined, settled, staged } from "./stage.js";

const STOP = [1000, 1002, 1003, 1007, 1008, 1009, 4400, 4403, 4499];
const RETURN = [1001, 1005, 1006, 1011, 1012, 1013, 1014, 3000, 4300, 4508, 4510, 4529, 4999];

function refused(status, code, headers = {}) {
  return () => new Response(JSON.stringify({ error: { code, message: `it is ${code}` } }), { status, headers });
}

test("the address may be relative, of http, or whole", async () => {
  globalThis.location = { href: "https://app.test/rooms/42?x#y" };
  const given = ["/ws", "ws://a.test/ws", "http://a.test/ws", "https://a.test/ws", new URL("wss://a.test/ws?q=1")];
  const { WebSocket } = await staged(connect).then(({ sockets }) => ({ WebSocket: sockets[0].constructor }));
  const urls = given.map((url) => {
    const tocsin = connect(url, { WebSocket });
    tocsin.close();
    return tocsin.url;
  });
  delete globalThis.location;
  assert.deepEqual(urls, [
    "wss://app.test/ws",
    "ws://a.test/ws",
    "ws://a.test/ws",
    "wss://a.test/ws",
    "wss://a.test/ws?q=1",
  ]);
});

test("it is open when it is welcomed, and says who it is", async () => {
  const stage = await staged(connect);
  assert.deepEqual(stage.socket().protocols, ["tocsin.v1"]);
  assert.equal(stage.tocsin.state, "connecting");
  await stage.open({ user: "ada" });
  const { state, client, user, worker } = stage.tocsin;
  assert.deepEqual([state, client, user, worker], ["open", "c9Jx2kq0Zw3mRt8a", "ada", "web1/2"]);
});

for (const code of STOP) {
  test(`${code} stops`, async () => {
    const stage = await staged(connect);
    await stage.open();
    const { room } = await joined(stage);
    const publishing = assert.rejects(room.publish(1), { name: "PublishTimeout", sent: true });
    stage.socket().end(code, "so it is");
    await publishing;
    assert.equal(stage.tocsin.state, "stopped");
    assert.equal(stage.changes.at(-1).code, code);
    assert.equal(stage.changes.at(-1).error.code, "stopped");
    assert.equal(room.state, "unsubscribed");
    await stage.clock.pass(120_000);
    assert.equal(stage.sockets.length, 1);
    await assert.rejects(room.subscribe(), { code: "stopped" });
    await assert.rejects(room.publish(1), { code: "stopped" });
    stage.tocsin.connect();
    await settled();
    assert.equal(stage.sockets.length, 2);
  });
}

for (const code of RETURN) {
  test(`${code} returns`, async () => {
    const stage = await staged(connect);
    await stage.open();
    stage.socket().end(code);
    assert.equal(stage.tocsin.state, "waiting");
    const { delay } = stage.changes.at(-1);
    assert.equal(delay, { 4529: 30_000, 4510: 0 }[code] ?? 250);
    if (delay) await stage.clock.pass(delay - 1);
    assert.equal(stage.sockets.length, 1);
    await stage.clock.pass(delay ? 1 : 0);
    assert.equal(stage.sockets.length, 2);
  });
}

test("each wait is a random part of a limit that doubles up to 30 s", async () => {
  for (const random of [0, 0.25, 0.999]) {
    const stage = await staged(connect, { random: () => random });
    const delays = [];
    for (let n = 0; n < 9; n++) {
      stage.socket().end(1006);
      await settled();
      delays.push(stage.changes.at(-1).delay);
      await stage.clock.pass(delays.at(-1));
    }
    const limits = [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000];
    assert.deepEqual(delays, limits.map((limit) => limit * random));
  }
});

test("ten seconds of health make the next failure the first", async () => {
  const stage = await staged(connect);
  for (const [health, delay] of [[0, 250], [9999, 500], [10_000, 250], [0, 500], [3000, 1000]]) {
    await stage.open();
    await stage.clock.pass(health);
    stage.socket().end(1012);
    assert.equal(stage.changes.at(-1).delay, delay);
    await stage.clock.pass(delay);
  }
});

test("4510 comes back at once, without its old since, but not again and again", async () => {
  const stage = await staged(connect);
  await stage.open();
  const { told } = await joined(stage);
  stage.socket().end(4510, "gap: diverged; reload and connect without since");
  assert.deepEqual(told.gap.map(({ reason, position }) => [reason, position]), [["diverged", null]]);
  await stage.clock.pass(0);
  await stage.open();
  assert.equal(stage.socket().last("subscribe").since, undefined);
  stage.socket().end(4510);
  assert.equal(stage.changes.at(-1).delay > 0, true);
});

test("`reconnect` says when to come back", async () => {
  const stage = await staged(connect);
  await stage.open();
  stage.socket().say({ type: "reconnect", after: 2.4, reason: "draining" });
  assert.equal(stage.tocsin.state, "open");
  stage.socket().end(1012, "restart");
  assert.equal(stage.changes.at(-1).delay, 2400);
  await stage.clock.pass(2399);
  assert.equal(stage.sockets.length, 1);
  await stage.clock.pass(1);
  await stage.open();
  stage.socket().end(1006);
  assert.equal(stage.changes.at(-1).delay, 250); // that was once
});

test("a refused upgrade is asked about over HTTP, as this format and with this token", async () => {
  const stage = await staged(connect, { getToken: () => "a.b.c", fetched: refused(503, "draining") });
  assert.deepEqual(stage.socket().protocols, ["tocsin.v1", "tocsin.bearer.a.b.c"]);
  stage.socket().end(1006);
  await settled();
  assert.equal(stage.asked[0].address, "http://tocsin.test/api/v1/connect?protocols=tocsin.v1");
  assert.deepEqual(stage.asked[0].headers, { authorization: "Bearer a.b.c" });
  assert.deepEqual(stage.asked.map(({ credentials }) => credentials), ["same-origin"]);
  assert.equal(stage.changes.at(-1).reason, "it is draining");
});

for (const [status, code] of [[400, "bad_request"], [403, "forbidden"], [401, "unauthorized"]]) {
  test(`an upgrade refused with ${status} stops`, async () => {
    const stage = await staged(connect, { fetched: refused(status, code) });
    const subscribing = assert.rejects(stage.tocsin.channel("room:42").subscribe(), { name: "TocsinError", code });
    stage.socket().end(1006);
    await subscribing;
    assert.equal(stage.tocsin.state, "stopped");
    assert.equal(stage.changes.at(-1).error.code, code);
  });
}

for (const [status, code, after, delay] of [
  [429, "rate_limited", "7", 7250],
  [503, "unavailable", "2", 2250],
  [503, "draining", undefined, 250],
  [500, "internal", undefined, 250],
]) {
  test(`an upgrade refused with ${status} ${after ? "returns after Retry-After" : "returns"}`, async () => {
    const stage = await staged(connect, { fetched: refused(status, code, after && { "retry-after": after }) });
    stage.socket().end(1006);
    await settled();
    assert.equal(stage.changes.at(-1).delay, delay);
    assert.equal(stage.changes.at(-1).error.code, code);
  });
}

test("where nobody answers, or somebody else, it returns", async () => {
  const answers = [
    () => new Response(null, { status: 204 }),
    () => new Response("<html>", { status: 403 }),
    () => new Response('{"no": 1}', { status: 400 }),
    () => {
      throw new TypeError("failed to fetch");
    },
  ];
  for (const fetched of answers) {
    const stage = await staged(connect, { fetched });
    stage.socket().end(1006);
    await settled();
    assert.deepEqual([stage.tocsin.state, stage.changes.at(-1).delay], ["waiting", 250]);
  }
});

test("a connection that was open is not asked about", async () => {
  const stage = await staged(connect);
  await stage.open();
  stage.socket().end(1006);
  await settled();
  assert.equal(stage.asked.length, 0);
});

test("4401 and 401 are answered with one more token, then they stop", async () => {
  for (const refuse of [(stage) => stage.open().then(() => stage.socket().end(4401)), (stage) => stage.socket().end(1006)]) {
    let tokens = 0;
    const stage = await staged(connect, { getToken: () => `t${++tokens}`, fetched: refused(401, "unauthorized") });
    await refuse(stage);
    await settled();
    assert.deepEqual(stage.socket().protocols, ["tocsin.v1", "tocsin.bearer.t2"]);
    await refuse(stage);
    await settled();
    assert.deepEqual([stage.tocsin.state, stage.sockets.length, tokens], ["stopped", 2, 2]);
    assert.equal(stage.changes.at(-1).error.code, "unauthorized");
  }
});

test("after some health another token may be refused", async () => {
  const stage = await staged(connect, { getToken: () => "t" });
  for (let n = 1; n < 4; n++) {
    await stage.open();
    await stage.clock.pass(10_000);
    stage.socket().end(4401);
    await settled();
    assert.equal(stage.sockets.length, n + 1);
  }
});

test("a token is shown again before it ends, and until it is taken", async () => {
  let tokens = 0;
  const getToken = async () => {
    if (++tokens === 3) throw new Error("the login server is away");
    return `t${tokens}`;
  };
  const stage = await staged(connect, { getToken });
  const now = () => stage.clock.now() / 1000;
  await stage.open({ expires_at: now() + 3600 });
  await stage.live(3539_000);
  assert.equal(stage.socket().last("authenticate"), undefined);
  await stage.clock.pass(1000);
  assert.equal(stage.socket().last("authenticate").token, "t2");
  stage.socket().answer("authenticate", { type: "authenticated", user: "ada", expires_at: now() + 100 });
  await stage.live(80_000); // the third cannot be had, the fourth can
  await stage.clock.pass(1300);
  assert.equal(stage.socket().last("authenticate").token, "t4");
  stage.socket().answer("authenticate", { type: "error", code: "unauthorized", message: "no" });
  await stage.clock.pass(3000);
  assert.equal(stage.socket().last("authenticate").token, "t5");
  assert.equal(stage.sockets.length, 1);
  stage.socket().answer("authenticate", { type: "error", code: "forbidden", message: "of somebody else" });
  await settled();
  assert.deepEqual(stage.socket().protocols, ["tocsin.v1", "tocsin.bearer.t6"]);
});

test("a token of years is no timer that overflows", async () => {
  const stage = await staged(connect, { getToken: () => "t" });
  const waits = [];
  const { setTimeout } = stage.clock;
  stage.clock.setTimeout = (callback, ms) => {
    waits.push(ms);
    return setTimeout(callback, ms);
  };
  await stage.open({ expires_at: stage.clock.now() / 1000 + 1e9 });
  assert.equal(Math.max(...waits), 2 ** 31 - 1);
});

test("a token that cannot be had is asked for again", async () => {
  let tries = 0;
  const getToken = () => {
    if (++tries < 3) throw new Error("the login server is away");
    return "t";
  };
  const stage = await staged(connect, { getToken });
  assert.equal(stage.changes.at(-1).error.message, "the login server is away");
  await stage.clock.pass(250 + 500);
  assert.deepEqual([tries, stage.sockets.length], [3, 1]);
});

test("a clock that is ahead makes no storm of tokens", async () => {
  for (const [ahead, most] of [[-1, 0], [0, 0], [3, 20], [10, 20]]) { // seconds by which tokens seem to be good
    let tokens = 0;
    const stage = await staged(connect, { getToken: () => `t${++tokens}` });
    const expires = () => ({ expires_at: stage.clock.now() / 1000 + ahead });
    await stage.open(expires());
    let shown;
    for (let second = 0; second < 600; second++) {
      await stage.live(1000);
      const last = stage.socket().last("authenticate");
      if (last !== shown) stage.socket().answer("authenticate", { type: "authenticated", user: "ada", ...expires() });
      shown = last;
    }
    assert.ok(tokens - 1 <= most && (most === 0 || tokens > 15), `${tokens} tokens in ten minutes`);
    stage.socket().end(4401);
    await settled();
    assert.equal(stage.sockets.length, 2); // then it is told
  }
});

test("a token that is never given is given up, and one that comes later is not used", async () => {
  const given = [];
  const stage = await staged(connect, { getToken: () => new Promise((give) => given.push(give)) });
  await stage.clock.pass(14_999);
  assert.equal(stage.tocsin.state, "connecting");
  await stage.clock.pass(1);
  assert.deepEqual([stage.tocsin.state, stage.changes.at(-1).error.code], ["waiting", "timeout"]);
  given[0]("late");
  await stage.clock.pass(250);
  assert.deepEqual([given.length, stage.sockets.length, stage.asked.length], [2, 0, 0]);
  given[1]("t");
  await settled();
  assert.deepEqual(stage.socket().protocols, ["tocsin.v1", "tocsin.bearer.t"]);
  assert.equal(stage.clock.pending, 1); // of opening
  stage.tocsin.connect();
  stage.tocsin.close();
  assert.equal(stage.clock.pending, 0);
});

for (const [name, fail] of [
  ["throws", () => { throw new Error("the login server is away"); }],
  ["is never given", () => new Promise(() => {})],
]) {
  test(`a new token that ${name} is asked for again`, async () => {
    let tokens = 0;
    const stage = await staged(connect, { getToken: () => (++tokens === 2 ? fail() : `t${tokens}`) });
    await stage.open({ expires_at: stage.clock.now() / 1000 + 100 });
    await stage.live(80_000);
    assert.equal(tokens, 2);
    await stage.live(15_000 + 1250);
    assert.equal(stage.socket().last("authenticate").token, "t3");
  });
}

test("a socket that says nothing for two intervals is dead", async () => {
  const stage = await staged(connect);
  await stage.open({ ping: 10 });
  for (let n = 0; n < 5; n++) {
    await stage.clock.pass(19_999);
    stage.socket().say({ type: "alive" });
  }
  assert.equal(stage.tocsin.state, "open");
  await stage.clock.pass(19_999);
  assert.equal(stage.tocsin.state, "open");
  await stage.clock.pass(1);
  assert.equal(stage.tocsin.state, "waiting");
  assert.equal(stage.socket().closed, true);
  stage.socket().say({ type: "alive" }); // too late
  stage.socket().end(4403);
  assert.equal(stage.tocsin.state, "waiting");
});

test("after a sleep a connection is asked before it is given up", async () => {
  const stage = await staged(connect);
  await stage.open();
  stage.clock.sleep(3_600_000);
  await stage.clock.pass(0);
  stage.socket().answer("ping", { type: "pong" });
  await stage.clock.pass(40_000);
  assert.equal(stage.tocsin.state, "open");
  stage.clock.sleep(3_600_000);
  await stage.clock.pass(4999);
  assert.equal(stage.tocsin.state, "open");
  await stage.clock.pass(1);
  assert.equal(stage.tocsin.state, "waiting");
});

test("an attempt without an answer is given up", async () => {
  const stage = await staged(connect);
  await stage.clock.pass(15_000);
  assert.equal(stage.tocsin.state, "waiting");
  await stage.clock.pass(250);
  assert.equal(stage.sockets.length, 2);
});

test("what is no frame ends the connection, which resumes", async () => {
  const stage = await staged(connect);
  await stage.open();
  stage.socket().say("<html>");
  assert.equal(stage.tocsin.state, "waiting");
});

test("what is not known is ignored", async () => {
  const stage = await staged(connect);
  await stage.open();
  for (const frame of [{ type: "news" }, { type: "message", channel: "elsewhere" }, { type: "pong", ref: 99 }, {}]) {
    stage.socket().say(frame);
  }
  assert.equal(stage.tocsin.state, "open");
});

test("`connect` ends a wait, and takes the place of a connection that is there", async () => {
  const stage = await staged(connect);
  await stage.open();
  stage.tocsin.connect();
  await settled();
  assert.deepEqual([stage.sockets.length, stage.sockets[0].closed, stage.tocsin.state], [2, true, "connecting"]);
  stage.socket().end(1006);
  await settled();
  assert.equal(stage.tocsin.state, "waiting");
  stage.tocsin.connect();
  await settled();
  assert.equal(stage.sockets.length, 3);
});

test("`close` stops for good, also while something is under way", async () => {
  let give;
  const stage = await staged(connect, { getToken: () => new Promise((resolve) => (give = resolve)) });
  const publishing = assert.rejects(stage.tocsin.channel("a").publish(1), { code: "closed" });
  const subscribing = assert.rejects(stage.tocsin.channel("a").subscribe(), { code: "closed" });
  stage.tocsin.close();
  await Promise.all([publishing, subscribing]);
  give("t");
  await stage.clock.pass(120_000);
  assert.deepEqual([stage.sockets.length, stage.tocsin.state], [0, "stopped"]);
  assert.equal(stage.changes.at(-1).error, undefined);
});

/* What a listener may be told while the connection changes hands. */
const LOST = [1006, 1012, 4403, 4510, 4529];
for (const [name, codes, closeIn] of [
  [
    "a channel's `subscribing`",
    [...LOST, 4401],
    (stage, room) => room.on("state", ({ state }) => state === "subscribing" && stage.tocsin.close()),
  ],
  ["a gap", [4510], (stage, room) => room.on("gap", () => stage.tocsin.close())],
  ["`connecting`", [...LOST, 4401], (stage) => stage.tocsin.on("state", ({ state }) => state === "connecting" && stage.tocsin.close())],
  ["`waiting`", LOST, (stage) => stage.tocsin.on("state", ({ state }) => state === "waiting" && stage.tocsin.close())],
]) {
  test(`\`close\` in a listener for ${name} stops for good`, async () => {
    for (const code of codes) {
      const stage = await staged(connect, { getToken: () => "t" });
      await stage.open();
      const { room } = await joined(stage);
      closeIn(stage, room);
      stage.socket().end(code, "gap: diverged; reload");
      await stage.clock.pass(120_000);
      assert.deepEqual([stage.tocsin.state, stage.changes.at(-1).state, room.state], ["stopped", "stopped", "unsubscribed"]);
      assert.deepEqual([stage.sockets.length, stage.clock.pending], [1, 0], `after ${code}`);
    }
  });
}

test("`close` while the channels are opened stops for good", async () => {
  const stage = await staged(connect);
  const room = stage.tocsin.channel("room:42", { presence: { info: { n: 1n } } }); // which no JSON holds
  room.on("state", ({ state }) => state === "unsubscribed" && stage.tocsin.close());
  room.subscribe();
  const publishing = assert.rejects(room.publish(1), { code: "closed" });
  await stage.open();
  await publishing;
  assert.deepEqual([stage.tocsin.state, stage.changes.at(-1).state, stage.clock.pending], ["stopped", "stopped", 0]);
});

test("`connect` in a listener is not undone by the stop that it was told of", async () => {
  for (const told of ["subscribing", "unsubscribed"]) {
    const stage = await staged(connect);
    await stage.open();
    const { room } = await joined(stage);
    const off = room.on("state", ({ state }) => state === told && (off(), stage.tocsin.connect()));
    stage.socket().end(4403);
    await settled();
    assert.deepEqual([stage.tocsin.state, stage.sockets.length], ["connecting", 2]);
    await stage.open();
    assert.equal(stage.tocsin.state, "open");
  }
});

test("a page that is put away may be closed for good by a listener", () =>
  onPage(async ({ tell }) => {
    const stage = await staged(connect);
    await stage.open();
    const { room } = await joined(stage);
    room.on("state", ({ state }) => state === "subscribing" && stage.tocsin.close());
    tell("pagehide", { persisted: true });
    assert.deepEqual([stage.tocsin.state, stage.changes.at(-1).state], ["stopped", "stopped"]);
  }));

test("an answer about a refused upgrade that comes after `close` changes nothing", async () => {
  const stage = await staged(connect, { fetched: refused(503, "draining") });
  stage.socket().end(1006);
  stage.tocsin.close();
  await stage.clock.pass(120_000);
  assert.deepEqual([stage.sockets.length, stage.tocsin.state], [1, "stopped"]);
});

test("`close` leaves nothing behind: no timer, no request", async () => {
  let request;
  const fetch = (address, given) => {
    request = given;
    return new Promise(() => {});
  };
  const stage = await staged(connect, { fetch });
  stage.socket().end(1006);
  await settled();
  assert.equal(request.signal.aborted, false);
  stage.tocsin.close();
  assert.deepEqual([request.signal.aborted, stage.clock.pending], [true, 0]);
  stage.tocsin.connect();
  await settled();
  stage.tocsin.channel("room:42").subscribe();
  await stage.open();
  stage.socket().answer("subscribe", { type: "error", code: "unavailable", message: "later", retry_after: 1 });
  stage.tocsin.close();
  assert.equal(stage.clock.pending, 0);
});

test("a question about an upgrade is given up after five seconds", async () => {
  const fetch = async (address, { signal }) => {
    if (!signal.aborted) await new Promise((resolve) => signal.addEventListener("abort", resolve));
    throw signal.reason;
  };
  const stage = await staged(connect, { fetch });
  stage.socket().end(1006);
  await stage.clock.pass(4999);
  assert.equal(stage.tocsin.state, "connecting");
  await stage.clock.pass(1);
  assert.equal(stage.tocsin.state, "waiting");
});

test("the question about an upgrade has its query, and its cookie where the browser lets it", async () => {
  const asked = [];
  const fetch = async (address, { credentials }) => {
    asked.push([String(address), credentials]);
    if (credentials === "include") throw new TypeError("kept by the browser (CORS)");
    return refused(503, "draining", { "retry-after": "2" })();
  };
    const { sockets, WebSocket } = fakeSockets();
  const tocsin = connect("wss://a.test/deep/ws?echo=false&tenant=7", { WebSocket, fetch });
  await settled();
  sockets[0].end(1006);
  await settled();
  const address = "https://a.test/deep/api/v1/connect?echo=false&tenant=7&protocols=tocsin.v1";
  assert.deepEqual(asked, [[address, "include"], [address, "same-origin"]]);
  assert.equal(tocsin.state, "waiting");
  tocsin.close();
});

test("without a WebSocket it says so", () => {
  assert.throws(() => connect("ws://a.test/ws", { WebSocket: null }), /there is no WebSocket here/);
  const Strict = class {
    constructor() {
      throw new SyntaxError("no such protocol");
    }
  };
  const tocsin = connect("ws://a.test/ws", { WebSocket: Strict, getToken: () => "not a token" });
  return settled().then(() => assert.equal(tocsin.state, "stopped"));
});

/* A page for those who look for one. */
async function onPage(play) {
  const page = new EventTarget();
  const document = Object.assign(new EventTarget(), { visibilityState: "visible" });
  Object.assign(globalThis, { document, addEventListener: page.addEventListener.bind(page) });
  try {
    await play({
      tell: (name, more) => page.dispatchEvent(Object.assign(new Event(name), more)),
      show(state) {
        document.visibilityState = state;
        document.dispatchEvent(new Event("visibilitychange"));
      },
      thaw: () => document.dispatchEvent(new Event("resume")),
    });
  } finally {
    delete globalThis.document;
    delete globalThis.addEventListener;
  }
}

test("a page that is online or seen again does not wait", () =>
  onPage(async ({ tell, show, thaw }) => {
    for (const wake of [() => tell("online"), () => show("visible"), thaw]) {
      const stage = await staged(connect);
      await stage.open();
      stage.socket().end(1006);
      show("hidden");
      tell("offline");
      await stage.clock.pass(100);
      assert.equal(stage.sockets.length, 1);
      wake();
      await stage.clock.pass(0);
      assert.equal(stage.sockets.length, 2);
      stage.tocsin.close();
    }
  }));

test("a page that is shown for the first time has nothing to come back to", () =>
  onPage(async ({ tell }) => {
    const stage = await staged(connect);
    await stage.open();
    tell("pageshow", { persisted: false });
    assert.equal(stage.socket().last("ping"), undefined);
    stage.tocsin.close();
  }));

test("what happens to the page shortens no wait that the service has asked for", () =>
  onPage(async ({ tell }) => {
    const stage = await staged(connect);
    await stage.open();
    stage.socket().end(4529);
    tell("online");
    await stage.clock.pass(29_999);
    assert.equal(stage.sockets.length, 1);
    await stage.clock.pass(1);
    assert.equal(stage.sockets.length, 2);
    stage.tocsin.close();
  }));

test("a page that is offline or awake again asks whether its connection lives", () =>
  onPage(async ({ tell, show, thaw }) => {
    for (const doubt of [() => tell("offline"), () => tell("online"), () => show("visible"), thaw]) {
      const stage = await staged(connect);
      await stage.open();
      doubt();
      stage.socket().answer("ping", { type: "pong" });
      await stage.clock.pass(5000);
      assert.equal(stage.tocsin.state, "open");
      doubt();
      await stage.clock.pass(5000);
      assert.equal(stage.tocsin.state, "waiting");
      stage.tocsin.close();
    }
  }));

test("a page that is put away gives its connection back, and resumes when it returns", () =>
  onPage(async ({ tell }) => {
    const stage = await staged(connect);
    await stage.open();
    await joined(stage);
    tell("pagehide", { persisted: true });
    assert.deepEqual([stage.tocsin.state, stage.socket().closed], ["waiting", true]);
    await stage.clock.pass(3_600_000);
    assert.equal(stage.sockets.length, 1);
    tell("pageshow", { persisted: true });
    await stage.clock.pass(0);
    await stage.open();
    assert.equal(stage.socket().last("subscribe").since, SUBSCRIBED.position);
    stage.tocsin.close();
    tell("pageshow", { persisted: true });
    tell("online");
    await settled();
    assert.deepEqual([stage.sockets.length, stage.tocsin.state], [2, "stopped"]);
  }));
