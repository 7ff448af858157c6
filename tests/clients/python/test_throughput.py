"""How many messages a second the client handles on one core."""

from __future__ import annotations

import asyncio
import json
import time

import websockets
from websockets.asyncio.server import ServerConnection
from websockets.frames import Frame, Opcode
from websockets.typing import Subprotocol

import tocsin

COUNT = 40_000
JOINED = 500
AT_LEAST = 20_000
"""Messages for each second of the processor."""


def frame(**fields: object) -> bytes:
    """As a service writes it."""
    return Frame(Opcode.TEXT, json.dumps(fields, separators=(",", ":")).encode()).serialize(mask=False)


WELCOME = frame(
    type="welcome", client="c", user=None, worker="w/1", ping=25, max_data=65_536, key_seconds=120, expires_at=None
)
SUBSCRIBED = frame(type="subscribed", ref=1, channel="room", position="4c1f9be07a2d-0", recovered=None, replayed=0)


def messages() -> list[bytes]:
    """All that is to be sent, as many frames joined as a service joins."""
    made = [
        frame(
            type="message",
            channel="room",
            id=f"4c1f9be07a2d-{number}",
            data={"text": "x" * 60},
            **{"from": "c9Jx2kq0Zw3mRt8a"},
            user="ada",
            at=1_790_000_000_123,
        )
        for number in range(1, COUNT + 1)
    ]
    return [b"".join(made[at : at + JOINED]) for at in range(0, COUNT, JOINED)]


async def test_one_core_handles_20_000_messages_a_second() -> None:
    """The processor's time is that of both ends; this one only writes what is ready."""
    joined = messages()
    go = asyncio.Event()

    async def serve(socket: ServerConnection) -> None:
        socket.transport.write(WELCOME)
        await socket.recv()
        socket.transport.write(SUBSCRIBED)
        await go.wait()
        for chunk in joined:
            socket.transport.write(chunk)
            while socket.transport.get_write_buffer_size() > 1 << 18:
                await asyncio.sleep(0)
        await socket.wait_closed()

    native = [Subprotocol("tocsin.v1")]
    async with websockets.serve(serve, "127.0.0.1", 0, subprotocols=native, compression=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with tocsin.connect(f"ws://127.0.0.1:{port}/ws") as client, client.subscribe("room") as room:
            began, heard = time.process_time(), 0
            go.set()
            async for _ in room:
                heard += 1
                if heard == COUNT:
                    break
            rate = COUNT / (time.process_time() - began)
    print(f"{rate:,.0f} messages for each second of the processor")
    assert rate >= AT_LEAST
