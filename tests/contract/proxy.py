"""A TCP proxy before Redis that can go deaf: it still takes bytes and answers keep-alive, but brings nothing back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class Proxy:
    """Passes bytes on.

    Attributes:
        deaf: connections that have subscribed get no bytes.
        pauses: what to do inside the next batch of publishes, after every third command; the batch ends with `last`.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.deaf = False
        self.pauses: list[Callable[[], None]] = []
        self.last = b""
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target)
        self._writers |= {writer, up_writer}
        subscribed = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(reader, up_writer, subscribed, upwards=True))
                group.create_task(self._carry(up_reader, writer, subscribed, upwards=False))
        except* OSError:
            pass

    async def _carry(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, subscribed: asyncio.Event, *, upwards: bool
    ) -> None:
        while data := await source.read(65_536):
            if upwards and self.pauses and b"EVAL" in data:
                while self.last not in data:
                    data += await source.read(65_536)
                self._carry_slowly(data, target)
                continue
            if upwards and b"SUBSCRIBE" in data:
                subscribed.set()
            if upwards or not (self.deaf and subscribed.is_set()):
                target.write(data)
        target.close()

    def _carry_slowly(self, data: bytes, target: asyncio.StreamWriter) -> None:
        pauses, self.pauses = self.pauses, []
        head = b"*12\r\n"
        commands = [head + rest for rest in data.split(head)[1:]]
        for at in range(0, len(commands), 3):
            target.write(b"".join(commands[at : at + 3]))
            if at // 3 < len(pauses):
                pauses[at // 3]()

    def close(self) -> None:
        """Cut all connections."""
        for writer in self._writers:
            writer.transport.abort()


@asynccontextmanager
async def proxied(target: int) -> AsyncIterator[Proxy]:
    """A proxy before the port `target` of 127.0.0.1."""
    proxy = Proxy(target)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        proxy.close()
