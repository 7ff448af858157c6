"""Inquiries: asking the store where channels stand, many in one call, again after a failure, and now and then unasked.

The first questions of one turn share a call, which brings no messages; so do those that come while one is under way, or
while the reader is back and its channels are confirmed one after the other, up to a full one. A channel that is behind
reads on alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from app.brokers import Broker
from app.core.continuity import Mode, Reading, Sync
from app.core.errors import TocsinError
from app.engine.channel import Channel

PAGE = 128
"""Publications asked for in one read."""
TOPS = 512
"""Channels in one call of `Broker.read_tops`."""
RETRY_SECONDS = 0.5
CHECK_SECONDS = 9
GATHER_SECONDS = 0.05
"""Without any confirmation for so long, no more are waited for."""
EXPECT_SECONDS = 1.0
"""How long confirmations are waited for at most."""
REST = 3
"""Checks left out after a loss of the reader: every channel is asked then anyway."""

Spawn = Callable[[Coroutine[Any, Any, None]], None]


class Inquiry:
    """The questions of one hub.

    Args:
        broker: the store.
        channels: of the hub, by name.
        spawn: runs a coroutine under supervision.
        answer: is given a reading and the generation of its question.
        differ: is told of a channel that a check found elsewhere than it believes to be.
        idle: is told of a channel that has stood still between two checks.
    """

    def __init__(
        self,
        broker: Broker,
        channels: Mapping[str, Channel],
        *,
        spawn: Spawn,
        answer: Callable[[Channel, Reading, int], None],
        differ: Callable[[Channel], None],
        idle: Callable[[Channel], None],
    ) -> None:
        self._broker = broker
        self._channels = channels
        self._spawn = spawn
        self._answer = answer
        self._differ = differ
        self._idle = idle
        self._due: dict[Channel, Sync] = {}
        self._scheduled = False
        self._calls = 0
        self._again: dict[Channel, None] = {}
        self._checks: list[Channel] = []
        self._lost = False
        self._expected = 0
        self._gathering = False
        self._rest = 0
        self.asked = 0

    def ask(self, channel: Channel, sync: Sync) -> None:
        """Ask in this turn of the loop; a newer question of the same channel takes the older one's place. The answer is
        for this channel only, never for another one that has its name when it comes.
        """
        self.asked += 1
        self._again.pop(channel, None)
        self._due[channel] = sync
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._start)

    def forget(self) -> None:
        """Drop what has not been sent: the reader is lost, and every channel asks anew when it is back."""
        self._due.clear()
        self._again.clear()
        self._checks.clear()
        self._lost, self._expected = bool(self._channels), 0

    def expect(self) -> None:
        """A channel is confirmed and will ask; if it is the first after a loss of the reader, so will all others."""
        if self._lost:
            self._lost, self._rest, self._expected = False, REST, len(self._channels)
            asyncio.get_running_loop().call_later(EXPECT_SECONDS, self._expect_no_more)
        if self._expected:
            self._expected -= 1

    def check(self) -> None:
        """Once a second: ask where a part of the channels stand. A live message that was lost in an idle channel is
        found by this within `CHECK_SECONDS`; `REST` more after a loss of the reader, twice that in a new channel.
        """
        if self._rest:
            self._rest -= 1
            return
        if not self._checks:
            self._checks = list(self._channels.values())[::-1]
        count = -(-len(self._channels) // CHECK_SECONDS)
        batch: list[Channel] = []
        while self._checks and len(batch) < count:  # those that are gone take nobody's turn
            channel = self._checks.pop()
            if channel.live and self._channels.get(channel.name) is channel:
                batch.append(channel)
        for start in range(0, len(batch), TOPS):
            self._spawn(self._check(batch[start : start + TOPS]))

    async def _check(self, channels: Sequence[Channel]) -> None:
        sent = [(channel, channel.state.epoch, channel.state.position) for channel in channels]
        try:
            readings = await self._broker.read_tops([(channel.name, position) for channel, _, position in sent])
        except TocsinError:
            return
        for (channel, epoch, position), reading in zip(sent, readings, strict=True):
            if isinstance(reading, Reading) and position is not None:
                if channel.state.differs(reading, epoch, position):
                    self._differ(channel)
                elif channel.checked == position:
                    self._idle(channel)
                channel.checked = position

    def _start(self) -> None:
        self._scheduled = False
        due, self._due = self._due, {}
        first: list[tuple[Channel, Sync]] = []
        for channel, sync in due.items():
            if channel.asked == sync.generation or (len(due) == 1 and not self._expected):
                channel.asked = sync.generation
                self._spawn(self._read(channel, sync))
            else:
                first.append((channel, sync))
        for start in range(0, len(first), TOPS):
            part = first[start : start + TOPS]
            if len(part) < TOPS and (self._calls or self._expected):
                self._due = dict(part)
                if self._expected and not self._gathering:
                    self._gathering = True
                    asyncio.get_running_loop().call_later(GATHER_SECONDS, self._gather, self._expected)
                break
            for channel, sync in part:
                channel.asked = sync.generation
            self._calls += 1
            self._spawn(self._read_tops(part))

    def _gather(self, expected: int) -> None:
        self._gathering = False
        if self._expected == expected:  # some are gone
            self._expect_no_more()
        elif self._due:
            self._schedule()

    def _expect_no_more(self) -> None:
        self._expected = 0
        if self._due:
            self._schedule()

    async def _read(self, channel: Channel, sync: Sync) -> None:
        try:
            reading = await self._broker.read(channel.name, sync.position, PAGE)
        except TocsinError:
            self._retry([channel])
            return
        self._answer(channel, reading, sync.generation)

    async def _read_tops(self, asked: Sequence[tuple[Channel, Sync]]) -> None:
        try:
            readings = await self._broker.read_tops([(channel.name, sync.position) for channel, sync in asked])
        except TocsinError:
            self._retry([channel for channel, _ in asked])
            return
        finally:
            self._calls -= 1
            if self._due:
                self._schedule()
        for (channel, sync), reading in zip(asked, readings, strict=True):
            if isinstance(reading, Reading):
                self._answer(channel, reading, sync.generation)
            else:
                self._retry([channel])

    def _retry(self, channels: Sequence[Channel]) -> None:
        """Ask again a little later, all that failed together; without a reader nobody is asked."""
        for channel in channels:
            channel.asked = -1
        if self._lost:
            return
        if not self._again:
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self._ask_again)
        self._again.update(dict.fromkeys(channels))

    def _ask_again(self) -> None:
        channels, self._again = self._again, {}
        for channel in channels:
            if channel.state.mode is Mode.SYNC and channel not in self._due:
                self.ask(channel, Sync(channel.state.position, channel.state.generation))
