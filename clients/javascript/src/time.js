/* Time and how long to wait. All of it in ms. */

export const LONGEST = 2 ** 31 - 1; // that a timer can wait
const BASE = 500;
const CAP = 30_000;

/* Full jitter: any time up to a limit that doubles with each failure. */
export function backoff(failures, random) {
  return random() * Math.min(CAP, BASE * 2 ** failures);
}

/* The clock of this machine, in ms since 1970. It goes on while the machine sleeps, as Date does, and never back, as
   `performance` does: a key must not seem younger than it is. */
export function makeClock() {
  let time = Date.now();
  let wall = time;
  let ticks = performance.now();
  return {
    now() {
      const [date, tick] = [Date.now(), performance.now()];
      time += Math.max(date - wall, tick - ticks, 0);
      [wall, ticks] = [date, tick];
      return time;
    },
    setTimeout: (callback, ms) => setTimeout(callback, ms),
    clearTimeout: (timer) => clearTimeout(timer),
  };
}
