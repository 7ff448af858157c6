/* Talk: the channels that are joined, the one that is open, who is there, and what the connection has come through. */

import { $, count, element, plural } from "./element.js";
import { Room } from "./room.js";

const KEPT = "tocsin.channels";
const LISTED = 40; // people; of more, their number
const AWAY = 5000; // ms
const GRAMMAR = /^[A-Za-z0-9_.:@-]{1,128}$/;

const COUNTERS = {
  reconnects: "Reconnects",
  recovered: "Channels recovered",
  replayed: "Messages replayed",
  gaps: "Gaps",
  duplicates: "Duplicates seen",
};

export class Talk {
  rooms = new Map();

  /* `people` knows names; `choose(channel)` opens one: the address names it. */
  constructor(root, link, people, choose) {
    Object.assign(this, { root, link, people, choose });
    $(".channels ul", root).onclick = ({ target }) => {
      const button = target.closest("button");
      if (button) choose(button.dataset.channel);
    };
    $(".join", root).onsubmit = (event) => this.submit(event);
    $(".name", root).onsubmit = (event) => this.rename(event);
    $("#name", root).value = this.people.own;
    $(".cut", root).onclick = () => link.cut();
    $(".away", root).onclick = () => link.cut(AWAY);
    this.counters = Object.entries(COUNTERS).map(([name, title]) => {
      const shown = element("dd");
      shown.dataset.counter = name;
      $(".counters", root).append(element("dt", "", title), shown);
      return [name, shown];
    });
    for (const channel of kept()) this.enter(channel);
    this.draw();
  }

  submit(event) {
    event.preventDefault();
    const field = $("#join", this.root);
    const channel = field.value.trim();
    const fits = GRAMMAR.test(channel);
    $(".refused", this.root).textContent = fits ? "" : "A channel’s name has 1 to 128 of A-Z a-z 0-9 _ . : @ -";
    if (!fits) return;
    field.value = "";
    this.choose(channel);
  }

  /* Open a channel, and join it if that has not happened. */
  show(channel) {
    this.current = this.rooms.get(channel) ?? this.enter(channel);
    for (const room of this.rooms.values()) room.show(room === this.current);
    this.draw();
  }

  enter(channel) {
    const room = new Room(channel, this.link, this.people, () => this.draw());
    this.rooms.set(channel, room);
    room.show(false);
    $(".rooms", this.root).append(room.root);
    $(".leave", room.root).onclick = () => this.leave(room);
    room.join();
    this.keep();
    return room;
  }

  leave(room) {
    room.leave();
    this.rooms.delete(room.name);
    this.keep();
    if (room === this.current) this.choose(this.rooms.keys().next().value ?? "lobby");
    $(".channels button[aria-current]", this.root)?.focus();
  }

  keep() {
    sessionStorage[KEPT] = JSON.stringify([...this.rooms.keys()]);
  }

  /* After a stop: the connection is made again, and every room is entered where it was left. */
  resume() {
    this.link.client.connect();
    for (const room of this.rooms.values()) room.join();
  }

  rename(event) {
    event.preventDefault();
    const name = $("#name", this.root).value.trim();
    if (!name || name === this.people.own) return;
    this.people.own = name;
    for (const room of this.rooms.values()) room.rename();
  }

  /* One drawing per frame, however many ask for it. */
  draw() {
    if (this.asked) return;
    this.asked = true;
    requestAnimationFrame(() => {
      this.asked = false;
      this.drawChannels();
      this.drawPeople();
      $("#name", this.root).placeholder = this.link.client.user ?? "";
      for (const [name, shown] of this.counters) {
        const number = this.link.counters[name];
        shown.textContent = count(number);
        shown.classList.toggle("bad", number > 0 && /gaps|duplicates/.test(name));
      }
      for (const button of this.root.querySelectorAll(".cuts button")) button.disabled = this.link.client.state !== "open";
      for (const room of this.rooms.values()) room.tell();
    });
  }

  drawChannels() {
    const list = $(".channels ul", this.root);
    const focused = list.contains(document.activeElement) ? document.activeElement.dataset.channel : null;
    const buttons = [...this.rooms.values()].map((room) => {
      const button = room.label;
      if (room === this.current) button.setAttribute("aria-current", "true");
      return button;
    });
    list.replaceChildren(...buttons.map((button) => element("li", "", button)));
    buttons.find((button) => button.dataset.channel === focused)?.focus();
  }

  drawPeople() {
    const { channel, listed } = this.current ?? {};
    const known = channel?.state === "subscribed" && listed;
    $("#people-title .count", this.root).textContent = known ? count(channel.count) : "";
    const list = $(".people", this.root);
    if (!known) {
      const away = this.link.client.state === "open" ? "Not joined." : "Waiting for the connection.";
      const why = channel?.state === "subscribed" ? "Who is here may not be seen with this token." : away;
      return list.replaceChildren(element("li", "quiet", why));
    }
    const { user, client } = this.link.client;
    const rows = channel.members.slice(0, LISTED).map((member) => {
      const self = member.member === (user ?? client);
      const past = !self && this.link.ids.has(member.member); // the service waits two seconds before it says that one left
      const [kind, more] = self ? ["self", " (you)"] : past ? ["past", " (leaving)"] : ["", ""];
      const name = element("span", kind, this.people.nameOf(member.member), more);
      return element("li", "", name, element("span", "clients", member.clients > 1 ? plural(member.clients, "window") : ""));
    });
    const others = channel.count - rows.length;
    if (others > 0) rows.push(element("li", "quiet", `and ${count(others)} more`));
    list.replaceChildren(...rows);
  }
}

/* The channels of this tab before it was loaded again. */
function kept() {
  try {
    return JSON.parse(sessionStorage[KEPT] ?? "[]").filter((channel) => GRAMMAR.test(channel));
  } catch {
    return [];
  }
}
