/* Watch: what /metrics and /readyz say once a second, and the latency that this page measures; while it is looked at. */

import { $, count, element, fromTemplate, plural, timeOfDay } from "./element.js";
import { Latency } from "./latency.js";
import { Metrics } from "./metrics.js";
import { Plot } from "./plot.js";
import { ask } from "./service.js";

const EVERY = 1000; // ms
const TOKEN = "tocsin.metrics-token";

const CARDS = {
  deliveries: ["Deliveries", "messages written to sockets, all workers", 5, precise],
  published: ["Publishes", "messages taken into the log", 5, precise],
  connections: ["Connections", "a channel counts once in each worker", 5, whole],
  acknowledged: ["Acknowledged in", "this page’s own publishes, until they are in the log; thin: the second’s worst", 2, milliseconds],
  echoed: ["Echoed in", "the same messages, until they are back as every subscriber gets them", 2, milliseconds],
  probe: ["Redis round trip", "the slowest worker’s probe, through Pub/Sub and back", 2, milliseconds],
};

export class Watch {
  constructor(root) {
    this.root = root;
    this.latency = new Latency((sentence) => (this.trouble = sentence));
    this.trouble = "";
    this.metrics = new Metrics();
    this.cards = Object.fromEntries(Object.entries(CARDS).map(([name, given]) => [name, this.card(...given)]));
    this.form = $(".metrics-token", root);
    this.form.onsubmit = (event) => this.takeToken(event);
    this.visible = false;
    document.addEventListener("visibilitychange", () => this.turn());
  }

  card(title, about, floor, written) {
    const root = fromTemplate("card");
    $("h2", root).textContent = title;
    $(".about", root).textContent = about;
    $(".cards", this.root).append(root);
    const [figures, peak, svg] = [".figures", ".peak", "svg"].map((part) => $(part, root));
    return { title, written, figures, peak, svg, plot: new Plot(svg, floor) };
  }

  /* Latency can be measured from now on. */
  connect(client) {
    this.latency.connect(client);
    client.on("state", ({ state }) => state === "open" && this.timer && this.latency.start()); // also after a stop
  }

  /* Whether the tab is the chosen one. */
  show(visible) {
    this.visible = visible;
    this.turn();
  }

  turn() {
    const wanted = this.visible && !document.hidden;
    if (wanted === Boolean(this.timer)) return;
    clearInterval(this.timer);
    this.timer = null;
    if (!wanted) {
      this.latency.stop();
      return;
    }
    this.latency.start();
    this.timer = setInterval(() => this.step(), EVERY);
    this.step();
  }

  async step() {
    if (this.asking) return; // the last answer is still under way
    this.asking = true;
    try {
      const [health, metrics] = await Promise.all([ask("/readyz"), ask("/metrics", sessionStorage[TOKEN])]);
      this.showHealth(health);
      this.showMetrics(metrics);
    } catch {
      this.showLoss();
    } finally {
      this.asking = false;
    }
    this.draw();
  }

  showHealth({ status, text, sentence }) {
    let said = { status: sentence, reasons: [] };
    try {
      said = { ...said, ...JSON.parse(text) };
    } catch {
      // a proxy's page, not the service's answer: the status stands
    }
    if (status === 200) this.store("ready", "Ready: this node serves and Redis answers", []);
    else this.store("bad", "Not ready", said.reasons);
  }

  showMetrics({ status, text, sentence }) {
    const open = status === 200;
    this.form.hidden = status !== 401;
    $(".said", this.form).textContent = sessionStorage[TOKEN] ? `Refused: ${sentence}` : `Closed: ${sentence}`;
    this.known = open;
    this.metricsSaid = open ? "" : sentence;
    if (!open) return;
    this.metrics.take(text, performance.now());
    this.heardAt = new Date();
  }

  showLoss() {
    this.known = false;
    this.metricsSaid = "";
    this.store("bad", "The service cannot be reached", []);
  }

  store(state, text, reasons) {
    const line = $(".store", this.root);
    if (line.textContent !== text) line.textContent = text; // a live region speaks on each change
    line.dataset.state = state;
    $(".reasons", this.root).replaceChildren(...reasons.map((reason) => element("li", "", reason)));
  }

