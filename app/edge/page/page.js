/* The page at "/": two plain WebSockets side by side, with nothing but what a browser has.
   What others sent reaches the document by textContent only. When to come back: docs/protocol.md, close codes. */

const KEEP = 500; // messages on the page, per pane
const BASE = 500; // ms; full jitter: a random part of BASE, doubling up to CAP
const CAP = 30_000; // ms
const HEALTHY = 10_000; // ms open after which the next failure counts as the first
const STOPS = /^(100[023789]|44\d\d)$/;

const WORDS = { connecting: "Connecting", open: "Open", waiting: "Closed", stopped: "Stopped" };
const REASONS = {
  1000: "The server has ended the connection",
  1001: "The server is going away",
  1002: "The server saw a protocol error",
  1003: "The server does not take this type of message",
  1006: "The connection was cut",
  1007: "The text was not valid UTF-8",
  1008: "This breaks a rule of the server",
  1009: "The message was too big for this server",
  1011: "The server had an internal error",
  1012: "The server is restarting",
  1013: "The server could not take the message for now",
  4400: "The server could not make sense of what was sent",
  4401: "The token has expired or was refused",
  4403: "Not allowed in this channel, or no longer",
  4508: "This browser was silent for too long",
  4510: "Some messages could not be delivered here",
  4529: "Too much was sent, too fast",
};

const $ = (selector, root = document) => root.querySelector(selector);
const bell = $(".bell");
const calm = matchMedia("(prefers-reduced-motion: reduce)");

function ring() {
  if (calm.matches || bell.getAnimations().length) return;
  const swing = [0, 14, -11, 7, -4, 0].map((angle) => ({ transform: `rotate(${angle}deg)` }));
  bell.animate(swing, { duration: 900, easing: "ease-out" });
}

/* `:` and `@` are common in channel names and need no escape in a query or a fragment (RFC 3986 section 3.4). */
function escaped(channel) {
  return encodeURIComponent(channel).replaceAll("%3A", ":").replaceAll("%40", "@");
}

function address(channel) {
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  return `${scheme}//${location.host}/ws?channel=${escaped(channel)}`;
}

function clockTime(date) {
  return date.toLocaleTimeString([], { hourCycle: "h23" });
}

function element(name, className, text) {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

function seconds(ms) {
  return ms < 10_000 ? (ms / 1000).toFixed(1) : Math.round(ms / 1000);
}

/* A browser cannot see why an upgrade was refused (only 1006), so the service answers the same over HTTP. */
async function askWhy(channel) {
  try {
    const path = `/api/v1/connect?channel=${escaped(channel)}`;
    const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(5000) });
    if (answer.ok) return { reason: "The connection was cut before it opened." };
    const body = await answer.json().catch(() => null);
    return {
      reason: `Refused: ${body?.error?.message ?? `HTTP ${answer.status}`}`,
      stop: answer.status < 500 && answer.status !== 429,
      after: Number(answer.headers.get("Retry-After")) * 1000 || 0,
    };
  } catch {
    return { reason: "The server cannot be reached." };
  }
}

class Pane {
  constructor(name) {
    this.root = $("#pane").content.cloneNode(true).firstElementChild;
    for (const part of ["word", "toggle", "reason", "countdown", "log", "empty", "older", "newest", "send"]) {
      this[part] = $(`.${part}`, this.root);
    }
    this.list = $("ol", this.root);
    this.text = $("textarea", this.root);
    this.root.setAttribute("aria-label", name);
    this.log.setAttribute("aria-label", `Messages of ${name.toLowerCase()}`);
    this.text.setAttribute("aria-label", `Message from ${name.toLowerCase()}`);
    $("h2", this.root).textContent = name;
    $(".panes").append(this.root);

    this.toggle.onclick = () => (this.socket ? this.drop() : this.open());
    this.newest.onclick = () => this.scrollDown();
    this.log.onscroll = () => this.atBottom() && (this.newest.hidden = true);
    this.send.onsubmit = (event) => this.submit(event);
    this.text.onkeydown = (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      this.submit(event);
    };
    addEventListener("online", () => this.state === "waiting" && this.open());
  }

