"""Whether what is published is heard: probes to this worker's own control channel, by two connections in turn.

One that does not come back says that the reader is deaf, or that two connections are at different servers which both
lead, as after an address has moved. TCP looks fine in either case.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

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
        seconds: round trip of the newest probe by the commands, through the store and back on the reader.
        missed: probes that did not come back.
        channel: where they are published.
    """

    def __init__(self, commands: Commands, writer: Writer, deadline: float, nonce: Callable[[], bytes]) -> None:
        self._commands = commands
        self._writer = writer
        self._deadline = deadline
        self._nonce = nonce
        self._under_way: tuple[bytes, asyncio.Future[None]] | None = None
        self.seconds = 0.0
        self.missed = 0
        self.channel = ""

    def heard(self, nonce: bytes) -> None:
        """The reader was given a probe."""
        if self._under_way is not None and self._under_way[0] == nonce and not self._under_way[1].done():
            self._under_way[1].set_result(None)

    async def commands_are_heard(self, reader: Reader) -> bool:
        """Whether a probe by the commands comes back, or nothing can be said since the reader is being replaced.

        Raises:
            Unavailable: it could not be sent.
        """
        began = asyncio.get_running_loop().time()
        found = await self._comes_back(reader, self._send_by_commands)
        if found:
            self.seconds = asyncio.get_running_loop().time() - began
        return found

    async def publishes_are_heard(self, reader: Reader) -> bool:
        """The same by the writer, behind no publish but those that are under way.

        Raises:
            Unavailable: it could not be sent.
        """
        return await self._comes_back(reader, self._send_by_writer)

    async def _comes_back(self, reader: Reader, send: Callable[[bytes], Awaitable[None]]) -> bool:
        if not reader.ready:
            return True
        nonce, connection = self._nonce(), reader.link.connections
        heard: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._under_way = (nonce, heard)
        try:
            await send(PROBE + nonce)
            before = reader.progress
            # One that is behind is not deaf: it gets the same time once more.
            if await self._wait(heard) or (reader.progress != before and await self._wait(heard)):
                return True
        finally:
            self._under_way = None
        if not reader.link.up or reader.link.connections != connection:
            return True
        self.missed += 1
        return False

    async def _wait(self, heard: asyncio.Future[None]) -> bool:
        await asyncio.wait((heard,), timeout=self._deadline)
        if not heard.done():
            await asyncio.sleep(0.01)  # a loop that stood still runs its timers before it reads
        return heard.done()

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
