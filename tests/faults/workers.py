"""Faults of workers, of the network before them, and of clients that behave badly."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import orjson
from websockets.asyncio.client import ClientConnection

from tests.faults.clients import Reader, open_socket
from tests.faults.record import Record
from tests.faults.scene import Fault, Scene, Terms
from tests.stage.frames import Peer, binary, request, text
from tests.stage.proxy import packet_loss

FOUR = Terms(workers=4)
STALE = 4.0
"""Seconds: the other workers' counts in /metrics are of their last beat."""
PINGING = Terms(workers=3, settings=(("ping_seconds", "1"), ("high_mark", "131072")), patience=120)


async def killed(scene: Scene) -> None:
    """One of four workers is killed under load."""
    record = scene.channel()
    readers = await scene.read(record, scene.scale(40, 400))
    scene.write(record, 3, 2, pause=0.01)
    for _ in range(scene.share(2, 20)):
        await asyncio.sleep(0.5)
        await _kill_one(scene, readers)
        await scene.ground.ready()


async def _kill_one(scene: Scene, readers: list[Reader]) -> None:
    ends = sum(len(reader.ends) for reader in readers)
    few = len(readers) // 100
    port = scene.chance.choice(readers).port
    victim = None if port is None else scene.ground.service.pid_serving(port)
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    started = time.monotonic()
    await scene.until(lambda: sum(len(reader.ends) for reader in readers) > ends, 5, "a worker's death is seen")
    await scene.until(lambda: sum(not reader.opened.is_set() for reader in readers) <= few, 10, "99 % are back")
    scene.note("99 % back after, s", time.monotonic() - started, 5)


async def stopped(scene: Scene) -> None:
    """A worker stands still for longer than its clients wait, and wakes up again."""
    record = scene.channel()
    readers = await scene.read(record, 16)
    writers = scene.write(record, 4, pause=0.02)
    await asyncio.sleep(0.5)
    port = readers[0].port
    assert port is not None
    victim = scene.ground.service.pid_serving(port)
    assert victim is not None
    on_victim = [one for one in readers if one.port and scene.ground.service.pid_serving(one.port) == victim]
    speaker = await _speaker(scene, record, victim)
    os.kill(victim, signal.SIGSTOP)
    started = time.monotonic()
    try:
        await speaker.send("said to a worker that stood still")  # in no attempt: heard, it would be a phantom
        await scene.until(
            lambda: all(reader.ends and reader.opened.is_set() for reader in on_victim), 15, "its clients have left"
        )
        scene.note("clients elsewhere after, s", time.monotonic() - started)
        await asyncio.sleep(max(0.0, scene.span(5, 60) - (time.monotonic() - started)))
    finally:
        os.kill(victim, signal.SIGCONT)
    await asyncio.wait_for(speaker.wait_closed(), 10)
    scene.expect(all(writer.unknown == 0 for writer in writers), "a publish was given up")
    await scene.ground.ready()


async def _speaker(scene: Scene, record: Record, worker: int) -> ClientConnection:
    """A plain socket of this worker."""
    service = scene.ground.service
    for _ in range(200):
        socket = await open_socket(service.ws(record.channel), native=False)
        if service.pid_serving(socket.local_address[1]) == worker:
            return socket
        await socket.close()
    raise TimeoutError("no connection came to this worker")


def _connections(scene: Scene) -> float:
    return sum(scene.ground.service.metric("connections").values())


async def _freed(scene: Scene, limit: float, what: str, held: Callable[[Scene], float] = _connections) -> None:
    started = last = time.monotonic()
    while time.monotonic() - last < STALE and time.monotonic() - started < limit + 10:
        if held(scene) > 0:
            last = time.monotonic()
        await asyncio.sleep(0.1)
    scene.note(what, last - started, limit)


