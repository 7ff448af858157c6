/* The messages of a room, as they are drawn: one drawing per frame however fast they come, and only the newest kept.
   Who reads older ones is left in peace. */

import { $, count, element, timeOfDay } from "./element.js";

const KEEP = 500; // rows

export class Log {
  /* `root` holds `.log` and `.newest`; `people` knows names. */
  constructor(root, people) {
    this.people = people;
    this.root = $(".log", root);
    this.list = $("ol", root);
    this.older = $(".older", root);
    this.newest = $(".newest", root);
    this.queue = [];
    this.unseen = 0;
    this.newest.onclick = () => this.scrollDown();
    this.root.onscroll = () => this.atBottom() && (this.newest.hidden = true);
  }

  /* An item is `{ note, tone }` or `{ message, own, replayed }`. A hidden page draws none and keeps no more than
     it would show. */
  push(item) {
    if (!this.queue.length) requestAnimationFrame(() => this.draw());
    this.queue.push(item);
    if (this.queue.length > KEEP) {
      this.queue.shift();
      this.older.hidden = false;
    }
  }

  clear() {
    this.queue = [];
    this.list.replaceChildren();
    this.older.hidden = this.newest.hidden = true;
  }

  draw() {
    if (!this.queue.length) return; // cleared meanwhile
    const follow = this.atBottom();
    this.unseen = follow || this.newest.hidden ? this.queue.length : this.unseen + this.queue.length;
    this.list.append(...this.queue.map((item) => (item.note ? note(item) : row(item, this.people))));
    this.queue = [];
    while (this.list.children.length > KEEP) {
      this.list.firstChild.remove();
      this.older.hidden = false;
    }
    if (follow) return this.scrollDown();
    this.newest.hidden = false;
    this.newest.textContent = `${count(this.unseen)} new below`;
  }

  /* Names may come later than what their people said. */
  name() {
    for (const who of this.list.querySelectorAll(".unnamed")) label(who, this.people);
  }

  atBottom() {
    return this.root.scrollHeight - this.root.scrollTop - this.root.clientHeight < 32;
  }

  scrollDown() {
    this.root.scrollTop = this.root.scrollHeight;
    this.newest.hidden = true;
  }
}

function note({ note, tone }) {
  return element("li", `note ${tone}`, note);
}

function row({ message, own, replayed }, people) {
  const made = element("li", [own && "own", replayed && "replayed"].filter(Boolean).join(" "));
  const time = element("time", "", timeOfDay(new Date(message.at)));
  time.dateTime = new Date(message.at).toISOString();
  if (message.id) made.title = `id ${message.id}`;
  const meta = element("span", "meta", replayed ? "replayed " : "", time);
  const who = element("span", "who");
  who.dataset.member = who.title = message.user ?? message.from ?? "";
  who.classList.toggle("anonymous", !message.user);
  label(who, people, own);
  made.append(who, body(message), meta);
  return made;
}

/* A user's id is a name, a client's is none. */
function label(who, people, own = false) {
  const { member } = who.dataset;
  who.textContent = member ? people.nameOf(member) : "over HTTP";
  who.classList.toggle("unnamed", who.classList.contains("anonymous") && !people.knows(member));
  if (own) who.append(element("span", "unseen", " (you)"));
}

function body({ data }) {
  if (data instanceof Uint8Array) return element("span", "text binary", `binary, ${count(data.length)} bytes`);
  if (typeof data === "string") return element("span", "text", data);
  return element("span", "text json", JSON.stringify(data, null, 1).replace(/\n */g, " "));
}
