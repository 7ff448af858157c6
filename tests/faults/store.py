"""Faults of the store: emptied, killed, its tail cut off, frozen, out of reach, full, robbed of single keys."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.faults.clients import Crowd, Reader
from tests.faults.record import Ended, Record, Told
from tests.faults.scene import Fault, Scene, Terms

EVERYSEC = Terms(store=(("appendonly", "yes"), ("appendfsync", "everysec"), ("aof_use_rdb_preamble", "no")))
ALWAYS = Terms(
    store=(("appendonly", "yes"), ("appendfsync", "always"), ("aof_use_rdb_preamble", "no")),
    settings=(("ack", "fsynced"),),
)
VEILED = Terms(veiled=True)
ALONE = Terms(workers=1)


def told(reader: Reader) -> bool:
    """Whether it has been told of a loss."""
    return any(isinstance(event, Told) or event == Ended(4510) for event in reader.events)


async def flushall(scene: Scene) -> None:
    """Everything in Redis is deleted."""
    idle, busy = (scene.channel(may_lose=True, forgiven=frozenset({"diverged"})) for _ in range(2))
    sleepers = await scene.read(idle, 4, 2)
    await scene.hand(idle).run(0.0, 5)
    await scene.whole(idle, 5, what="before")
    awake = await scene.read(busy, 4, 2)
    scene.write(busy, 3, pause=0.01)
    await scene.tried(busy, 100)
    scene.ground.command("FLUSHALL")
    took = await scene.until(lambda: all(map(told, awake)), 10, "a busy channel is told")
    scene.note("busy: told after, s", took, 1)
    if not scene.small:
        for _ in range(4):
            await asyncio.sleep(scene.chance.uniform(0.2, 1))
            scene.ground.command("FLUSHALL")
    took = await scene.until(lambda: all(map(told, sleepers)), 20, "an idle channel is told")
    scene.note("idle: told after, s", took, 20)


def cut_tail(folder: Path, size: int) -> None:
    """Shorten the append-only file, as a loss of power would: what had not been synced is gone.

    A transaction that the cut has opened is removed whole, as `redis-check-aof --fix` does. Redis 7.0 ignores one when
    it loads, but leaves its beginning in the file, and at the next start runs it before what was appended later
    (valkey-io/valkey pull request 4342): that rewrites history, and no service can see it.
    """
    path = _tail(folder)
    kept = path.read_bytes()[:size]
    opened = kept.rfind(b"*1\r\n$5\r\nMULTI\r\n")
    if opened >= 0 and b"*1\r\n$4\r\nEXEC\r\n" not in kept[opened:]:
        size = opened
    with path.open("r+b") as file:
        file.truncate(size)


def _tail(folder: Path) -> Path:
    return next(path for path in folder.rglob("*.aof") if "base" not in path.name)


async def _kill_store(scene: Scene, times: int, *, power: bool) -> None:
    redis = scene.ground.redis
    for _ in range(times):
        await asyncio.sleep(scene.chance.uniform(0.3, 0.9))
        synced = _tail(redis.folder).stat().st_size
        await asyncio.sleep(scene.chance.uniform(0.1, 0.6))
        await asyncio.to_thread(redis.kill)
        if power:
            cut_tail(redis.folder, scene.chance.randint(synced, _tail(redis.folder).stat().st_size))
        await asyncio.sleep(scene.chance.uniform(0.0, 0.4))
        await asyncio.to_thread(redis.start)
        await scene.ground.ready()


async def _under_load(scene: Scene, record: Record) -> None:
    await scene.read(record, scene.scale(8, 30), 2)
    away = await scene.read(record, scene.scale(3, 10))
    scene.write(record, 4, 2, pause=0.008)
    await scene.tried(record, 50)
    for reader in away:
        reader.drop()


async def everysec(scene: Scene) -> None:
    """Redis is killed; with `everysec` the process's death loses nothing that the kernel has."""
    record = scene.channel(may_lose=True)
    await _under_load(scene, record)
    await _kill_store(scene, scene.share(1, 20), power=False)


async def power(scene: Scene) -> None:
    """The machine loses power under `everysec`: the tail of the append-only file is gone."""
    record = scene.channel(may_lose=True)
    await _under_load(scene, record)
    await _kill_store(scene, scene.share(2, 20), power=True)


async def always(scene: Scene) -> None:
    """Redis is killed under `appendfsync always`."""
    record = scene.channel()
    await _under_load(scene, record)
    await _kill_store(scene, scene.share(2, 50), power=False)
    scene.expect(record.resets() == 0, f"{record.resets()} resets")


async def pubsub(scene: Scene) -> None:
    """The reader's connection is killed again and again under load."""
    record = scene.channel()
    await scene.read(record, scene.scale(8, 20), 2)
    scene.write(record, 5, pause=0.01)
    for _ in range(scene.share(3, 12)):
        await asyncio.sleep(scene.scale(1, 5) * scene.chance.uniform(0.3, 1))
        scene.ground.command("CLIENT", "KILL", "TYPE", "pubsub")
        took = await scene.whole(record, 10)
        scene.expect(took <= 2, f"whole after {took:.2f} s")
    scene.expect(record.resets() == 0, f"{record.resets()} resets")


