"""A client of `tocsin.v1` for tests: it asks, waits for the answer with its ref, and keeps what comes between."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import orjson
import websockets
from websockets.asyncio.client import ClientConnection
from websockets.typing import Subprotocol

from tests.stage.service import Service

NATIVE = Subprotocol("tocsin.v1")
PATIENCE = 15.0
"""Seconds for each answer or push."""

Frame = dict[str, Any]


class NativeClient:
    """One connection. Frames are read when a test asks for them, so a client that is not asked does not read.

    Attributes:
        welcome: the first frame.
        waiting: pushes that came before an answer, in order.
    """

    def __init__(self, connection: ClientConnection) -> None:
        self.socket = connection
        self.welcome: Frame = {}
        self.waiting: deque[Frame] = deque()
        self._refs = 0

    async def read(self, *, alive: bool = False) -> Frame:
        """The next frame, whatever it is; `alive`, which may come at any time, only where it is asked for."""
        while True:
            text = await asyncio.wait_for(self.socket.recv(), PATIENCE)
            assert isinstance(text, str)
            frame: Frame = orjson.loads(text)
            if alive or frame["type"] != "alive":
                return frame

    async def say(self, kind: str, **fields: Any) -> int:
        """Send a command; returns its ref."""
        self._refs += 1
        await self.socket.send(orjson.dumps({"type": kind, "ref": self._refs, **fields}).decode())
        return self._refs

    async def answer(self, ref: Any) -> Frame:
        """The answer to a command; what comes before it waits for `push`."""
        while (frame := await self.read()).get("ref") != ref:
            self.waiting.append(frame)
        return frame

    async def ask(self, kind: str, **fields: Any) -> Frame:
        """Send a command and wait for its answer."""
        return await self.answer(await self.say(kind, **fields))

    async def push(self, kind: str = "message") -> Frame:
        """The next push, which must be of this kind."""
        frame = self.waiting.popleft() if self.waiting else await self.read()
        assert frame["type"] == kind, frame
        return frame

    async def pushes(self, count: int) -> list[Frame]:
        """So many messages."""
        return [await self.push() for _ in range(count)]

    async def silent(self, seconds: float = 0.3) -> bool:
        """Whether nothing comes for a while."""
        if self.waiting:
            return False
        try:
            async with asyncio.timeout(seconds):
                while orjson.loads(await self.socket.recv())["type"] == "alive":
                    pass
        except TimeoutError:
            return True
        return False

    async def code(self) -> int:
        """Read to the end: the close code."""
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                await self.read()
        assert self.socket.close_code is not None
        return self.socket.close_code


def offered(subprotocol: str, token: str | None) -> list[Subprotocol]:
    """What a browser offers to say which format it speaks and who it is."""
    return [Subprotocol(name) for name in (subprotocol, *([f"tocsin.bearer.{token}"] if token else []))]


@contextlib.asynccontextmanager
async def converse(
    service: Service, *, token: str | None = None, receive_buffer: int | None = None, **options: Any
) -> AsyncIterator[NativeClient]:
    """A connected client that has been welcomed; it shows its token as a browser does. `receive_buffer` (bytes) makes
    one whose TCP takes little unread.
    """
    if receive_buffer is not None:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", service.port))
        options |= {"sock": sock, "max_queue": 1}
    url = f"ws://127.0.0.1:{service.port}/ws"
    async with websockets.connect(
        url, subprotocols=offered(NATIVE, token), compression=None, max_size=None, ping_interval=None, **options
    ) as connection:
        client = NativeClient(connection)
        client.welcome = await client.read()
        yield client


@contextlib.asynccontextmanager
async def converse_on_two_workers(service: Service) -> AsyncIterator[tuple[NativeClient, NativeClient]]:
    """Two clients whose connections are with different workers."""
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(converse(service))
        for _ in range(100):
            other = await stack.enter_async_context(converse(service))
            if other.welcome["worker"] != first.welcome["worker"]:
                yield first, other
                return
    raise AssertionError("a hundred connections went to one worker")


def offset(position: str) -> int:
    """The number in an id."""
    return int(position.rpartition("-")[2])