  join(channel) {
    this.channel = channel;
    this.failures = 0;
    this.lostAt = null;
    this.queue = [];
    this.unseen = 0;
    this.list.replaceChildren();
    this.older.hidden = this.newest.hidden = true;
    this.reason.textContent = "";
    this.open();
  }

  open() {
    this.release();
    const socket = new WebSocket(address(this.channel));
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    this.sent = []; // what is on its way: it comes back in the order in which it was sent
    this.openedAt = null;
    this.show("connecting", this.reason.textContent); // why it was closed stays until the next answer
    // A socket that was replaced may still speak; only the present one is heard.
    socket.onopen = () => socket === this.socket && this.opened();
    socket.onmessage = ({ data }) => socket === this.socket && this.received(data);
    socket.onclose = ({ code, reason }) => socket === this.socket && this.closed(code, reason);
  }

  opened() {
    this.openedAt = performance.now();
    this.show("open", `In ${this.channel} since ${clockTime(new Date())}.`);
    if (this.lostAt !== null) {
      const away = seconds(this.openedAt - this.lostAt);
      this.note(`Back after ${away} s. Plain sockets have no positions: what was sent meanwhile is not shown.`);
      this.lostAt = null;
    }
  }

  received(data) {
    const item = { at: new Date(), data };
    if (this.sent.length && this.sent[0].text === data) item.trip = performance.now() - this.sent.shift().at;
    this.push(item);
    ring();
  }

  async closed(code, said) {
    const { channel, socket } = this;
    this.lose();
    if (this.openedAt === null && code === 1006) {
      const { reason, stop, after } = await askWhy(channel);
      if (socket === this.socket) this.rest(reason, stop ? null : this.backoff() + (after ?? 0));
      return;
    }
    const reason = `${REASONS[code] ?? "The connection was closed"} (${said ? `${code}, ${said}` : code}).`;
    this.rest(reason, STOPS.test(code) ? null : this.backoff(code));
  }

  drop() {
    this.lose();
    this.rest("Dropped by you.", 1000);
  }

  /* What was sent and has not come back may have been taken or not; nobody here can know. */
  lose() {
    if (this.openedAt !== null) this.lostAt = performance.now();
    const lost = this.sent.length;
    if (lost === 1) this.note("1 message has not come back: whether the server took it is unknown.");
    if (lost > 1) this.note(`${lost} messages have not come back: whether the server took them is unknown.`);
    this.sent = [];
  }

  backoff(code) {
    if (this.openedAt !== null && performance.now() - this.openedAt > HEALTHY) this.failures = 0;
    const first = this.failures === 0;
    const limit = Math.min(CAP, BASE * 2 ** this.failures++);
    if (code === 4529) return CAP;
    // At once, says the protocol; but a server that only ever answers 4510 must not make a loop without a pause.
    return code === 4510 && first ? 0 : Math.random() * limit;
  }

  /* Closed: for `wait` ms, or until somebody presses the button (null). */
  rest(reason, wait) {
    this.release();
    this.show(wait === null ? "stopped" : "waiting", reason);
    if (wait === null) return;
    const due = performance.now() + wait;
    const tick = () => {
      const left = due - performance.now();
      this.countdown.textContent = left > 0 ? `Again in ${seconds(left)} s.` : "";
    };
    tick();
    this.clock = setInterval(tick, 100);
    this.timer = setTimeout(() => this.open(), wait);
  }

  release() {
    const socket = this.socket;
    this.socket = null;
    socket?.close();
    clearTimeout(this.timer);
    clearInterval(this.clock);
    this.countdown.textContent = "";
  }

  show(state, reason = "") {
    this.state = this.root.dataset.state = state;
    this.word.textContent = WORDS[state];
    this.reason.textContent = reason;
    this.toggle.textContent = this.socket ? "Drop" : "Connect";
    this.toggle.title = this.socket ? "Cut this connection; it comes back by itself" : "Connect now";
    $("button", this.send).disabled = state !== "open";
    this.empty.textContent = state === "open" ? "Nothing yet. What is sent from now on appears here." : "Not connected.";
  }

