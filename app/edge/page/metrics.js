/* What /metrics says: numbers by name and worker, and how they have changed over the last seconds. */

const WINDOW = 5000; // ms: the workers' snapshots are up to a second old, so shorter windows would flicker
const LINE = /^tocsin_(\w+)\{([^}]*)\} (\S+)$/;

/* `{ name: { worker: number } }`; buckets of the loop's lag as `{ lag: { worker: [[bound in s, count]] } }`. */
export function parse(text) {
  const found = { lag: {} };
  for (const line of text.split("\n")) {
    const [, name, labels, value] = LINE.exec(line) ?? [];
    if (!name) continue;
    const worker = /worker="(\d+)"/.exec(labels)?.[1];
    if (name === "loop_lag_seconds_bucket") {
      const bound = /le="([^"]+)"/.exec(labels)[1];
      (found.lag[worker] ??= []).push([bound === "+Inf" ? Infinity : Number(bound), Number(value)]);
    } else {
      (found[name] ??= {})[worker] = Number(value);
    }
  }
  return found;
}

export class Metrics {
  samples = [];

  /* Take what was read at `at` (ms). */
  take(text, at) {
    this.samples.push({ at, ...parse(text) });
    while (this.samples.length > 2 && this.samples[1].at <= at - WINDOW) this.samples.shift();
  }

  get now() {
    return this.samples.at(-1);
  }

  get workers() {
    return Object.keys(this.now?.worker_up ?? {});
  }

  total(name) {
    return Object.values(this.now?.[name] ?? {}).reduce((sum, value) => sum + value, 0);
  }

  /* The highest of all workers, or null. */
  highest(name) {
    const values = Object.values(this.now?.[name] ?? {});
    return values.length ? Math.max(...values) : null;
  }

  /* What a counter gained per second over the window, in one worker or all; null before the second sample. A counter
     that went back belongs to a new worker in the old one's slot: what it shows, it gained. */
  rate(name, worker) {
    if (this.samples.length < 2) return null;
    const workers = worker === undefined ? Object.keys(this.now[name] ?? {}) : [worker];
    const gained = workers.reduce((sum, each) => sum + this.gain((sample) => sample[name]?.[each]), 0);
    return gained / this.seconds;
  }

  get seconds() {
    return (this.now.at - this.samples[0].at) / 1000;
  }

  gain(read) {
    let sum = 0;
    for (let at = 1; at < this.samples.length; at++) {
      const [before, after] = [read(this.samples[at - 1]), read(this.samples[at])];
      // A worker first seen now may have run for long: its count so far was gained before the window.
      if (before !== undefined && after !== undefined) sum += after < before ? after : after - before;
    }
    return sum;
  }

  /* The bound in seconds below which a part (0.99) of the loop's timers of the window came; null when nothing is known. */
  lag(worker, part) {
    const bounds = (this.now?.lag[worker] ?? []).map(([bound]) => bound);
    const counts = bounds.map((_, at) => this.gain((sample) => sample.lag[worker]?.[at]?.[1]));
    const all = counts.at(-1);
    return all ? bounds[counts.findIndex((counted) => counted >= part * all)] : null;
  }
}