async def _out_of_reach(scene: Scene, begin: Callable[[], None], end: Callable[[], None], seconds: float) -> None:
    record = scene.channel()
    readers = await scene.read(record, 6, 2)
    hand = scene.hand(record)
    await hand.run(0.0, 10)
    scene.write(record, 2, pause=0.02)
    ends = sum(len(reader.ends) for reader in readers)
    begin()
    started = time.monotonic()
    try:
        record.tried("into the void")
        scene.expect(await hand.attempt("into the void", "into-the-void-00001") is None, "a publish was not refused")
        scene.note("refused after, s", time.monotonic() - started, 2.3)
        await scene.ground.unready()
        scene.note("not ready after, s", time.monotonic() - started, 5)
        await asyncio.sleep(max(0.0, seconds - (time.monotonic() - started)))
    finally:
        end()
    scene.note("as before after, s", await scene.whole(record, 15), 5)
    scene.expect(sum(len(reader.ends) for reader in readers) == ends, "readers lost their connections")
    scene.expect(record.resets() == 0, f"{record.resets()} resets")


async def frozen(scene: Scene) -> None:
    """Redis stands still."""
    redis = scene.ground.redis
    await _out_of_reach(
        scene, lambda: redis.signal(signal.SIGSTOP), lambda: redis.signal(signal.SIGCONT), scene.span(4, 30)
    )


async def half_open(scene: Scene) -> None:
    """The network between service and Redis drops everything, and TCP looks fine."""
    veil = scene.ground.veil
    assert veil is not None

    def freeze(state: bool) -> None:
        veil.frozen = state

    await _out_of_reach(scene, lambda: freeze(True), lambda: freeze(False), scene.span(4, 30))


async def deaf(scene: Scene) -> None:
    """Everything works but the telling: the reader's connection is up and brings nothing."""
    veil = scene.ground.veil
    assert veil is not None
    record = scene.channel()
    await scene.read(record, 6, 2)
    scene.write(record, 3, pause=0.01)
    await asyncio.sleep(0.5)
    veil.deaf = True
    started = time.monotonic()
    try:
        await scene.ground.unready()
        scene.note("not ready after, s", time.monotonic() - started, 10)
    finally:
        veil.deaf = False
    await scene.whole(record, 15)


async def swallowed(scene: Scene) -> None:
    """Redis takes a publish and its reply is lost: unknown to the worker, which never repeats it; the client does."""
    veil = scene.ground.veil
    assert veil is not None
    record = scene.channel()
    await scene.read(record, 4, 1)
    hand = scene.hand(record)
    times, before = scene.share(4, 200), veil.swallowed
    for number in range(times):
        answer = await hand.publish(f"heard {number}")
        assert answer is not None
        epoch = answer.id.rpartition("-")[0]
        veil.swallow = f"\r\n{epoch}-".encode()
        await hand.publish(f"swallowed {number}")
        await scene.ground.ready()
    veil.swallow = None
    scene.note("replies swallowed", veil.swallowed - before)
    scene.expect(veil.swallowed > before, "no reply was swallowed")


async def full(scene: Scene) -> None:
    """Redis refuses to take more memory: publishes are refused whole, and it recovers by itself."""
    record = scene.channel()
    await scene.read(record, 6, 2)
    writers = scene.write(record, 3, 1, pause=0.01)
    for _ in range(scene.share(2, 10)):
        await asyncio.sleep(0.3)
        refused = sum(writer.refused for writer in writers)
        scene.ground.command("CONFIG", "SET", "maxmemory", "1")
        await asyncio.sleep(0.4)
        scene.ground.command("CONFIG", "SET", "maxmemory", "0")
        scene.expect(sum(writer.refused for writer in writers) > refused, "nothing was refused")
    await scene.whole(record, 5)
    scene.expect(record.resets() == 0, f"{record.resets()} resets")


async def disk_full(scene: Scene) -> None:
    """The append-only file cannot grow: publishes are refused whole, and it recovers by itself."""
    record = scene.channel()
    redis = scene.ground.redis
    await scene.read(record, 6, 2)
    writers = scene.write(record, 3, 1, pause=0.01)
    for _ in range(scene.share(1, 10)):
        await asyncio.sleep(0.3)
        refused = sum(writer.refused for writer in writers)
        redis.limit_files(_tail(redis.folder).stat().st_size + scene.chance.randint(0, 3000))
        await scene.until(lambda: sum(one.refused for one in writers) > refused, 10, "something is refused")  # noqa: B023
        await asyncio.sleep(scene.chance.uniform(0.1, 0.5))
        redis.limit_files()
        answered = len(record.acknowledged)
        await scene.until(lambda: len(record.acknowledged) > answered + 20, 10, "it recovers")  # noqa: B023
    await scene.whole(record, 5)
    scene.expect(record.resets() == 0, f"{record.resets()} resets")


