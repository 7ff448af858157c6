"""A load test of any service, with the client as its users have it: many connections that listen, some that publish.

Everything runs in one loop of one process, so one clock measures the way of a message from the moment at which it was
due to be published to each of its listeners. What the loop itself adds is measured too: a test that does not know its
own limit measures itself.
"""

from __future__ import annotations

import asyncio
import gc
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import tocsin
from app.exits import Exit
from app.terminal.latencies import Latencies
from app.terminal.remote import Failed, Remote
from tocsin import Change, Client, Gap, Message, PublishTimeout, State, TocsinError

AT_ONCE = 64
"""Connections that are opened at the same time."""
CONNECT_SECONDS = 15.0
"""For the first ones; 100 more a second are expected at least."""
LAG_SECONDS = 0.02
LAG_LIMIT, BUSY_LIMIT = 0.05, 0.9
"""Beyond these (seconds of lag at p99, share of a core) it is the generator that is measured."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done.

    Attributes:
        connections: that listen, each to one channel.
        publishers: connections that publish.
        rate: messages a second, of all publishers together.
        channels: names, used in turn.
        seconds: for which is published.
        size: bytes of a message as JSON, about; a message without padding has some 60.
        cut: each connection is cut about every so many seconds, as a bad network would; None: never.
        settle: seconds for what is still on its way after the last message.
    """

    connections: int
    publishers: int
    rate: float
    channels: tuple[str, ...]
    seconds: float
    size: int
    cut: float | None = None
    settle: float = 15.0


@dataclass(slots=True, eq=False)
class Ear:
    """One connection that listens.

    Attributes:
        seen: messages of this run.
        at: epoch and offset of the last one.
    """

    channel: str
    client: Client | None = None
    seen: int = 0
    at: tuple[str, int] = ("", -1)


@dataclass(slots=True)
class Outcome:
    """What was seen.

    Attributes:
        connected: connections that were ready before the first message.
        began: when the first message was due, by the monotonic clock.
        seconds: from then to the end of publishing.
        ids: of the messages that are in the log for all we know, by channel and number.
        refused: publishes by the error's code.
        unknown: publishes without an answer.
        delivered: messages, to all ears together.
        missing: that an ear did not get though they are in the log.
        duplicates: numbers that are in the log twice.
        reordered: messages that did not come after the one before them.
        gaps: that ears were told of.
        ended: why ears ended early, by sentence.
        losses: when connections were lost, and
        returns: when they were back, both by the monotonic clock.
        way: from due to delivered.
        answers: from due to acknowledged.
        lag: of the generator's loop.
        busy: share of a core that the generator used.
        interrupted: it was ended early.
    """

    connected: int = 0
    began: float = 0.0
    seconds: float = 0.0
    ids: dict[str, dict[int, str | None]] = field(default_factory=dict)
    published: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    unknown: int = 0
    delivered: int = 0
    missing: int = 0
    duplicates: int = 0
    reordered: int = 0
    gaps: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    losses: list[float] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    way: Latencies = field(default_factory=Latencies)
    answers: Latencies = field(default_factory=Latencies)
    lag: Latencies = field(default_factory=Latencies)
    busy: float = 0.0
    interrupted: bool = False

    @property
    def whole(self) -> bool:
        """Whether everybody got everything once and in order."""
        return not (self.missing or self.duplicates or self.reordered or self.gaps or self.ended)

    @property
    def limited(self) -> bool:
        """Whether the generator was too busy for its own figures."""
        return self.busy > BUSY_LIMIT or self.lag.quantile(0.99) > LAG_LIMIT

    @property
    def fullest_second(self) -> float:
        """The largest share of all returns that one second had."""
        seconds = Counter(int(moment - self.began) for moment in self.returns)
        return max(seconds.values()) / len(self.returns) if self.returns else 0.0

    def summary(self) -> dict[str, Any]:
        """For JSON; latencies in milliseconds."""
        return {
            "connected": self.connected,
            "seconds": round(self.seconds, 1),
            "published": self.published,
            "refused": dict(self.refused),
            "unknown": self.unknown,
            "delivered": self.delivered,
            "deliveries_per_second": round(self.delivered / self.seconds) if self.seconds else 0,
            "missing": self.missing,
            "duplicates": self.duplicates,
            "reordered": self.reordered,
            "gaps": self.gaps,
            "ended": dict(self.ended),
            "reconnects": len(self.returns),
            "fullest_second_of_reconnects": round(self.fullest_second, 4),
            "delivery_ms": self.way.summary(),
            "acknowledgement_ms": self.answers.summary(),
            "generator": {"lag_ms": self.lag.summary(), "busy": round(self.busy, 2), "limited": self.limited},
            "interrupted": self.interrupted,
        }


