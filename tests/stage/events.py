"""A client of `/sse` for tests, made of bytes: it reads the body as HTTP and the stream as the HTML standard say, and
returns as `EventSource` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from tests.stage.service import Service

PATIENCE = 15.0
"""Seconds for each event."""


@dataclass(frozen=True, slots=True)
class Heard:
    """One event, with the last event id as of then."""

    kind: str
    data: Any
    id: str


class Refused(Exception):
    """The answer is no event stream."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        super().__init__(status, body)
        self.status = status
        self.headers = headers
        self.code = orjson.loads(body)["error"]["code"] if body else None


class Stream:
    """One response: 200, and read when a test asks.

    Attributes:
        last_id: what a browser would send as `Last-Event-ID`.
        retry: milliseconds to wait before returning, as told.
        comments: how many came.
        whole: whether the body has ended as it should.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.headers: dict[str, str] = {}
        self.last_id = ""
        self.retry: int | None = None
        self.comments = 0
        self.whole = False
        self.writer = writer
        self._reader = reader
        self._text = bytearray()
        self._lines: list[bytes] = []

    @property
    def port(self) -> int:
        """Our TCP port."""
        name = self.writer.get_extra_info("sockname")
        return int(name[1])

    async def begin(self) -> None:
        """Read the head.

        Raises:
            Refused: it says something else than 200.
        """
        head = (await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), PATIENCE)).decode()
        line, *fields = head.split("\r\n")[:-2]
        self.headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        status = int(line.split()[1])
        if status != 200:
            raise Refused(status, self.headers, await self._reader.readexactly(int(self.headers["content-length"])))

    async def read(self, seconds: float = PATIENCE) -> Heard:
        """The next event.

        Raises:
            EOFError: the body has ended.
            OSError: the connection is cut.
        """
        async with asyncio.timeout(seconds):
            while True:
                while (end := self._text.find(b"\n")) < 0:
                    await self._more()
                line = bytes(self._text[:end])
                del self._text[: end + 1]
                if line:
                    self._lines.append(line)
                    continue
                lines, self._lines = self._lines, []
                heard = self._dispatch(lines)
                if heard is not None:
                    return heard

    async def reads(self, count: int) -> list[Heard]:
        """So many events."""
        return [await self.read() for _ in range(count)]

    async def end(self) -> list[Heard]:
        """What comes until the body ends or is cut."""
        heard = []
        with contextlib.suppress(EOFError, OSError):
            while True:
                heard.append(await self.read())
        return heard

    async def _more(self) -> None:
        """One chunk of the body (RFC 9112 section 7.1), or whatever has come where the body has no chunks."""
        if "transfer-encoding" not in self.headers:
            piece = await self._reader.read(65_536)
        else:
            size = int(await self._reader.readuntil(b"\r\n"), 16)
            piece = await self._reader.readexactly(size)
            assert await self._reader.readexactly(2) == b"\r\n"
        self._text += piece
        if not piece:
            self.whole = True
            raise EOFError

    def _dispatch(self, lines: Sequence[bytes]) -> Heard | None:
        """HTML Living Standard section 9.2.6."""
        kind, data = "message", []
        for line in lines:
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            match name:
                case b"":
                    self.comments += 1
                case b"event":
                    kind = value.decode()
                case b"data":
                    data.append(value)
                case b"id":
                    self.last_id = value.decode()
                case b"retry":
                    self.retry = int(value)
                case unknown:
                    raise AssertionError(unknown)
        return Heard(kind, orjson.loads(b"\n".join(data)), self.last_id) if data else None


@contextlib.asynccontextmanager
async def listen(
    service: Service,
    *channels: str,
    since: str | None = None,
    headers: Mapping[str, str] | None = None,
    version: str = "1.1",
    receive_buffer: int | None = None,
) -> AsyncIterator[Stream]:
    """An open stream. `since` is sent as browsers do; `receive_buffer` (bytes) makes one whose TCP takes little unread.

    Raises:
        Refused: it is not opened.
    """
    query = "&".join(f"channel={channel}" for channel in channels)
    fields = {"host": f"127.0.0.1:{service.port}", "accept": "text/event-stream", **(headers or {})}
    if since is not None:
        fields["last-event-id"] = since
    request = f"GET /sse?{query} HTTP/{version}\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items()) + "\r\n"
    sock = socket.socket()
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", service.port))
    limit = 65_536 if receive_buffer is None else 4096
    reader, writer = await asyncio.open_connection(sock=sock, limit=limit)
    try:
        writer.write(request.encode())
        stream = Stream(reader, writer)
        await stream.begin()
        stream.last_id = since or ""
        yield stream
    finally:
        writer.transport.abort()


class Follower:
    """Listens and returns after each loss, by nothing but what `EventSource` remembers; waits less than it is told to.

    Attributes:
        heard: events in order.
        returns: how often it has returned.
        refused: how often it was refused meanwhile; a browser would have to be told to go on.
    """

    def __init__(self, service: Service, *channels: str) -> None:
        self.heard: list[Heard] = []
        self.returns = -1
        self.refused = 0
        self.stream: Stream | None = None
        self._service = service
        self._channels = channels
        self._task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        since: str | None = None
        while True:
            try:
                async with listen(self._service, *self._channels, since=since) as stream:
                    self.stream = stream
                    self.returns += 1
                    try:
                        while True:
                            self.heard.append(await stream.read(seconds=60))
                    finally:
                        since = stream.last_id or None
            except (EOFError, OSError):
                pass
            except Refused as refused:
                if refused.status != 503:
                    raise
                self.refused += 1
            self.stream = None
            await asyncio.sleep(0.05)

    def data(self, channel: str | None = None) -> list[Any]:
        """The messages so far, of one channel or all."""
        return [
            event.data["data"]
            for event in self.heard
            if event.kind == "message" and channel in {None, event.data["channel"]}
        ]

    async def until(self, last: Any, seconds: float = 20) -> None:
        """Wait for a message."""
        async with asyncio.timeout(seconds):
            while last not in self.data()[-40:]:
                assert not self._task.done(), self._task.exception()
                await asyncio.sleep(0.02)

    async def live(self) -> None:
        """Wait until it listens."""
        async with asyncio.timeout(PATIENCE):
            while self.stream is None:
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Leave."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