  submit(event) {
    event.preventDefault();
    const text = this.text.value;
    if (this.state !== "open" || text === "") return;
    this.sent.push({ text, at: performance.now() });
    this.socket.send(text);
    this.text.value = "";
    this.scrollDown();
  }

  note(text) {
    this.push({ note: text });
  }

  /* One drawing per frame, however fast messages come; a hidden tab draws none and keeps no more than it would show. */
  push(item) {
    if (!this.queue.length) requestAnimationFrame(() => this.draw());
    this.queue.push(item);
    if (this.queue.length > KEEP) {
      this.queue.shift();
      this.older.hidden = false;
    }
  }

  draw() {
    if (!this.queue.length) return; // the channel was changed meanwhile
    const follow = this.atBottom();
    this.unseen = follow || this.newest.hidden ? this.queue.length : this.unseen + this.queue.length;
    this.list.append(...this.queue.map((item) => this.row(item)));
    this.queue = [];
    while (this.list.children.length > KEEP) {
      this.list.firstChild.remove();
      this.older.hidden = false;
    }
    if (follow) return this.scrollDown();
    this.newest.hidden = false;
    this.newest.textContent = `${this.unseen.toLocaleString()} new below`;
  }

  row({ note, at, data, trip }) {
    if (note) return element("li", "note", note);
    const binary = typeof data !== "string";
    const row = element("li", trip === undefined ? "" : "own", "");
    const text = binary ? `binary, ${data.byteLength.toLocaleString()} bytes` : data;
    row.append(element("span", binary ? "text binary" : "text", text));
    const meta = element("span", "meta", trip === undefined ? "" : `you, ${Math.max(1, Math.round(trip))} ms`);
    const time = element("time", "", clockTime(at));
    time.dateTime = at.toISOString();
    meta.append(time);
    row.append(meta);
    return row;
  }

  atBottom() {
    return this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 32;
  }

  scrollDown() {
    this.log.scrollTop = this.log.scrollHeight;
    this.newest.hidden = true;
  }
}

function snippet(channel) {
  return `function connect(failures = 0) {
  const socket = new WebSocket(${JSON.stringify(address(channel))});
  socket.onopen = () => { failures = 0; socket.send("Hello from ten lines"); };
  socket.onmessage = ({ data }) => console.log(data);
  socket.onclose = ({ code }) => {
    if (/^(100[023789]|44..)$/.test(code)) return; // coming back would not help
    setTimeout(connect, Math.random() * Math.min(30_000, 500 * 2 ** failures), failures + 1);
  };
}
connect();`;
}

/* The channel lives in the address, so that the address can be shared. */
function readHash() {
  try {
    return decodeURIComponent(location.hash.slice(1)) || "lobby";
  } catch {
    return location.hash.slice(1);
  }
}

const panes = ["Pane A", "Pane B"].map((name) => new Pane(name));

function join() {
  const channel = readHash();
  document.title = `${channel} · Tocsin`;
  $("#channel").value = channel;
  $(".code code").textContent = snippet(channel);
  for (const pane of panes) pane.join(channel);
}

$("form.channel").onsubmit = (event) => {
  event.preventDefault();
  const channel = $("#channel").value.trim() || "lobby";
  if (channel === readHash()) join();
  else location.hash = escaped(channel);
};

$(".copy").onclick = async () => {
  const code = $(".code code");
  try {
    await navigator.clipboard.writeText(code.textContent);
    $(".copied").textContent = "Copied.";
  } catch {
    getSelection().selectAllChildren(code); // without https a page may not write the clipboard
    $(".copied").textContent = "Selected: copy it with your keyboard.";
  }
  setTimeout(() => ($(".copied").textContent = ""), 4000);
};

addEventListener("hashchange", join);
join();
