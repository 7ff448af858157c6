/* Questions to this service over HTTP, and its address for others. */

const PATIENCE = 5000; // ms

/* `{ status, text, sentence }`: the body, and where it is a refusal the sentence in it. Throws when there is no answer. */
export async function ask(path, token) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch(path, { headers, cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
  const text = await answer.text();
  return { status: answer.status, text, sentence: answer.ok ? "" : sentenceOf(text, answer.status) };
}

function sentenceOf(text, status) {
  try {
    return JSON.parse(text).error.message;
  } catch {
    return `the service answered ${status}`;
  }
}

/* `:` and `@` are common in channel names and need no escape in a query or a fragment (RFC 3986 section 3.4). */
export function escaped(channel) {
  return encodeURIComponent(channel).replaceAll("%3A", ":").replaceAll("%40", "@");
}

export function socketAddress() {
  return `${location.protocol === "https:" ? "wss:" : "ws:"}//${location.host}/ws`;
}
