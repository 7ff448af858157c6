"""The scenarios: what happens to a crowd, and what must come out of it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from app.terminal.load import Load, Outcome, Plan
from app.terminal.remote import Remote
from tests.integration.test_serve import Tocsin
from tests.stage.redis import RedisServer
from tests.stage.service import until


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of it.

    Attributes:
        clients: that listen.
        seconds: for which is published.
        drain: `TOCSIN_DRAIN_SECONDS` (restart).
        workers: of the service.
    """

    clients: int
    seconds: float
    drain: float = 0.5
    workers: int = 2


async def jitter(scale: Scale) -> Outcome:
    """Two messages a second into one channel; every connection is cut about every 15 s and resumes."""
    plan = Plan(scale.clients, 1, 2.0, ("jitter",), scale.seconds, 128, cut=15.0 * min(1.0, scale.seconds / 60))
    async with _served(scale) as service:
        return await _run(Load(Remote.read(service.url), plan))


async def restart(scale: Scale) -> Outcome:
    """All workers are stopped by SIGTERM and started again, as a process manager does it; two messages a second."""
    plan = Plan(scale.clients, 1, 2.0, ("restart",), scale.seconds, 128)
    async with _served(scale) as service:
        load = Load(Remote.read(service.url), plan)
        restarting = asyncio.create_task(_restart(service, load))
        outcome = await _run(load)
        await restarting
        return outcome


async def _restart(service: Tocsin, load: Load) -> None:
    await _until(lambda: load.outcome.delivered >= 2 * load.plan.connections, "everybody has heard something")
    service.process.terminate()
    await asyncio.to_thread(service.process.wait, 60)
    service.start()


async def _run(load: Load) -> Outcome:
    await load.run()
    return load.outcome


async def _until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


@asynccontextmanager
async def _served(scale: Scale) -> AsyncIterator[Tocsin]:
    with tempfile.TemporaryDirectory() as folder, RedisServer() as store:
        drain = f"{scale.drain:g}"
        service = Tocsin(Path(folder), workers=scale.workers, redis_url=store.url, drain_seconds=drain)
        try:
            service.start()
            await asyncio.to_thread(until, service.all_ready, 60, "readiness of all workers")
            yield service
        finally:
            await asyncio.to_thread(service.kill)
