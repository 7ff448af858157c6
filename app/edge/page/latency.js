/* Latency as this page sees it: it publishes into a channel that nobody else knows and measures until the answer
   (acknowledged: the message is in the log) and until its own copy (echo). Only while somebody watches. */

const EVERY = 250; // ms between two
const MINUTE = 60_000; // ms that figures reach back
const PATIENCE = 5000; // ms

export class Latency {
  /* `onTrouble(sentence)`: why nothing can be measured; empty when it can again. */
  constructor(onTrouble) {
    this.onTrouble = onTrouble;
    this.acknowledged = [];
    this.echoed = [];
    this.sent = new Map();
    this.number = 0;
    this.channel = null;
  }

  /* Measure by this client from now on. */
  connect(client) {
    this.client = client;
    this.channel = client.channel(`console:${crypto.getRandomValues(new Uint32Array(3)).join("")}`);
    this.channel.on("message", ({ data }) => this.heard(data));
  }

  async start() {
    if (!this.channel) return;
    this.timer ??= setInterval(() => this.probe(), EVERY);
    await this.channel.subscribe().catch((error) => this.onTrouble(error.message));
  }

  stop() {
    clearInterval(this.timer);
    this.timer = undefined;
    this.channel?.unsubscribe();
    this.sent.clear();
  }

  /* What waits for a connection would measure the waiting. */
  async probe() {
    if (this.client.state !== "open" || this.channel.state !== "subscribed") return;
    const number = ++this.number;
    const began = performance.now();
    this.sent.set(number, began);
    try {
      await this.channel.publish(number, { timeout: PATIENCE });
      this.acknowledged.push([began, performance.now() - began]);
      this.onTrouble("");
    } catch (error) {
      this.sent.delete(number);
      if (this.timer) this.onTrouble(error.message);
    }
  }

  heard(number) {
    const began = this.sent.get(number);
    if (began === undefined) return;
    this.sent.delete(number);
    this.echoed.push([began, performance.now() - began]);
  }

  /* Of "acknowledged" or "echoed": the median and the 99th percentile of the last minute, and the median and the
     worst of the last second, in ms; null where nothing was measured. */
  figures(kind) {
    const now = performance.now();
    const kept = (this[kind] = this[kind].filter(([began]) => began > now - MINUTE));
    const minute = kept.map(([, took]) => took);
    const second = kept.filter(([began, took]) => began + took > now - 1000).map(([, took]) => took);
    return { p50: quantile(minute, 0.5), p99: quantile(minute, 0.99), median: quantile(second, 0.5), worst: quantile(second, 1) };
  }
}

/* The nearest rank. */
export function quantile(values, part) {
  if (!values.length) return null;
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(part * sorted.length) - 1)];
}
