"""The scenarios: what happens to a crowd, and what must come out of it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.terminal.load import Load, Outcome, Plan
from app.terminal.remote import Remote
from tests.integration.test_serve import Tocsin
from tests.stage.redis import RedisServer
from tests.stage.service import until

RATE = 2.0
"""Messages a second."""
SETTLE = 60.0
"""Seconds for the last ones to return: on a busy machine a start takes long."""
CUT = 15.0
"""Seconds for which a connection lasts in the jitter, about."""

Goal = tuple[str, str, bool]
"""What is asked, what was found, whether that is enough."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of it.

    Attributes:
        clients: that listen.
        seconds: for which is published.
        cut: seconds for which a connection lasts (jitter).
        drain: `TOCSIN_DRAIN_SECONDS` (restart).
        late: seconds that p99 may have (jitter).
        fullest: share of the returns that the fullest second may have (restart).
    """

    clients: int
    seconds: float
    cut: float = CUT
    drain: float = 0.5
    late: float = 3.0
    fullest: float = 0.1


@dataclass(frozen=True, slots=True)
class Scene:
    """A scenario.

    Attributes:
        play: runs it.
        whole: as it is meant.
        small: for `make test`.
        goals: beyond that everybody is whole.
    """

    title: str
    play: Callable[[Scale], Coroutine[Any, Any, Outcome]]
    whole: Scale
    small: Scale
    goals: Callable[[Scale, Outcome], Iterator[Goal]]

    def judge(self, scale: Scale, outcome: Outcome) -> Iterator[Goal]:
        """All goals."""
        expected = outcome.delivered + outcome.missing
        share = outcome.delivered / expected if expected else 0.0
        words = f"{share:.2%} of {expected:,}; {outcome.missing:,} missing, {outcome.duplicates:,} twice, "
        words += f"{outcome.reordered:,} out of order, {outcome.gaps:,} gaps"
        yield "delivered in order to everybody", words, outcome.whole and bool(outcome.delivered)
        answered = f"{outcome.published:,} acknowledged, {outcome.unknown:,} unknown, {len(outcome.refused):,} refused"
        yield "published", answered, not outcome.unknown and not outcome.refused
        yield from self.goals(scale, outcome)


async def _jitter(scale: Scale) -> Outcome:
    async with _served(scale) as service:
        return await jitter(scale, service.url)


async def jitter(scale: Scale, url: str) -> Outcome:
    """The scenario on a service that is there."""
    load = Load(Remote.read(url), Plan(scale.clients, 1, RATE, ("jitter",), scale.seconds, 128, scale.cut, SETTLE))
    await load.run()
    return load.outcome


def _jitter_goals(scale: Scale, outcome: Outcome) -> Iterator[Goal]:
    cuts = len(outcome.losses) / scale.clients
    yield "connections were cut", f"{len(outcome.losses):,} times, {cuts:.1f} a client", cuts > 0.5
    found = ", ".join(f"{name} {value:,.0f} ms" for name, value in outcome.way.summary().items())
    yield f"p99 below {scale.late:g} s", found, outcome.way.quantile(0.99) < scale.late


async def _restart(scale: Scale) -> Outcome:
    plan = Plan(scale.clients, 1, RATE, ("restart",), scale.seconds, 128, settle=SETTLE)
    async with _served(scale) as service:
        load = Load(Remote.read(service.url), plan)
        stopping = asyncio.create_task(_stop_and_start(service, load))
        await load.run()
        await stopping
        return load.outcome


async def _stop_and_start(service: Tocsin, load: Load) -> None:
    """As a process manager does it: SIGTERM, and again as soon as it has ended."""
    async with asyncio.timeout(60):
        while load.outcome.delivered < load.plan.connections:
            await asyncio.sleep(0.02)
    service.process.terminate()
    await asyncio.to_thread(service.process.wait, 60)
    service.start()


def _restart_goals(scale: Scale, outcome: Outcome) -> Iterator[Goal]:
    back = f"{len(outcome.returns):,} returns of {len(outcome.losses):,} losses, {scale.clients:,} clients"
    yield "everybody is back", back, len(outcome.returns) == len(outcome.losses) >= scale.clients
    lasted = max(outcome.returns, default=0.0) - min(outcome.returns, default=0.0)
    share = f"{outcome.fullest_second:.1%} of the returns, which lasted {lasted:.0f} s"
    yield f"at most {scale.fullest:.0%} in a second", share, outcome.fullest_second <= scale.fullest


@asynccontextmanager
async def _served(scale: Scale) -> AsyncIterator[Tocsin]:
    """Two workers on a Redis that outlives them."""
    with tempfile.TemporaryDirectory() as folder, RedisServer() as store:
        drain = f"{scale.drain:g}"
        service = Tocsin(Path(folder), workers=2, redis_url=store.url, drain_seconds=drain)
        try:
            service.start()
            await asyncio.to_thread(until, service.all_ready, 60, "readiness of all workers")
            yield service
        finally:
            await asyncio.to_thread(service.kill)


SCENES = {
    "jitter": Scene(
        "2 messages a second into one channel, each connection cut about every 15 s",
        _jitter,
        Scale(2000, 60),
        Scale(60, 5, cut=2.0),
        _jitter_goals,
    ),
    "restart": Scene(
        "all workers are stopped by SIGTERM and started again, with 20 s to drain",
        _restart,
        Scale(1000, 60, drain=20.0),
        Scale(40, 5, drain=1.0, fullest=1.0),
        _restart_goals,
    ),
}
