"""The worker: its lease and heartbeat, its ticks, the control channel, readiness.

Everything that goes on by the clock in a worker starts here, in one supervised task.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import orjson
import structlog

from app.core.errors import TocsinError
from app.engine.admissions import Admissions
from app.engine.hub import Hub
from app.engine.presence import Presence
from app.engine.reaper import Reaper
from app.engine.refusals import Refusals
from app.engine.roster import Roster

log = structlog.get_logger("tocsin.worker")

LEASE_SECONDS = 4.0
BEAT_SECONDS = 1.0
PATIENCE_SECONDS = 6.0
"""How long a worker waits for one of its node's slots before it takes any free one."""
SPARE_SLOTS = 1024
LAG_SECONDS = 0.05
"""How often the loop's lag is sampled, and whether this worker is ready is looked at."""
LAG_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
ASK_SECONDS = 1.0
PAGE = 1000
"""Channels in one page of the list."""


class Store(Protocol):
    """What the worker needs of the store beyond the broker's contract."""

    async def script(self, name: str, keys: Sequence[str], arguments: Sequence[bytes | str | int]) -> Any:
        """Run a script of this project by name. Raises `Unavailable`."""

    async def tell(self, message: bytes, to: str | None = None) -> int:
        """Publish to all workers or to one incarnation. Returns how many heard it."""

    def problems(self) -> list[str]:
        """Why the store cannot be used right now; sentences without hosts."""