class Load:
    """One run of a plan.

    Attributes:
        outcome: so far.
        open: connections that listen now.
    """

    def __init__(self, remote: Remote, plan: Plan, chance: random.Random | None = None) -> None:
        self.plan = plan
        self.outcome = Outcome()
        self.open = 0
        self._remote = remote
        self._chance = chance or random.Random()  # noqa: S311 - when to cut is no secret
        self._run = secrets.token_hex(4)
        self._ears = [Ear(plan.channels[number % len(plan.channels)]) for number in range(plan.connections)]
        self._speakers: list[Client] = []
        self._hearing: set[asyncio.Task[None]] = set()
        self._publishing: set[asyncio.Task[None]] = set()
        self._cuts: set[asyncio.TimerHandle] = set()
        self._reason = "no answer"
        self.outcome.ids = {channel: {} for channel in plan.channels}

    async def run(self) -> None:
        """Connect, publish, wait until all is delivered, close. May be cancelled: `outcome` then has what was seen.

        Raises:
            Failed: nobody could connect, or listen, or publish.
        """
        try:
            await self._connect()
            gc.collect()
            gc.freeze()
            await self._measure()
        except asyncio.CancelledError:
            self.outcome.interrupted = True
            raise
        finally:
            self._judge()
            await self._close()

    async def _connect(self) -> None:
        gate = asyncio.Semaphore(AT_ONCE)
        opening = [asyncio.create_task(self._open(ear, gate)) for ear in self._ears]
        opening += [asyncio.create_task(self._open(None, gate)) for _ in range(self.plan.publishers)]
        try:
            patience = CONNECT_SECONDS + len(opening) / 100
            _, late = await asyncio.wait(opening, timeout=patience, return_when=asyncio.FIRST_EXCEPTION)
        except asyncio.CancelledError:
            late = set(opening)
            raise
        finally:
            for task in opening:
                task.cancel()
            results = await asyncio.gather(*opening, return_exceptions=True)
        self.outcome.connected = sum(result is None for result in results) - len(self._speakers)
        for result in results:
            if isinstance(result, TocsinError):
                raise Failed(*self._remote.judge(result))
            if isinstance(result, Exception):
                raise result
        if late and (not self.outcome.connected or not self._speakers):
            raise Failed(Exit.UNREACHABLE, f"{self._remote.http} cannot be reached: {self._reason}")

    async def _open(self, ear: Ear | None, gate: asyncio.Semaphore) -> None:
        async with gate:
            remote = self._remote
            tell = self._watch(ear)
            client = await tocsin.connect(
                remote.socket, token=remote.token, api_key=remote.api_key, on_state=tell, queue=10_000
            )
            if ear is None:
                self._speakers.append(client)
                return
            ear.client = client
            room = await client.subscribe(ear.channel)
            task = asyncio.create_task(self._hear(ear, room))
            self._hearing.add(task)

    def _watch(self, ear: Ear | None) -> Callable[[Change], None]:
        """What to do with an ear's, or a speaker's, changes of state."""
        outcome, was_open = self.outcome, False

        def tell(change: Change) -> None:
            nonlocal was_open
            if change.state is State.WAITING:
                self._reason = change.reason
            if ear is None or change.state is State.CONNECTING or outcome.interrupted:
                return
            now = time.monotonic()
            if change.state is State.OPEN:
                self.open += 1
                if ear.client is not None:
                    outcome.returns.append(now)
            elif was_open:
                self.open -= 1
                if change.state is State.WAITING:
                    outcome.losses.append(now)
            was_open = change.state is State.OPEN

        return tell

    async def _hear(self, ear: Ear, room: tocsin.Room) -> None:
        outcome, run, clock = self.outcome, self._run, time.monotonic
        ids = outcome.ids[ear.channel]
        try:
            async for event in room:
                if isinstance(event, Gap):
                    outcome.gaps += 1
                if not isinstance(event, Message) or not isinstance(event.data, dict) or event.data.get("run") != run:
                    continue
                outcome.way.add(clock() - event.data["due"])
                outcome.delivered += 1
                self._note(ids, event.data["n"], event.id)
                ear.seen += 1
                if event.id is not None:
                    epoch, _, offset = event.id.rpartition("-")
                    at = (epoch, int(offset))
                    outcome.reordered += at[0] == ear.at[0] and at[1] <= ear.at[1]
                    ear.at = at
        except TocsinError as error:
            outcome.ended[error.message] += 1

    def _note(self, ids: dict[int, str | None], number: int, position: str | None) -> None:
        """A message is in the log, by this id. Another one than before: it was published twice."""
        self.outcome.duplicates += ids.setdefault(number, position) != position

    async def _measure(self) -> None:
        plan, outcome, loop = self.plan, self.outcome, asyncio.get_running_loop()
        outcome.began, worked = time.monotonic(), time.process_time()
        sampling = asyncio.create_task(self._sample())
        try:
            if plan.cut is not None:
                for ear in self._ears:
                    self._cut_later(ear, loop)
            await self._publish_all()
        finally:
            outcome.seconds = time.monotonic() - outcome.began
            outcome.busy = (time.process_time() - worked) / outcome.seconds
            sampling.cancel()
            for cut in self._cuts:
                cut.cancel()
        if self._publishing:
            await asyncio.wait(self._publishing, timeout=plan.settle)
        for _ in range(round(plan.settle / LAG_SECONDS)):
            if self._all_heard():
                break
            await asyncio.sleep(LAG_SECONDS)

    async def _publish_all(self) -> None:
        plan, outcome = self.plan, self.outcome
        for number in range(round(plan.rate * plan.seconds)):
            due = outcome.began + number / plan.rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if due > outcome.began + plan.seconds:
                break
            speaker = self._speakers[number % len(self._speakers)]
            task = asyncio.create_task(self._publish(speaker, number, due))
            self._publishing.add(task)
            task.add_done_callback(self._publishing.discard)
        await asyncio.sleep(max(0.0, outcome.began + plan.seconds - time.monotonic()))

    async def _publish(self, speaker: Client, number: int, due: float) -> None:
        channel = self.plan.channels[number % len(self.plan.channels)]
        data = {"run": self._run, "n": number, "due": due, "pad": ""}
        data["pad"] = "x" * max(0, self.plan.size - 60)
        try:
            ack = await speaker.publish(channel, data, timeout=self.plan.seconds + self.plan.settle)
        except PublishTimeout:
            self.outcome.unknown += 1
        except TocsinError as error:
            self.outcome.refused[error.code] += 1
        else:
            self.outcome.published += 1
            self.outcome.answers.add(time.monotonic() - due)
            self._note(self.outcome.ids[channel], number, ack.id)

    def _cut_later(self, ear: Ear, loop: asyncio.AbstractEventLoop) -> None:
        """Half to one and a half of the given time from now."""
        assert self.plan.cut is not None

        def cut() -> None:
            self._cuts.discard(handle)
            if ear.client is not None:
                ear.client.cut()
            self._cut_later(ear, loop)

        handle = loop.call_later(self.plan.cut * (0.5 + self._chance.random()), cut)
        self._cuts.add(handle)

    async def _sample(self) -> None:
        while True:
            due = time.monotonic() + LAG_SECONDS
            await asyncio.sleep(LAG_SECONDS)
            self.outcome.lag.add(max(0.0, time.monotonic() - due))

    def _all_heard(self) -> bool:
        return all(ear.seen >= len(self.outcome.ids[ear.channel]) for ear in self._ears if ear.client is not None)

    def _judge(self) -> None:
        counts = {channel: len(ids) for channel, ids in self.outcome.ids.items()}
        heard = [ear for ear in self._ears if ear.client is not None]
        self.outcome.missing = sum(max(0, counts[ear.channel] - ear.seen) for ear in heard)

    async def _close(self) -> None:
        for task in self._publishing:
            task.cancel()
        clients = [*self._speakers, *(ear.client for ear in self._ears if ear.client is not None)]
        await asyncio.gather(*self._publishing, *(client.close() for client in clients), return_exceptions=True)
        await asyncio.gather(*self._hearing)
