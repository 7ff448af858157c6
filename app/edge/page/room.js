/* One channel that is joined: its messages, who is in it, and what is being sent. */

import { $, count, element, fromTemplate, plural } from "./element.js";
import { Log } from "./log.js";

const HISTORY = 50; // messages that one sees who joins
const REMEMBERED = 5000; // ids, by which a message that came twice would be known
const PATIENCE = 60_000; // ms
const EMPTY = "Nothing has been said here yet.";
const TELL_AFTER = 400; // ms that a message may be under way before it is told

const AFTER_PUSH = 1500; // ms; presence is pushed once a second

const GAPS = {
  expired: "the log no longer reaches back to them",
  diverged: "the store lost them",
  cleared: "the channel was cleared",
};

export class Room {
  under = new Set(); // what is being sent
  seen = new Set();
  fresh = 0; // messages since it was looked at
  replays = 0; // messages that are about to come from the log, because this page was away
  older = 0; // and because it has just joined

  /* `people` knows names; `onChange()` when what stands around the messages has changed. */
  constructor(name, link, people, onChange) {
    Object.assign(this, { name, link, people, onChange });
    this.root = fromTemplate("room");
    this.root.setAttribute("role", "region");
    this.root.setAttribute("aria-label", `Channel ${name}`);
    $("h2", this.root).textContent = name;
    this.log = new Log(this.root, people);
    this.log.root.setAttribute("aria-label", `Messages in ${name}`);
    this.form = $(".send", this.root);
    this.text = $("textarea", this.form);
    this.text.setAttribute("aria-label", `Message to ${name}`);
    for (const radio of this.form.querySelectorAll("input")) radio.name = `mode-${name}`;
    this.form.onchange = () => this.setMode();
    this.form.onsubmit = (event) => this.submit(event);
    this.text.onkeydown = (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) this.submit(event);
    };
    this.text.oninput = () => this.tell();
    this.setMode();

    this.channel = link.client.channel(name);
    this.listeners = [
      this.channel.on("state", (event) => this.turned(event)),
      this.channel.on("message", (message) => this.heard(message)),
      this.channel.on("gap", ({ reason }) => this.lost(reason)),
      this.channel.on("presence", () => this.gathered()),
    ];
  }

  /* Join, with as much as one may have: history and presence are rights of their own. After a stop the client goes on
     where it was. */
  async join() {
    let refused;
    for (const [history, presence] of [[HISTORY, true], [0, true], [HISTORY, false], [0, false]]) {
      this.listed = presence;
      this.link.client.channel(this.name, { presence: presence ? { info: this.people.info } : null });
      try {
        await this.channel.subscribe({ history });
        this.refused = "";
        return;
      } catch (error) {
        if (this.link.client.state === "stopped") return; // with the connection, which says why
        refused ??= error;
        if (error.code !== "forbidden") break;
      }
    }
    if (refused.code === "closed") return; // left
    this.refused = `Refused: ${refused.message}`;
    this.tell();
  }

  /* Come again under another name. Only who has left is told to others by a new one, and who is back within the same
     push has not left. What is said meanwhile is replayed. */
  rename() {
    if (!this.listed || this.renaming || this.channel.state !== "subscribed") return;
    const since = this.channel.position;
    this.renaming = true;
    this.channel.unsubscribe();
    setTimeout(() => {
      if (!this.root.isConnected) return; // left for good
      this.link.client.channel(this.name, { presence: { info: this.people.info } });
      this.channel.subscribe({ since }).catch(() => {});
    }, AFTER_PUSH);
  }

  leave() {
    for (const off of this.listeners) off();
    this.channel.unsubscribe();
    this.root.remove();
  }

  turned({ state, recovered, replayed }) {
    this.replays = this.older = 0;
    if (state === "subscribed") this.joined(recovered, replayed);
    this.tell();
    this.onChange();
  }

  joined(recovered, replayed) {
    const renamed = this.renaming;
    this.renaming = false;
    this.gathered();
    if (recovered === null) this.older = replayed;
    if (renamed || !recovered) return; // not recovered: joined anew, or the gap tells
    const after = `Back after ${(this.link.away / 1000).toFixed(1)} s on worker ${this.link.worker}`;
    this.replays = replayed;
    this.link.count("recovered");
    this.note(`${after}: ${replayed ? `${plural(replayed, "message")} replayed, none missing` : "nothing was missed"}.`, "good");
  }

  lost(reason) {
    this.link.count("gaps");
    this.note(`Messages are missing here: ${GAPS[reason] ?? reason}. What follows is whole again.`, "bad");
  }

  heard(message) {
    const replayed = this.replays > 0;
    if (replayed) {
      this.replays--;
      this.link.count("replayed");
    }
    if (message.id) {
      if (this.seen.has(message.id)) this.link.count("duplicates");
      this.seen.add(message.id);
      if (this.seen.size > REMEMBERED) this.seen.delete(this.seen.values().next().value);
    }
    const own = this.link.ids.has(message.from);
    this.log.push({ message, own, replayed });
    if (this.older > 0) this.older--;
    else if (this.root.hidden) {
      this.fresh++;
      this.onChange();
    }
  }

  gathered() {
    for (const member of this.channel.members) this.people.meet(member);
    this.log.name();
    this.onChange();
  }

  note(note, tone) {
    this.log.push({ note, tone });
  }

  show(visible) {
    this.root.hidden = !visible;
    if (!visible) return;
    this.fresh = 0;
    this.log.scrollDown();
  }

  setMode() {
    this.mode = $("input:checked", this.form).value;
    this.form.dataset.mode = this.mode;
    this.text.placeholder = this.mode === "json" ? '{ "temperature": 21.5 }' : "Write a message";
    this.tell();
  }

  submit(event) {
    event.preventDefault();
    const text = this.text.value;
    if (!text.trim()) return;
    let data = text;
    if (this.mode === "json") {
      try {
        data = JSON.parse(text);
      } catch (error) {
        return this.tell(`This is not JSON: ${error.message}`);
      }
    }
    this.text.value = "";
    this.log.scrollDown();
    this.send(data);
  }

  /* The client keeps it until it is acknowledged, over as many connections as that takes, and publishes it once. */
  async send(data) {
    const item = {};
    this.under.add(item);
    const timer = setTimeout(() => this.tell(), TELL_AFTER);
    let failure = "";
    try {
      await this.channel.publish(data, { timeout: PATIENCE });
    } catch (error) {
      failure = `Not sent: ${error.message}`;
    }
    clearTimeout(timer);
    this.under.delete(item);
    this.tell(failure);
  }

  /* The lines beside the name and beside the button. */
  tell(failure = "") {
    const joined = this.channel?.state === "subscribed";
    const open = this.link.client.state === "open";
    $(".state", this.root).textContent = this.refused || (joined || !open ? "" : "Joining…");
    $(".empty", this.root).textContent = joined ? EMPTY : this.refused || "Waiting for the connection.";
    const line = $(".outbox", this.root);
    const waits = open ? "under way" : "kept until the connection is back";
    line.textContent = failure || (this.under.size ? `${plural(this.under.size, "message")} ${waits}` : "");
    line.classList.toggle("bad", Boolean(failure));
  }

  get label() {
    const button = element("button", "", this.name);
    button.type = "button";
    button.dataset.channel = this.name;
    if (this.fresh) button.append(element("span", "fresh", count(this.fresh), element("span", "unseen", " new")));
    return button;
  }
}
