"""What the contract suite plays with: a listener that writes down what it is told, and a broker on a stage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from app.brokers import WRITTEN, AckLevel
from app.brokers.redis import RedisBroker
from app.brokers.writer import Bounds
from app.core.errors import TocsinError
from app.core.messages import Attendance, ChannelRule, Cleared, Draft, Kind, Position, Publication, Published

RULES = (ChannelRule("volatile:*", history=0), ChannelRule("short:*", history=10), ChannelRule("*", history=1000))


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for a condition, with a deadline."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


class Ear:
    """A `Listener` that keeps everything, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.items: list[tuple[str, Publication | Cleared]] = []
        self.attendances: list[tuple[str, Attendance]] = []
        self.control: list[bytes] = []
        self.bursts = 0

    def confirmed(self, channel: str) -> None:
        self.events.append(channel)

    def received(self, channel: str, item: Publication | Cleared | Attendance) -> None:
        if isinstance(item, Attendance):
            self.attendances.append((channel, item))
        else:
            self.items.append((channel, item))

    def settled(self) -> None:
        """Not of interest here."""

    def drained(self) -> None:
        self.bursts += 1

    def told(self, message: bytes) -> None:
        self.control.append(message)

    def lost(self) -> None:
        self.events.append("lost!")

    def confirmed_since_loss(self) -> set[str]:
        """The channels that were confirmed after the last loss of the reader."""
        lost = max((at for at, event in enumerate(self.events) if event == "lost!"), default=-1)
        return set(self.events[lost + 1 :])

    def payloads(self, channel: str) -> list[bytes]:
        return [item.payload for name, item in self.items if name == channel and isinstance(item, Publication)]


class Stage:
    """A connected broker with its listener, and short ways to use it."""

    def __init__(self, broker: RedisBroker, ear: Ear) -> None:
        self.broker = broker
        self.ear = ear
        self.channels: set[str] = set()

    def send(
        self, channel: str, payload: bytes, *, key: str | None = None, ephemeral: bool = False
    ) -> asyncio.Future[Published | TocsinError]:
        """Publish; the future holds the outcome."""
        future: asyncio.Future[Published | TocsinError] = asyncio.get_running_loop().create_future()
        draft = Draft(channel, Kind.TEXT, payload, client="c1", key=key, ephemeral=ephemeral)
        self.broker.publish(draft, future.set_result)
        return future

    async def publish(self, channel: str, payload: bytes, *, key: str | None = None) -> Position:
        """Publish and insist that it was taken."""
        outcome = await self.send(channel, payload, key=key)
        assert isinstance(outcome, Published), outcome
        assert outcome.position is not None
        return outcome.position

    async def fill(self, channel: str, payloads: Sequence[bytes]) -> list[Position]:
        """Publish many in one turn."""
        outcomes = await asyncio.gather(*(self.send(channel, payload) for payload in payloads))
        positions = [outcome.position for outcome in outcomes if isinstance(outcome, Published)]
        assert len(positions) == len(payloads), outcomes
        return [position for position in positions if position is not None]

    async def subscribe(self, channel: str) -> None:
        """Subscribe and wait for the confirmation."""
        seen = self.ear.events.count(channel)
        self.broker.subscribe(channel)
        self.channels.add(channel)
        await until(lambda: self.ear.events.count(channel) > seen)

    async def reconnected(self) -> None:
        """Wait until all three connections were replaced and the broker has no problem."""
        await until(lambda: self.broker.counters().reconnects >= 3)
        await self.ready()

    async def ready(self) -> None:
        """Wait until the broker has no problem and every subscription is confirmed on the reader at hand."""
        await until(lambda: not self.broker.problems() and self.channels <= self.ear.confirmed_since_loss())


@asynccontextmanager
async def connected(
    url: str,
    prefix: str,
    *,
    deadline: float = 2.0,
    probe_seconds: float = 3.0,
    bounds: Bounds | None = None,
    ack: AckLevel = WRITTEN,
    ack_timeout: float = 2.0,
) -> AsyncIterator[Stage]:
    """A broker that is ready for service."""
    broker = RedisBroker(
        url,
        prefix,
        RULES,
        key_seconds=60,
        deadline=deadline,
        probe_seconds=probe_seconds,
        bounds=bounds,
        ack=ack,
        ack_timeout=ack_timeout,
    )
    ear = Ear()
    broker.start(ear, "inc1")
    stage = Stage(broker, ear)
    try:
        await stage.ready()
        yield stage
    finally:
        await broker.close()
