/* `tocsin.v1` as text: one JSON object a frame. A message's data is written once, and every repetition of it has the
   same bytes: the service takes another body under the same key for a conflict. */

import { TocsinError } from "./errors.js";

export const PROTOCOL = "tocsin.v1";
export const BEARER = "tocsin.bearer.";

const HALF_PAIR = /(^|[^\\])(\\\\)*\\ud[89a-f]/; // so JSON.stringify writes half of a surrogate pair, and nothing else

/* The frame of a command; `body` is a field of it that is JSON already. */
export function encode(command, body) {
  const head = JSON.stringify(command);
  const text = body ? `${head.slice(0, -1)},${body}}` : head;
  // The service cannot read it, so it could not even say whom it answers.
  if (HALF_PAIR.test(text)) throw new TocsinError("bad_request", "this text holds half of a surrogate pair");
  return text;
}

/* `data` as a field of `publish`, and its size as the service counts it. */
export function encodeData(data) {
  const bytes = data instanceof ArrayBuffer ? new Uint8Array(data) : data;
  if (bytes instanceof Uint8Array) {
    const letters = [];
    for (const byte of bytes) letters.push(String.fromCharCode(byte));
    const text = btoa(letters.join(""));
    return { body: `"base64":"${text}"`, size: text.length };
  }
  const text = JSON.stringify(data);
  if (text === undefined) throw new TocsinError("bad_request", "JSON cannot hold this");
  return { body: `"data":${text}`, size: new TextEncoder().encode(text).length };
}

/* A frame; null for what is none. */
export function decode(text) {
  try {
    const frame = JSON.parse(text);
    if (frame.type === "message") return decodeMessage(frame);
    if (frame.type === "history") frame.messages = frame.messages.map(decodeMessage);
    return frame;
  } catch {
    return null;
  }
}

/* A message as listeners get it: binary as Uint8Array in `data`, and without an id null. */
function decodeMessage({ base64, ...message }) {
  if (base64 !== undefined) message.data = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return { ...message, id: message.id ?? null };
}

/* Nobody else has this key: 128 random bits. */
export function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
