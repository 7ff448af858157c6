/* The page at "/": tabs, the address, who is let in, and the line at the top. What others sent reaches the document by
   textContent only. */

import { $, element } from "./element.js";
import { Link } from "./link.js";
import { People } from "./people.js";
import { escaped } from "./service.js";
import { Tabs } from "./tabs.js";
import { Talk } from "./talk.js";
import { Token } from "./token.js";
import { Try } from "./try.js";
import { Watch } from "./watch.js";

const DEFAULT = "lobby";
const OUT = { state: "closed", text: "Not connected" };
const COMING = { state: "connecting", text: "Connecting" };
const TICK = 100; // ms between drawings of a countdown

const desk = $(".desk");
const trouble = $("#trouble");
const token = new Token($("#gate"), enter, wanted);
const watch = new Watch($("#watch"));
const tryOut = new Try($("#try"));
const tabs = new Tabs($("[role=tablist]"), (name) => go(name === "talk" ? escaped(channel) : `/${name}`));
let channel = DEFAULT;
let link = null;
let talk = null;

/* The address says what is open, so that it can be shared: `#room:42` a channel, `#/watch` a tab. No channel has a `/`. */
function read() {
  let said = location.hash.slice(1);
  try {
    said = decodeURIComponent(said);
  } catch {
    // then it is taken as it stands
  }
  const tab = /^\/(watch|try)$/.exec(said)?.[1] ?? "talk";
  if (tab === "talk") channel = said || DEFAULT;
  tabs.show(tab);
  tryOut.show(channel, token.needed);
  talk?.show(channel);
  watch.show(tab === "watch");
  document.title = `${{ talk: channel, watch: "Watch", try: "Try" }[tab]} · Tocsin`;
}

function go(where) {
  if (location.hash === `#${where}`) read();
  else location.hash = where;
}

function enter() {
  desk.hidden = false;
  $(".forget").hidden = !token.value;
  if (link) return talk.resume();
  link = new Link(() => token.value || null, draw, stopped);
  talk = new Talk($("#talk"), link, new People(!token.value), (chosen) => go(escaped(chosen)));
  watch.connect(link.client);
  setInterval(() => link.client.state !== "open" && drawTop(), TICK);
  read();
}

/* There is a form for a token now, and the snippets are with one. */
function wanted() {
  drawTop();
  read();
}

function draw() {
  talk?.draw();
  drawTop();
  if (link?.client.state === "open") trouble.hidden = true;
}

function drawTop() {
  const { state, text } = link?.status ?? (token.wanted ? OUT : COMING);
  $(".link").dataset.state = state;
  const word = $(".link .word");
  if (word.textContent !== text) word.textContent = text; // a live region speaks on each change
  $(".link .again").textContent = !link?.left ? "" : `again in ${link.left.toFixed(1)} s`;
  $(".link .worker").textContent = state === "connected" ? `worker ${link.worker}` : link?.reason ?? "";
}

/* The client has given up: with a token that was refused one is asked for, else one is told why, and may try again. */
function stopped(error) {
  if (error?.code === "unauthorized") {
    desk.hidden = true;
    return token.want(error.message);
  }
  const again = element("button", "", "Connect again");
  again.type = "button";
  again.onclick = () => talk.resume();
  trouble.replaceChildren(`Not connected: ${error?.message ?? "the connection was closed"}. `, again);
  trouble.hidden = false;
}

$(".forget").onclick = () => {
  token.forget();
  location.reload();
};

addEventListener("hashchange", read);
desk.hidden = true;
read();
drawTop();
token.enter();