  draw() {
    const { metrics, known } = this;
    this.root.classList.toggle("stale", !known);
    const rate = (name) => (known ? metrics.rate(name) : null);
    const total = (name) => (known && metrics.now ? metrics.total(name) : null);
    this.rateCard("deliveries", rate("deliveries_total"));
    this.rateCard("published", rate("published_total"));
    this.latencyCard("acknowledged");
    this.latencyCard("echoed");
    const connections = total("connections");
    this.put("connections", [[whole(connections), "open"], [whole(total("channels")), "channels"]], connections);
    const probe = known ? metrics.highest("probe_seconds") : null; // by a clock that counts whole milliseconds
    this.put("probe", [[probe === 0 ? "under 1 ms" : milliseconds(probe && probe * 1000), ""]], probe && probe * 1000);
    this.drawWorkers();
    const notes = [];
    if (!known && this.heardAt) notes.push(`The numbers of the workers are those of ${timeOfDay(this.heardAt)}.`);
    if (this.metricsSaid) notes.push(`No metrics: ${this.metricsSaid}.`);
    if (this.trouble) notes.push(`No latency: ${this.trouble}.`);
    if (known) notes.push("Rates are means of five seconds, and hold the four messages a second by which this page measures.");
    $(".note", this.root).textContent = notes.join(" ");
  }

  rateCard(name, rate) {
    this.put(name, [[rate === null ? "–" : precise(rate), "a second"]], rate);
  }

  latencyCard(kind) {
    const { p50, p99, median, worst } = this.latency.figures(kind);
    this.put(kind, [[milliseconds(p50), "p50"], [milliseconds(p99), "p99"]], median, worst);
  }

  put(name, figures, first, second = null) {
    const card = this.cards[name];
    const figure = ([value, unit]) => element("b", "", value, element("small", "", unit && ` ${unit}`));
    card.figures.replaceChildren(...figures.map(figure));
    card.plot.push(first, second);
    const peak = card.plot.peak();
    card.peak.textContent = peak === null ? "" : `peak ${card.written(peak)}`;
    card.svg.setAttribute("aria-label", `${card.title}, last minute: ${figures.map((each) => each.join(" ")).join(", ")}`);
  }

  drawWorkers() {
    const { metrics } = this;
    const rows = metrics.workers.map((worker) => {
      const of = (name) => metrics.now[name]?.[worker];
      const state = of("worker_up") !== 1 ? "gone or silent" : of("ready") === 1 ? "ready" : "not ready";
      const cpu = metrics.rate("cpu_seconds_total", worker);
      const deliveries = metrics.rate("deliveries_total", worker);
      const lag = metrics.lag(worker, 0.99);
      const memory = of("resident_bytes");
      return [
        worker,
        state,
        whole(of("connections")),
        whole(of("channels")),
        deliveries === null ? "–" : precise(deliveries),
        cpu === null ? "–" : `${Math.round(cpu * 100)} %`,
        lag === null ? "–" : lag === Infinity ? "over 5 s" : `≤ ${milliseconds(lag * 1000)}`,
        memory === undefined ? "–" : `${Math.round(memory / 2 ** 20)} MiB`,
      ];
    });
    const body = $("tbody", this.root);
    const cell = (text, at) => element("td", at === 1 && text !== "ready" ? "bad" : "", text);
    const drawn = rows.map((texts) => element("tr", "", ...texts.map(cell)));
    if (!drawn.length) {
      const empty = element("td", "", "Nothing is known yet.");
      empty.colSpan = 8;
      drawn.push(element("tr", "", empty));
    }
    body.replaceChildren(...drawn);
    $("#workers-title", this.root).textContent = rows.length ? `${plural(rows.length, "worker")} on this node` : "Workers of this node";
  }

  takeToken(event) {
    event.preventDefault();
    const field = $("input", this.form);
    sessionStorage[TOKEN] = field.value.trim();
    field.value = "";
    this.step();
  }
}

function whole(number) {
  return number === null || number === undefined ? "–" : count(number);
}

function precise(rate) {
  return rate < 10 ? rate.toFixed(1) : count(Math.round(rate));
}

function milliseconds(ms) {
  if (ms === null) return "–";
  if (ms >= 1000) return `${(ms / 1000).toFixed(1)} s`;
  return `${ms < 10 ? Number(ms.toFixed(1)) : Math.round(ms)} ms`;
}