async def half_open(scene: Scene) -> None:
    """Clients whose network is gone: they read nothing, say nothing, and never end their connections. Half of them are
    members of a room.
    """
    service = scene.ground.service
    native = request("/ws", extra="Sec-WebSocket-Protocol: tocsin.v1\r\n")
    join = text(orjson.dumps({"type": "subscribe", "channel": "half", "presence": {"info": {}}}).decode())
    peers: list[Peer] = []
    try:
        for number in range(scene.scale(40, 1000)):
            odd = number % 2
            handshake, behind = (native, join) if odd else (None, b"")
            peers.append(
                await asyncio.to_thread(Peer, service.port, "/ws?channel=half", handshake=handshake, behind=behind)
            )
        scene.expect(all(peer.status == 101 for peer in peers), "a handshake failed")
        scene.expect(_members(scene) > 0, "nobody is a member")
        await _freed(
            scene,
            15 if scene.small else 60,
            "slots and presence free after, s",
            lambda scene: _connections(scene) + _members(scene),
        )
    finally:
        for peer in peers:
            peer.reset()


def _members(scene: Scene) -> int:
    answer = scene.ground.service.get("/api/v1/channels/half/members", params={"limit": 1})
    return int(answer.raise_for_status().json()["count"])


async def never_reads(scene: Scene) -> None:
    """Peers that break the protocol and never read our close; some have stalled long before."""
    service = scene.ground.service
    native = request("/ws", extra="Sec-WebSocket-Protocol: tocsin.v1\r\n")
    quiet = [await asyncio.to_thread(Peer, service.port, handshake=native) for _ in range(scene.scale(10, 100))]
    stalled = [await asyncio.to_thread(Peer, service.port, "/ws?channel=flood", receive_buffer=4096) for _ in range(5)]
    try:
        for _ in range(60):
            await asyncio.to_thread(service.post, "flood", {"data": "x" * 60_000})
        for peer in quiet:
            peer.send(binary(b"native takes text"))
        for peer in stalled:
            peer.send(b"\xff" * 16)
        await _freed(scene, 15, "descriptors free after, s")
    finally:
        for peer in (*quiet, *stalled):
            peer.reset()


async def network(scene: Scene) -> None:
    """Everything arrives in slices of a few bytes, late, and connections are cut in the middle of frames."""
    record = scene.channel()
    front = scene.ground.front
    front.slices, front.delay = 7, 0.002
    try:
        readers = await scene.read(record, scene.scale(6, 20), 2, port=front.port)
        scene.write(record, 3, 1, pause=0.05, port=front.port)
        cuts = scene.share(15, 500)
        for _ in range(cuts):
            await asyncio.sleep(scene.chance.uniform(0.02, 0.25))
            front.slices = scene.chance.choice((1, 3, 7, 50))
            front.cut_one(scene.chance)
        scene.note("cuts", cuts)
        front.slices = 50  # the proxy needs a turn of its loop for each
        await scene.quiet()
        await scene.whole(record, 20)
    finally:
        front.slices, front.delay = 0, 0.0
    resumes = record.resumes()
    scene.expect(all(began.recovered for began in resumes), "a resume did not recover")
    scene.expect(bool(resumes) and len(readers) > 0, "nobody had to resume")


async def loss(scene: Scene) -> None:
    """Packets are lost, and everything takes 200 ms there and back."""
    record = scene.channel()
    front = scene.ground.front
    front.delay = 0.1
    try:
        with packet_loss(front.port, 5) as lossy:
            scene.note("packets dropped, %", 5 if lossy else 0)
            scene.expect(lossy or scene.small, "no packet could be dropped: this needs root and nft")
            await scene.read(record, scene.scale(6, 20), 2, port=front.port)
            scene.write(record, 3, 1, pause=0.1, port=front.port)
            for _ in range(scene.share(4, 100)):
                await asyncio.sleep(scene.chance.uniform(0.2, 0.8))
                front.cut_one(scene.chance)
            await scene.quiet()
            await scene.whole(record, 20)
    finally:
        front.delay = 0.0
    scene.expect(all(began.recovered for began in record.resumes()), "a resume did not recover")


@dataclass(frozen=True, slots=True)
class _Held:
    """What the workers hold: connections, channels, descriptors, and memory in bytes (proportional set size)."""

    connections: float
    channels: float
    descriptors: int
    memory: int