class Lag:
    """A histogram of the loop's lag: how much later than asked a timer ran (seconds)."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(LAG_BOUNDS) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """One sample."""
        self.total += seconds
        for index, bound in enumerate(LAG_BOUNDS):
            if seconds <= bound:
                self.counts[index] += 1
                return
        self.counts[-1] += 1


class Answers:
    """What the workers have answered to one question so far."""

    __slots__ = ("_heard", "pages")

    def __init__(self) -> None:
        self.pages: list[list[tuple[str, int]]] = []
        self._heard = asyncio.Event()

    def add(self, page: list[tuple[str, int]]) -> None:
        """One worker's answer."""
        self.pages.append(page)
        self._heard.set()

    async def wait(self, expected: int) -> None:
        """Until so many have answered, or `ASK_SECONDS` have passed: a worker that died is not waited for."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ASK_SECONDS):
                while len(self.pages) < expected:
                    self._heard.clear()
                    await self._heard.wait()


class Worker:
    """One worker process among others.

    Args:
        store: leases and control messages.
        hub: checks, channel names.
        roster: keep-alive.
        admissions: who is let in.
        refusals: who is not.
        presence: its members, which stand and fall with the lease.
        reaper: clears up after other workers.
        prefix: of the keys.
        node: name of this machine.
        slots: workers that this node is meant to have.
        incarnation: of this process, unique for ever; also the name of its own control channel.
        snapshot: this worker's metrics as JSON-able values.

    Attributes:
        incarnation: under which it holds a lease; another one after it was declared dead.
    """

    _loop: asyncio.AbstractEventLoop

    def __init__(
        self,
        *,
        store: Store,
        hub: Hub,
        roster: Roster,
        admissions: Admissions,
        refusals: Refusals,
        presence: Presence,
        reaper: Reaper,
        prefix: str,
        node: str,
        slots: int,
        incarnation: str,
        snapshot: Callable[[], dict[str, Any]],
    ) -> None:
        self._store = store
        self._hub = hub
        self._roster = roster
        self._admissions = admissions
        self._refusals = refusals
        self._presence = presence
        self._reaper = reaper
        self._keys = f"{prefix}:{{workers}}"
        self._slots = slots
        self._snapshot = snapshot
        self._asked: dict[str, Answers] = {}
        self._beats = 0
        self._beating = False
        self._began = math.inf
        self._told = (False, False)
        self._beaten = -math.inf
        self._good_since = -math.inf
        self._reign: bytes | None = None
        self._control = incarnation
        self._ticker: asyncio.Task[None] | None = None
        self._sampler: asyncio.TimerHandle | None = None
        self._sample_due = 0.0
        self.incarnation = incarnation
        self.node = node
        self.slot = -1
        self.lag = Lag()
        self._others: set[int] = set()

    def start(self) -> None:
        """Begin to tick, on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._began = time.monotonic()
        self._ticker = self._loop.create_task(self._tick())
        self._sample_due = self._loop.time() + LAG_SECONDS
        self._sampler = self._loop.call_at(self._sample_due, self._sample)
        gc.collect()
        gc.freeze()

    async def stop(self) -> None:
        """Stop ticking; the lease runs out by itself."""
        if self._sampler is not None:
            self._sampler.cancel()
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)

    def problems(self) -> list[str]:
        """Why this worker is not ready; empty when it is."""
        found = list(self._store.problems())
        if not self._refusals.known:
            found.append("the revocations have not been read yet")
        if self._roster.draining:
            found.append("this worker is draining")
        return found

    async def workers(self) -> dict[int, dict[str, Any] | None]:
        """The last snapshot of each worker of this node by slot; None for one that is known but cannot be asked."""
        known: dict[int, dict[str, Any] | None] = dict.fromkeys(self._others)
        try:
            leases = await self._leases()
        except TocsinError:
            leases = []
        else:
            known = {}
        for lease in leases:
            node, slot, snapshot = lease.split(b"\n", 2)
            if node.decode() == self.node and int(slot) >= 0:
                known[int(slot)] = orjson.loads(snapshot)
        # Before its first beat a worker has no slot; it must not stand in another one's place.
        own = self.slot if self.slot >= 0 else next(slot for slot in itertools.count() if slot not in known)
        known[own] = self._snapshot()
        return known

    async def channels(self, prefix: str, after: str) -> tuple[list[tuple[str, int]], str | None]:
        """Channels with a subscriber on any worker, by name, with the number of subscribers; and the next cursor.

        Raises:
            Unavailable: the store is away.
        """
        number = secrets.token_hex(8)
        answers = self._asked[number] = Answers()
        question = {"ask": "channels", "number": number, "from": self._control, "prefix": prefix, "after": after}
        try:
            expected = await self._store.tell(orjson.dumps(question))
            await answers.wait(expected)
        finally:
            del self._asked[number]
        pages = answers.pages
        counts: dict[str, int] = {}
        full = [page[-1][0] for page in pages if len(page) == PAGE]
        horizon = min(full) if full else None
        for page in pages:
            for name, count in page:
                if horizon is None or name <= horizon:
                    counts[name] = counts.get(name, 0) + count
        names = sorted(counts.items())
        more = horizon is not None or len(names) > PAGE
        names = names[:PAGE]
        return names, names[-1][0] if more and names else None

    def on_lost(self) -> None:
        """The reader is lost. What it missed of revocations is read at once, and what comes before it is back is found
        by the beats.
        """
        self._refusals.forget()
        self._hub.spawn(self._refusals.read())

    def on_control(self, message: bytes) -> None:
        """A message from another worker (or from this one)."""
        try:
            content = orjson.loads(message)
        except orjson.JSONDecodeError:
            log.warning("a control message is not JSON and is ignored")
            return
        match content:
            case {
                "ask": "channels",
                "number": str(number),
                "from": str(asker),
                "prefix": str(prefix),
                "after": str(after),
            }:
                names = sorted(
                    (name, channel.users)
                    for name, channel in self._hub.channels.items()
                    if channel.users and name.startswith(prefix) and name > after
                )[:PAGE]
                answer = {"channels": names, "number": number}
                self._hub.spawn(self._say(self._store.tell(orjson.dumps(answer), asker)))
            case {"refusals": True}:
                self._hub.spawn(self._refusals.read())
            case {"channels": list(names), "number": str(number)}:
                if number in self._asked:
                    self._asked[number].add(names)
            case _:
                log.debug("a control message of an unknown kind is ignored")

    async def _say(self, telling: Awaitable[int]) -> None:
        try:
            await telling
        except TocsinError as error:
            log.warning("an answer to another worker was not sent", reason=error.message)

    async def _tick(self) -> None:
        while True:
            last = self._loop.time()
            self._beat_once()  # first of all: no fault of another part may cost the lease
            for part in (
                self._roster.turn,
                self._admissions.turn,
                lambda: self._hub.spawn(self._refusals.turn()),
                lambda: self._hub.spawn(self._admissions.ask(self.incarnation)),
                self._hub.inquiry.check,
                self._presence.tick,
                self._look_around,
            ):
                try:
                    part()
                except Exception:
                    log.exception("a tick failed")
            await asyncio.sleep(max(0.05, last + BEAT_SECONDS - self._loop.time()))

    def _look_around(self) -> None:
        """Whom this worker sends away has to know whether another one will do."""
        if self._roster.draining:
            self._hub.spawn(self._count_others())

    async def _count_others(self) -> None:
        with contextlib.suppress(TocsinError):
            leases = [lease.split(b"\n", 2) for lease in await self._leases()]
            self._roster.alone = not any(
                orjson.loads(snapshot)["ready"]
                for node, slot, snapshot in leases
                if (node, int(slot)) != (self.node.encode(), self.slot)
            )

    async def _leases(self) -> list[bytes]:
        """Of all workers: node, slot and snapshot, a line each. Raises `Unavailable`."""
        found: list[bytes] = await self._store.script("leases", [f"{self._keys}:all"], [f"{self._keys}:lease:"])
        return found

    def _beat_once(self) -> None:
        """Beat, unless a beat is under way."""
        if not self._beating:
            self._beating = True
            self._hub.spawn(self._beat())

    async def _beat(self) -> None:
        try:
            while not await self._renew():
                self._be_reborn()
        finally:
            self._beating = False

    async def _renew(self) -> bool:
        """Renew the lease, and look after those who have lost theirs. Returns False when this one was buried."""
        self._beats += 1
        sent = time.monotonic()
        slots = self._slots if sent - self._began < PATIENCE_SECONDS else SPARE_SLOTS
        self._told = self._state()
        keys = ("all", "dead", "reign", f"rooms:{self.incarnation}", "refused-revision")
        try:
            answer = await self._store.script(
                "beat",
                [f"{self._keys}:{key}" for key in keys],
                [
                    f"{self._keys}:lease:",
                    self.incarnation,
                    self.node,
                    int(LEASE_SECONDS * 1000),
                    self.slot,
                    slots,
                    orjson.dumps(self._snapshot()),
                ],
            )
        except TocsinError:
            self._beaten = -math.inf
            self._presence.suspend()
            return True
        if answer == b"DEAD":
            return False
        slot, _, others, lapsed, new, revision, reign = answer
        self._hub.spawn(self._refusals.compare(revision))
        self.slot = int(slot)
        self._others = {int(other) for other in others if other >= 0}
        if sent - self._beaten > LEASE_SECONDS:
            self._good_since = sent
        self._beaten = sent
        if reign != self._reign:
            if self._reign is not None:
                self._presence.doubt()
            self._reign = reign
        # The lease began when the store had the beat, which was no sooner than it was sent.
        self._presence.trust(sent + LEASE_SECONDS)
        if new and self._beats > 1:
            self._presence.assert_all()
        if sent - self._good_since >= LEASE_SECONDS:
            self._reaper.look([incarnation.decode() for incarnation in lapsed], self.incarnation)
        return True

    def _be_reborn(self) -> None:
        """Others took this worker for dead and have removed its members: it stood still, or was cut off."""
        log.error("this worker was declared dead: it goes on under another incarnation", incarnation=self.incarnation)
        self.incarnation = f"{self.node}-{secrets.token_hex(8)}"
        self._beaten = -math.inf
        self._presence.reincarnate(self.incarnation)
        self._roster.abort_silent()
        for channel in list(self._hub.channels.values()):
            self._hub.resync(channel)

    def _sample(self) -> None:
        now = self._loop.time()
        self.lag.add(max(0.0, now - self._sample_due))
        self._sample_due = now + LAG_SECONDS
        self._sampler = self._loop.call_at(self._sample_due, self._sample)
        self._tell_change()

    def _tell_change(self) -> None:
        """Beat out of turn when the store has come into reach, and when this worker has become ready or has ceased to
        be: the first brings the revocations, of the second the others hear.
        """
        state = self._state()
        if state != self._told and not self._beating:
            self._told = state
            if state[0]:
                self._beat_once()

    def _state(self) -> tuple[bool, bool]:
        """Whether the store can be used, and whether this worker is ready."""
        return not self._store.problems(), not self.problems()
