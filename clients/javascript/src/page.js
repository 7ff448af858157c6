/* What a page is told of its machine and of itself: `asleep` when it is put away and may be kept, `awake` when it is
   back, `online` and `offline`. Elsewhere than in a page there is nothing to hear. */

const TOLD = { online: "online", offline: "offline", pagehide: "asleep", pageshow: "awake", resume: "awake" };

/* Returns what ends it. */
export function listenToPage(told) {
  const { document } = globalThis;
  if (!document) return () => {};
  const end = new AbortController();
  const hear = (event) => {
    if (event.type === "visibilitychange") {
      if (document.visibilityState === "visible") told("awake");
    } else if (event.type !== "pageshow" || event.persisted) told(TOLD[event.type]);
  };
  for (const name of ["online", "offline", "pagehide", "pageshow"]) {
    globalThis.addEventListener(name, hear, { signal: end.signal });
  }
  for (const name of ["visibilitychange", "resume"]) document.addEventListener(name, hear, { signal: end.signal });
  return () => end.abort();
}