def _held(scene: Scene) -> _Held:
    service = scene.ground.service
    descriptors, memory = 0, 0
    for pid in service.worker_pids():
        descriptors += len(list(Path(f"/proc/{pid}/fd").iterdir()))
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        memory += next(int(line.split()[1]) * 1024 for line in rollup if line.startswith("Pss:"))
    return _Held(_connections(scene), sum(service.metric("channels").values()), descriptors, memory)


async def _held_at_rest(scene: Scene) -> _Held:
    """The least of several looks: a busy worker may not have closed yet what its last visitors left."""
    looks = []
    for _ in range(5):
        looks.append(_held(scene))
        await asyncio.sleep(0.2)
    return min(looks, key=lambda look: look.descriptors - look.connections)


async def _churn(scene: Scene, record: Record, seconds: float) -> int:
    """Clients come, publish and go all the time; returns how many came."""
    base, came = f"ws://127.0.0.1:{scene.ground.service.port}/ws", 0
    ends = time.monotonic() + seconds

    async def visit(number: int) -> None:
        native = number % 2 == 0
        address = base if native else f"{base}?channel={record.channel}"
        async with open_socket(address, native=native) as socket:
            if native:
                for channel in (record.channel, f"soak:{number % 500}"):
                    await socket.send(orjson.dumps({"type": "subscribe", "channel": channel}).decode())
            await socket.recv()
            if number % 3 == 0:
                socket.transport.abort()

    while time.monotonic() < ends:
        visits = [asyncio.wait_for(visit(came + number), 10) for number in range(20)]
        came += len(visits)
        await asyncio.gather(*visits)
    return came


async def soak(scene: Scene) -> None:
    """Clients come and go by the thousand while others stay."""
    record = scene.channel()
    await scene.read(record, 6, 2)
    scene.write(record, 3, pause=0.02)
    part = scene.span(5, 60)
    came = await _churn(scene, record, part)
    stayed = len(scene.readers)
    # What the workers say of connections is up to a beat old: descriptors are counted when nobody comes or goes.
    await scene.until(
        lambda: _connections(scene) <= stayed + len(scene.writers), 30, "connections are back to those who stay"
    )
    first = await _held_at_rest(scene)
    came += await _churn(scene, record, part)
    await scene.quiet()
    # Writers keep one socket each; a channel that was just left is kept for a while.
    await scene.until(
        lambda: _connections(scene) <= stayed + len(scene.writers), 30, "connections are back to those who stay"
    )
    limit = 1 + 3
    await scene.until(lambda: _held(scene).channels <= limit, 60, "channels are back to the one that is used")
    last = await _held_at_rest(scene)
    scene.note("came and went", came)
    scene.note(
        "descriptors beyond the connections, more than before",
        max(0, (last.descriptors - last.connections) - (first.descriptors - first.connections)),
        10,
    )
    scene.note(
        "memory, KB more per 1,000 who came",
        max(0.0, (last.memory - first.memory) / 1024 / (came / 2) * 1000),
        100 if part == scene.scale(0, 60) else None,
    )


FAULTS = (
    Fault(
        "network",
        "Slices of a few bytes, delays, cuts inside frames",
        "no protocol error, whole after each cut",
        network,
    ),
    Fault("loss", "5 % of the packets lost, 200 ms, cuts", "no protocol error, whole after each cut", loss),
    Fault("soak", "Clients come and go", "descriptors, channels and memory come back", soak),
    Fault("killed", "One worker of four killed under load", "lost 0, 99 % back in 5 s", killed, FOUR),
    Fault(
        "stopped",
        "A worker stopped (SIGSTOP) and continued",
        "clients leave, nothing stale or double",
        stopped,
        PINGING,
    ),
    Fault("half-open-clients", "Clients whose network is gone", "slots and presence free in 60 s", half_open, PINGING),
    Fault("never-reads", "Peers that never read our close", "descriptors free in 15 s", never_reads, PINGING),
)
