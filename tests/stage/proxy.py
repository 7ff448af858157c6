"""A TCP proxy of a test's own: passes bytes on, and can slice, delay, swallow, freeze and cut."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

from tests.stage.redis import CREDENTIALS


class Pipe:
    """One connection through the proxy.

    Attributes:
        subscribed: it has carried a SUBSCRIBE.
        upgraded: it has asked for a WebSocket.
    """

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self.near = near
        self.far = far
        self.subscribed = False
        self.upgraded = False

    def cut(self) -> None:
        """End both sides at once."""
        self.near.transport.abort()
        self.far.transport.abort()


class Proxy:
    """Passes bytes on to the port `target` of 127.0.0.1.

    Attributes:
        deaf: connections that have subscribed get no bytes.
        frozen: nothing is passed on in either direction and no end is seen, as if packets were dropped; it comes later.
        swallow: the next answer that holds these bytes is lost, and its connection cut.
        swallowed: how many answers were.
        slices: bytes passed on at once, with a turn of the loop between; 0: as they come.
        delay: seconds before each piece.
        pauses: what to do inside the next batch of publishes, after every third command; the batch ends with `last`.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.deaf = False
        self.frozen = False
        self.swallow: bytes | None = None
        self.swallowed = 0
        self.slices = 0
        self.delay = 0.0
        self.pauses: list[Callable[[], None]] = []
        self.last = b""
        self.pipes: list[Pipe] = []

    @property
    def url(self) -> str:
        """Address of the Redis behind it, with the service's user."""
        return f"redis://{CREDENTIALS}@127.0.0.1:{self.port}/0"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        pipe = Pipe(writer, far_writer)
        self.pipes.append(pipe)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(reader, far_writer, pipe, upwards=True))
                group.create_task(self._carry(far_reader, writer, pipe, upwards=False))
        except* OSError:
            pipe.cut()
        finally:
            self.pipes.remove(pipe)

    async def _carry(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, pipe: Pipe, *, upwards: bool
    ) -> None:
        while data := await source.read(65_536):
            if upwards and self.pauses and b"EVAL" in data:
                while self.last not in data:
                    data += await source.read(65_536)
                self._carry_slowly(data, target)
                continue
            if upwards and b"SUBSCRIBE" in data:
                pipe.subscribed = True
            if upwards and b"Upgrade: websocket" in data:
                pipe.upgraded = True
            while self.frozen:
                await asyncio.sleep(0.01)
            if not upwards and self.deaf and pipe.subscribed:
                continue
            if not upwards and self.swallow is not None and self.swallow in data:
                self.swallow = None
                self.swallowed += 1
                pipe.cut()
                return
            await self._pass_on(data, target)
        while self.frozen:
            await asyncio.sleep(0.01)
        target.close()

    async def _pass_on(self, data: bytes, target: asyncio.StreamWriter) -> None:
        if self.delay:
            await asyncio.sleep(self.delay)
        step = self.slices or len(data)
        for at in range(0, len(data), step):
            if target.is_closing():  # cut meanwhile
                raise ConnectionResetError
            target.write(data[at : at + step])
            if self.slices:
                await asyncio.sleep(0)

    def _carry_slowly(self, data: bytes, target: asyncio.StreamWriter) -> None:
        pauses, self.pauses = self.pauses, []
        head = b"*12\r\n"
        commands = [head + rest for rest in data.split(head)[1:]]
        for at in range(0, len(commands), 3):
            target.write(b"".join(commands[at : at + 3]))
            if at // 3 < len(pauses):
                pauses[at // 3]()

    def cut_one(self, chance: random.Random) -> bool:
        """Cut one connection; whether there was any."""
        if not self.pipes:
            return False
        chance.choice(self.pipes).cut()
        return True

    def close(self) -> None:
        """Cut all connections."""
        for pipe in list(self.pipes):
            pipe.cut()


@contextlib.contextmanager
def packet_loss(port: int, percent: int) -> Iterator[bool]:
    """Drop so many percent of the TCP packets from and to a port of this machine, by nftables; False where this cannot
    be had (no root, no nft).
    """
    table = f"tocsin_{port}"
    rules = f"""
        table inet {table} {{
            chain input {{
                type filter hook input priority 0;
                tcp dport {port} numgen random mod 100 < {percent} drop
                tcp sport {port} numgen random mod 100 < {percent} drop
            }}
        }}
    """
    nft = shutil.which("nft")
    done = nft is not None and subprocess.run(
        [nft, "-f", "-"], input=rules, text=True, capture_output=True, check=False
    )
    if not done or done.returncode:
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run([str(nft), "delete", "table", "inet", table], check=True)


@asynccontextmanager
async def proxied(target: int) -> AsyncIterator[Proxy]:
    """A proxy before the port `target` of 127.0.0.1."""
    proxy = Proxy(target)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(asyncio.CancelledError):
            await proxy.serve(reader, writer)
        tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        proxy.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
