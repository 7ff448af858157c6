"""What an operator says about slow and eager clients reaches the workers, and shows in their metrics."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest
import websockets

from tests.stage.redis import RedisServer
from tests.stage.service import Service, until

RATE = 50
COUNT = 200


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "portable"])
async def test_a_flooder_waits_loses_nothing_and_is_counted(redis_server: RedisServer, prefix: str, fast: bool) -> None:
    with Service(redis_server.url, redis_prefix=prefix, fast=fast, frame_rate=str(RATE)) as service:
        async with websockets.connect(service.ws("flood")) as flooder, websockets.connect(service.ws("calm")) as calm:
            began = time.monotonic()
            for i in range(COUNT):
                await flooder.send(str(i))
            await calm.send("here")
            assert await asyncio.wait_for(calm.recv(), 2) == "here"
            assert [await flooder.recv() for _ in range(COUNT)] == [str(i) for i in range(COUNT)]
            assert time.monotonic() - began > 0.8 * (COUNT - 2 * RATE) / RATE
        await asyncio.to_thread(until, lambda: sum(service.metric("floods_total").values()) >= 1, 15)


def test_a_silent_connection_is_closed_when_the_setting_says(redis_server: RedisServer, prefix: str) -> None:
    with Service(redis_server.url, redis_prefix=prefix, workers=2, handshake_seconds="0.5") as service:
        for _ in range(4):  # whichever worker it is
            began = time.monotonic()
            with socket.create_connection(("127.0.0.1", service.port), 10) as sock:
                sock.sendall(b"GET /ws?channel=lob")
                assert sock.recv(1000).startswith(b"HTTP/1.1 408 ")
            assert 0.4 < time.monotonic() - began < 3
