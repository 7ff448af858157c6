"""Faults of a primary with replicas: it dies, freezes, leads again, and goes on talking when another leads."""

from __future__ import annotations

import asyncio
import signal
import time

from tests.faults.record import Record
from tests.faults.scene import Fault, Scene, Terms

# A connection to a frozen primary is found dead by what it does not answer, and by the probe: 2 to 5 s.
WATCHED = Terms(store=(("appendonly", "yes"),), watched=1)
REPLICATED = Terms(store=(("appendonly", "yes"),), watched=2, settings=(("ack", "replicated:1"),))
PAIR = Terms(veiled=True, pair=True)
AWAY = frozenset({"diverged"})
"""Who stood on a message that this primary does not have is told so, though a later primary may have it again."""


async def _crowd(scene: Scene, *, may_lose: bool = True) -> Record:
    record = scene.channel(may_lose=may_lose, forgiven=AWAY if may_lose else frozenset())
    readers = await scene.read(record, scene.scale(8, 30), 2)
    scene.write(record, 3, 1, pause=0.01)
    await scene.tried(record, 50)
    for reader in readers[: len(readers) // 4]:
        reader.drop()
    return record


async def _flowing(scene: Scene, record: Record, count: int = 50) -> None:
    """Wait until so many messages more are acknowledged."""
    wanted = len(record.acknowledged) + count
    await scene.until(lambda: len(record.acknowledged) >= wanted, 30, "messages flow")


async def _replace(scene: Scene, record: Record, number: int, *, thaw: bool) -> None:
    watched = scene.ground.watched
    assert watched is not None
    await asyncio.to_thread(watched.wait_until_whole)
    old = watched.primary
    old.signal(number)
    started = time.monotonic()
    await asyncio.to_thread(watched.wait_for_another, old)
    await _flowing(scene, record)
    scene.note("messages flow again after, s", time.monotonic() - started)
    if thaw:
        old.signal(signal.SIGCONT)
    else:
        await asyncio.to_thread(old.kill)
        await asyncio.to_thread(old.start)  # as a primary, until the Sentinels see it
    await _flowing(scene, record, 100)


async def failover(scene: Scene) -> None:
    """The primary is killed, a replica is promoted, the old one returns as its replica."""
    record = await _crowd(scene)
    for _ in range(scene.share(1, 10)):
        await _replace(scene, record, signal.SIGKILL, thaw=False)


async def replicated(scene: Scene) -> None:
    """The same, when each message is acknowledged only once a replica has it."""
    record = await _crowd(scene, may_lose=False)
    for _ in range(scene.share(1, 10)):
        await _replace(scene, record, signal.SIGKILL, thaw=False)


async def thawed(scene: Scene) -> None:
    """The primary stands still, is replaced, and wakes up as the primary it was, until it is demoted."""
    record = await _crowd(scene)
    for _ in range(scene.share(1, 10)):
        await _replace(scene, record, signal.SIGSTOP, thaw=True)


async def leads_again(scene: Scene) -> None:
    """Another primary leads for a while, then the old one again, without a restart: with its own history, or after it
    has followed the other one.
    """
    ground, second = scene.ground, scene.ground.second
    assert second is not None
    record = await _crowd(scene)
    for number in range(scene.share(2, 20)):
        await asyncio.to_thread(second.follow, ground.redis)
        await _flowing(scene, record)
        second.lead()
        await _all_go_to(scene, record, second.port)
        if number % 2:
            await asyncio.to_thread(ground.redis.follow, second)
            ground.redis.lead()
        await _all_go_to(scene, record, ground.redis.port)
    await scene.ground.ready()


async def _all_go_to(scene: Scene, record: Record, port: int) -> None:
    veil = scene.ground.veil
    assert veil is not None
    veil.target = port
    veil.close()
    await _flowing(scene, record)


async def still_talks(scene: Scene) -> None:
    """Some connections follow a new primary while others stay with the old one, which goes on taking and telling; then
    all are with one of them.
    """
    ground, second = scene.ground, scene.ground.second
    veil = ground.veil
    assert veil is not None
    assert second is not None
    record = await _crowd(scene)
    for number in range(scene.share(2, 20)):
        await asyncio.to_thread(second.follow, ground.redis)
        await _flowing(scene, record)
        second.lead()
        veil.target = second.port
        for pipe in scene.chance.sample(veil.pipes, len(veil.pipes) // 2):
            pipe.cut()
        await _flowing(scene, record, 100)
        await _all_go_to(scene, record, second.port)
        if number % 2:
            await asyncio.to_thread(ground.redis.follow, second)
            ground.redis.lead()
        await _all_go_to(scene, record, ground.redis.port)
    await scene.ground.ready()


FAULTS = (
    Fault(
        "failover",
        "Sentinel failover under load (SIGKILL)",
        "one payload an id; acknowledged-lost counted",
        failover,
        WATCHED,
    ),
    Fault("thawed", "Sentinel failover (SIGSTOP), the old primary wakes up", "one payload an id", thawed, WATCHED),
    Fault(
        "replicated",
        "Sentinel failover under load, `replicated:1`, two replicas",
        "acknowledged-lost 0",
        replicated,
        REPLICATED,
    ),
    Fault(
        "leads-again",
        "An old primary leads again without a restart",
        "one payload an id",
        leads_again,
        PAIR,
    ),
    Fault("still-talks", "A demoted primary still talks to some", "one payload an id", still_talks, PAIR),
)
