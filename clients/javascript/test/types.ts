// Checked by tsc alone: what the types allow, and what they must not.

import WS from "ws";
import { type Connection, OutboxFull, PublishTimeout, TocsinError, connect } from "tocsin";

interface Line {
  text: string;
}

const same = connect("/ws");
const tocsin: Connection = connect(new URL("wss://tocsin.example/ws"), {
  getToken: async () => (await fetch("/token")).text(),
  WebSocket: globalThis.WebSocket,
  outbox: 10,
  clock: { now: Date.now, setTimeout, clearTimeout },
  random: () => 0.5,
});
connect("/ws", { getToken: () => null, fetch });
// @ts-expect-error a token is text
connect("/ws", { getToken: () => 5 });
// @ts-expect-error there is no such option
connect("/ws", { retries: 5 });
connect("/ws", { WebSocket: class {} as unknown as typeof WS });

const off: () => void = tocsin.on("state", ({ state, delay, error }) => {
  if (state === "waiting") console.log(delay?.toFixed(), error?.message);
  // @ts-expect-error no connection is ever so
  if (state === "closed") off();
});
// @ts-expect-error a connection has only its state to tell
tocsin.on("message", () => {});
// @ts-expect-error the client alone changes it
tocsin.state = "open";

const room = tocsin.channel<Line>("room:42", { presence: { info: { name: "Ada" } } });
tocsin.channel("room:43", { presence: "watch" });
// @ts-expect-error one watches or is there
tocsin.channel("room:43", { presence: "join" });

room.on("message", ({ data, id, from, user, at }) => {
  if (data instanceof Uint8Array) return data.byteLength;
  // @ts-expect-error it is a line then
  data.byteLength;
  const all: [string, string | null, string | null, string | null, number] = [data.text, id, from, user, at];
  return all;
});
room.on("gap", ({ reason, position }) => [reason === "expired", position?.length]);
room.on("presence", ({ joined, left, count }) => [...joined, ...left].length === count);
room.on("state", ({ state, recovered, error }) => [state === "subscribed", recovered, error]);
// @ts-expect-error there is no such event
room.on("messages", () => {});

const { position, recovered, replayed } = await room.subscribe({ since: localStorage["last"] ?? null, history: 20 });
const told: [string, boolean | null, number] = [position, recovered, replayed];
// @ts-expect-error an id is text
room.subscribe({ since: 5 });

const { id, duplicate } = await room.publish({ text: "hi" }, { key: "order-7c0e4b1a9d52", timeout: 5000 });
const answered: [string | null, boolean] = [id, duplicate];
await room.publish(new Uint8Array([1]), { ephemeral: true });
// @ts-expect-error not what is published here
room.publish({ words: "hi" });

const { messages, complete } = await room.history({ since: position, limit: 5 });
const first: Line | Uint8Array | undefined = messages[0]?.data;
// @ts-expect-error anybody may publish bytes
messages[0]?.data.text;
const { members, cursor } = await room.presence({ cursor: null });

for await (const event of room) {
  if (event.type === "gap") console.log(event.reason);
  else if (event.type === "presence") console.log(event.joined[0]?.member);
  else console.log("text" in event.data ? event.data.text : event.data.byteLength);
}

try {
  await room.publish({ text: "hi" });
} catch (error) {
  if (error instanceof PublishTimeout) console.log(error.sent, error.code);
  else if (error instanceof OutboxFull || error instanceof TocsinError) console.log(error.code, error.retryAfter);
}
room.unsubscribe();
tocsin.close();
export { answered, complete, cursor, first, members, same, told };
