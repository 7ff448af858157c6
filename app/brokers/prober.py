"""Whether what is published is heard: probes to this worker's own control channel, by two connections in turn.

One that does not come back says that the reader is deaf, or that two connections are at different servers which both
lead, as after an address has moved. TCP looks fine in either case.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from app.brokers.commands import Commands, away
from app.brokers.reader import PROBE, Reader
from app.brokers.scripts import pack
from app.brokers.writer import Writer
from app.core.errors import TocsinError
from app.core.messages import Published


class Prober:
    """Sends one probe at a time.

    Args:
        commands: carries the one kind.
        writer: carries the other.
        deadline: seconds from the answer of the store until a probe must have been heard.
        nonce: another one with each call.

    Attributes:
        seconds: round trip of the newest probe, through the store and back on the reader.
        missed: probes that did not come back.
        channel: where they are published.
    """

    def __init__(self, commands: Commands, writer: Writer, deadline: float, nonce: Callable[[], bytes]) -> None:
        self._commands = commands
        self._writer = writer
        self._deadline = deadline
        self._nonce = nonce
        self._under_way: tuple[bytes, asyncio.Future[None]] | None = None
        self._by_writer = True
        self.seconds = 0.0
        self.missed = 0
        self.channel = ""

    def heard(self, nonce: bytes) -> None:
        """The reader was given a probe."""
        if self._under_way is not None and self._under_way[0] == nonce and not self._under_way[1].done():
            self._under_way[1].set_result(None)

    async def is_heard(self, reader: Reader) -> bool:
        """Send one, by the other connection than the last; whether it comes back, or nothing can be said since the
        reader is being replaced.

        Raises:
            Unavailable: it could not be sent.
        """
        if not reader.ready:
            return True
        self._by_writer = not self._by_writer
        send = self._send_by_writer if self._by_writer else self._send_by_commands
        loop = asyncio.get_running_loop()
        nonce, connection, began = self._nonce(), reader.link.connections, loop.time()
        heard: asyncio.Future[None] = loop.create_future()
        self._under_way = (nonce, heard)
        try:
            await send(PROBE + nonce)
            async with asyncio.timeout(self._deadline):
                await heard
        except TimeoutError:
            self.missed += 1
            return reader.link.connections != connection
        finally:
            self._under_way = None
        self.seconds = loop.time() - began
        return True

    async def _send_by_commands(self, probe: bytes) -> None:
        await self._commands.run("PUBLISH", self.channel, probe)

    async def _send_by_writer(self, probe: bytes) -> None:
        done: asyncio.Future[Published | TocsinError] = asyncio.get_running_loop().create_future()
        command = pack(("PUBLISH", self.channel, probe))
        self._writer.probe(command, lambda outcome: None if done.done() else done.set_result(outcome))
        try:
            async with asyncio.timeout(2 * self._deadline):  # the batch before it may take its whole time
                outcome = await done
        except TimeoutError:
            raise away() from None
        if isinstance(outcome, TocsinError):
            raise outcome