async def deleted(scene: Scene) -> None:
    """Meta, log and scripts are deleted by hand, under load and while some are away."""
    kinds = {
        "meta": scene.channel(may_lose=True, forgiven=frozenset({"diverged"})),
        "log": scene.channel(may_lose=True, forgiven=frozenset({"expired"})),
        "scripts": scene.channel(),
    }
    for record in kinds.values():
        await scene.read(record, 4, 1)
        scene.write(record, 2, pause=0.02)
    for _ in range(scene.share(2, 10)):
        gone = scene.chance.sample([reader for reader in scene.readers if reader.native], 4)
        for reader in gone:
            reader.leave()
        await asyncio.sleep(scene.chance.uniform(0.3, 0.6))
        for kind, record in kinds.items():
            if kind == "scripts":
                scene.ground.command("SCRIPT", "FLUSH")
            else:
                scene.ground.command("DEL", f"tocsin:{{{record.channel}}}:{kind}")
        await asyncio.sleep(0.2)
        for reader in gone:
            reader.come_back()
    for kind, record in kinds.items():
        await scene.whole(record, 5, what=f"{kind}: whole")
    scene.expect(kinds["scripts"].resets() == 0, "lost scripts reset somebody")


async def resubscribe(scene: Scene) -> None:
    """One worker hears many channels when its reader's connection is killed."""
    count, service = scene.scale(2_000, 50_000), scene.ground.service
    names = [f"many:{scene.seed}:{number}" for number in range(count)]
    crowds = [Crowd(f"ws://127.0.0.1:{service.port}/ws", names[part::10]) for part in range(10)]
    try:
        async with asyncio.timeout(120):
            await asyncio.gather(*(crowd.subscribed.wait() for crowd in crowds))
        asked, calls = _asked(scene), _calls(scene)
        scene.ground.command("CLIENT", "KILL", "TYPE", "pubsub")
        started = time.monotonic()
        looks = 0
        while _asked(scene) < asked + count and time.monotonic() - started < 20:
            looks += 1
            await asyncio.sleep(0.1)  # each look takes the CPU of all three
        scene.note("all have asked after, s", time.monotonic() - started, 2)
        # Each look at the metrics reads the leases of all workers, by a script.
        scene.note("commands", _calls(scene) - calls - looks - 1, 200)
        sample = scene.chance.sample(names, 20)
        body = {"messages": [{"channel": name, "data": "still there"} for name in sample]}
        async with httpx.AsyncClient(timeout=10) as client:
            (await client.post(f"{service.url}/api/v1/messages", json=body)).raise_for_status()
        await scene.until(lambda: set().union(*(crowd.heard for crowd in crowds)) == set(sample), 5, "all are heard")
    finally:
        for crowd in crowds:
            await crowd.stop()


def _asked(scene: Scene) -> float:
    return sum(scene.ground.service.metric("syncs_total").values())


def _calls(scene: Scene) -> int:
    """Commands that a worker has sent for its channels, those inside scripts not counted."""
    with scene.ground.redis.client() as client:
        stats = client.info("commandstats")
    return sum(int(stats.get(f"cmdstat_{name}", {}).get("calls", 0)) for name in ("subscribe", "eval", "evalsha"))


FAULTS = (
    Fault("flushall", "FLUSHALL", "busy channel told in 1 s, idle in 20 s", flushall),
    Fault("pubsub", "`CLIENT KILL TYPE pubsub` again and again under 500 msg/s", "whole in 2 s each, no reset", pubsub),
    Fault("full", "`maxmemory` with `noeviction`", "refused, never half done; recovers by itself", full),
    Fault("disk-full", "The disk is full, `everysec`", "refused, never half done; recovers", disk_full, EVERYSEC),
    Fault("deleted", "Meta, log, scripts deleted by hand", "told or whole, never stuck", deleted),
    Fault("frozen", "Redis stopped (SIGSTOP)", "refused in 2 s, not ready in 5 s, sockets stay, normal in 5 s", frozen),
    Fault("everysec", "Redis killed, `everysec`, under load", "silent 0, no false reset", everysec, EVERYSEC),
    Fault(
        "power", "Power lost, `everysec`: the tail is gone", "who saw a lost message is told, no other", power, EVERYSEC
    ),
    Fault(
        "always", "Redis killed, `always` and `fsynced`, under load", "acknowledged-lost 0, no reset", always, ALWAYS
    ),
    Fault("half-open", "Packets to Redis dropped, TCP looks fine", "as stopped", half_open, VEILED),
    Fault("deaf", "Subscribed, TCP fine, but deaf", "the probe finds it", deaf, VEILED),
    Fault("swallowed", "Redis takes a publish, its reply is lost", "one entry for each publish", swallowed, VEILED),
    Fault("resubscribe", "50,000 channels to resubscribe", "2 s, 200 commands at most", resubscribe, ALONE),
)
