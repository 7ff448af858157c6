"""Workers die, are replaced, and leave in order; slow readers hurt nobody."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from pathlib import Path

import pytest
import websockets
from websockets.asyncio.client import ClientConnection

from tests.stage.redis import RedisServer
from tests.stage.service import Service, until


async def test_a_killed_worker_takes_only_its_own_sockets_and_is_replaced(redis_server: RedisServer) -> None:
    with Service(redis_server.url, workers=3, redis_prefix="killed") as service:
        async with contextlib.AsyncExitStack() as stack:
            clients: list[ClientConnection] = []
            served: set[int | None] = set()
            while len(clients) < 24 or len(served) < 2:  # the kernel chooses the worker
                assert len(clients) < 300
                clients.append(await stack.enter_async_context(service.connect("k")))
                served.add(service.pid_serving(clients[-1].local_address[1]))
            victim = served.pop()
            assert victim is not None
            os.kill(victim, signal.SIGKILL)

            def replaced() -> bool:
                pids = service.worker_pids()
                return victim not in pids and len(pids) == 3

            await asyncio.to_thread(until, replaced, 30, "a new worker")
            await asyncio.to_thread(until, service.all_ready, 60, "readiness")
            left = [client for client in clients if client.close_code is None]
            assert 0 < len(left) < len(clients)
            await left[0].send("still here")
            for client in left:
                assert await asyncio.wait_for(client.recv(), 10) == "still here"
            for client in clients:
                if client not in left:
                    assert client.close_code == 1006
        assert set(service.metric("ready")) <= {"0", "1", "2"}


async def test_sigterm_closes_with_1012_and_exits_within_the_grace_also_with_a_peer_that_does_not_read(
    redis_server: RedisServer,
) -> None:
    with Service(redis_server.url, workers=2, redis_prefix="term", drain_seconds="1", high_mark="131072") as service:
        stalled = await stall(service, "flood")
        async with service.connect("t") as client, service.connect("flood", "&echo=false") as talker:
            for _ in range(200):
                await talker.send("x" * 60_000)
            started = time.monotonic()
            stopping = asyncio.create_task(asyncio.to_thread(service.stop))
            await asyncio.wait_for(client.wait_closed(), 15)
            assert client.close_code == 1012
            assert await stopping == 0 or service.process is not None
            assert time.monotonic() - started < 12
        stalled.close()


async def test_a_stalled_reader_costs_no_memory_and_the_others_hear_everything(redis_server: RedisServer) -> None:
    with Service(redis_server.url, redis_prefix="slow", high_mark="131072", stall_seconds="60") as service:
        stalled = [await stall(service, "s") for _ in range(20)]
        async with service.connect("s") as brisk, service.connect("s", "&echo=false") as talker:
            before = resident(service)
            body = "y" * 16_000
            for number in range(1000):
                await talker.send(f"{number}:{body}")
                if number % 20 == 19:
                    for heard in range(number - 19, number + 1):
                        message = await asyncio.wait_for(brisk.recv(), 10)
                        assert str(message).startswith(f"{heard}:")
            assert sum(service.metric("lagged_total").values()) >= 20
            # 16 MB went by for each of the 20; none may keep more than its high mark and a joined write.
            assert resident(service) - before < 20 * 2 * 400_000 + 20_000_000
        for peer in stalled:
            peer.close()


async def test_a_slow_reader_is_made_whole_when_it_reads_again(redis_server: RedisServer) -> None:
    with Service(
        redis_server.url,
        redis_prefix="whole",
        high_mark="131072",
        channels='[{"channel": "*", "history": 5000}]',
    ) as service:
        sleeper = await stall(service, "s")
        async with service.connect("s", "&echo=false") as talker:
            for number in range(1500):
                await talker.send(f"{number}:" + "z" * 4_000)
            await asyncio.to_thread(
                until, lambda: sum(service.metric("lagged_total").values()) >= 1, 15, "the reader counts as slow"
            )
            texts = await asyncio.to_thread(read_texts, sleeper, 1500)
        assert [text.split(b":")[0] for text in texts] == [str(number).encode() for number in range(1500)]
        sleeper.close()


async def test_a_slow_reader_that_the_log_no_longer_covers_is_told(redis_server: RedisServer) -> None:
    with Service(
        redis_server.url, redis_prefix="told", high_mark="131072", channels='[{"channel": "*", "history": 50}]'
    ) as service:
        sleeper = await stall(service, "s")
        async with service.connect("s", "&echo=false") as talker:
            for number in range(1500):
                await talker.send(f"{number}:" + "z" * 4_000)
            await asyncio.to_thread(until, lambda: sum(service.metric("lagged_total").values()) >= 1, 15)
            await asyncio.sleep(0.5)
            texts = await asyncio.to_thread(read_texts, sleeper, 1500)
        assert len(texts) < 1500
        assert [text.split(b":")[0] for text in texts] == [str(number).encode() for number in range(len(texts))]
        assert sum(service.metric("gaps_total").values()) == 1
        sleeper.close()


async def test_a_reader_stalled_for_too_long_is_aborted_and_its_descriptor_freed(redis_server: RedisServer) -> None:
    with Service(redis_server.url, redis_prefix="abort", high_mark="131072", stall_seconds="2") as service:
        descriptors = Path(f"/proc/{service.worker_pids()[0]}/fd")
        async with service.connect("s", "&echo=false") as talker:
            before = len(list(descriptors.iterdir()))
            stalled = [await stall(service, "s") for _ in range(5)]
            for _ in range(100):
                await talker.send("x" * 60_000)
            await asyncio.to_thread(until, lambda: sum(service.metric("aborted_total").values()) >= 5, 20, "the abort")
            await asyncio.to_thread(until, lambda: len(list(descriptors.iterdir())) <= before + 3, 10, "free again")
        for peer in stalled:
            peer.close()


async def test_a_silent_peer_is_closed_after_two_pings(redis_server: RedisServer) -> None:
    with Service(redis_server.url, redis_prefix="silent", ping_seconds="1") as service:
        silent = await stall(service, "s")
        async with service.connect("s") as answering:
            await asyncio.to_thread(until, lambda: sum(service.metric("silent_total").values()) >= 1, 15)
            await asyncio.to_thread(until, lambda: sum(service.metric("connections").values()) == 1, 15)
            assert answering.close_code is None
        silent.close()


async def test_connections_beyond_the_capacity_are_refused_with_503(redis_server: RedisServer) -> None:
    with Service(redis_server.url, redis_prefix="full", max_connections="3") as service:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(3):
                await stack.enter_async_context(service.connect("c"))
            with pytest.raises(websockets.InvalidStatus) as refused:
                await websockets.connect(service.ws("c"))
            assert refused.value.response.status_code == 503
            assert "retry-after" in refused.value.response.headers
            assert service.get("/livez").status_code == 200


async def stall(service: Service, channel: str) -> socket.socket:
    """A plain client that has upgraded and reads nothing more."""
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    peer.connect(("127.0.0.1", service.port))
    peer.sendall(
        f"GET /ws?channel={channel} HTTP/1.1\r\nHost: 127.0.0.1:{service.port}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    head = b""
    while b"\r\n\r\n" not in head:
        head += await asyncio.to_thread(peer.recv, 1)
    assert head.startswith(b"HTTP/1.1 101")
    return peer


def read_texts(peer: socket.socket, most: int, seconds: float = 20) -> list[bytes]:
    """Text messages of an unmasked server until so many, a close frame, the end, or the deadline."""
    peer.settimeout(seconds)
    stream = peer.makefile("rb")
    texts: list[bytes] = []
    while len(texts) < most:
        head = stream.read(2)
        if len(head) < 2 or head[0] & 15 == 8:
            break
        length = head[1] & 127
        if length == 126:
            length = int.from_bytes(stream.read(2))
        elif length == 127:
            length = int.from_bytes(stream.read(8))
        payload = stream.read(length)
        if head[0] & 15 == 1:
            texts.append(payload)
    return texts


def resident(service: Service) -> int:
    """Resident memory of the only worker, in bytes."""
    for line in Path(f"/proc/{service.worker_pids()[0]}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")
