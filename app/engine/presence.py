"""Presence in one worker: its members, those who watch, and how both reach the store and each other."""

from __future__ import annotations

import asyncio

from app.brokers import Attendee
from app.brokers import Presence as Store
from app.core.errors import BadRequest, TocsinError, Unavailable
from app.core.messages import Attendance, PresencePage
from app.engine.board import Watcher
from app.engine.boards import Boards
from app.engine.hub import Hub
from app.engine.membership import Membership

__all__ = ["Presence", "Watcher"]


class Presence:
    """Who is here.

    Args:
        store: of all workers.
        hub: the channels of this worker.
        incarnation: of this worker.

    Attributes:
        reaped: clients of dead workers that this one has removed.
    """

    def __init__(self, store: Store, hub: Hub, incarnation: str) -> None:
        self._store = store
        self._hub = hub
        self._members = Membership(store, incarnation, hub.spawn)
        self._boards = Boards(store, hub.channels, hub.spawn)
        self._reads: dict[tuple[str, int], list[asyncio.Future[PresencePage]]] = {}
        self._losses = hub.counters.reconnects
        self.reaped = 0

    @property
    def local(self) -> int:
        """Clients of this worker that are members, counted in each channel."""
        return self._members.local

    @property
    def joins(self) -> int:
        """Joins that the store has taken from this worker."""
        return self._members.joins

    @property
    def leaves(self) -> int:
        """Leaves that the store has taken from this worker."""
        return self._members.leaves

    async def enter(self, channel: str, client: str, member: str, info: bytes) -> None:
        """Make a client of this worker a member, or replace its info (JSON text). Watch first, enter, then read the
        members: so nothing is missed in between.

        Raises:
            Unavailable: the store has not taken it; the client is no member.
            BadRequest: the name is no Unicode.
        """
        try:
            member.encode()
        except UnicodeEncodeError:
            raise BadRequest("a member's name must be Unicode") from None
        await self._members.enter(channel, Attendee(client, member, info))

    def leave(self, channel: str, client: str) -> None:
        """A client has left the channel: now it is no member. Does nothing for one that is none."""
        self._members.leave(channel, client)

    def gone(self, channel: str, client: str) -> None:
        """A client's connection has ended: it is no member in two seconds."""
        self._members.gone(channel, client)

    def watch(self, channel: str, watcher: Watcher) -> None:
        """Tell a connection, which `Hub.open` holds the channel for, who comes and leaves, once it is begun. For one
        that watches already: it is held again until then.
        """
        self._boards.watch(channel, watcher)

    def begin(self, channel: str, watcher: Watcher) -> None:
        """Its list of members was written: now it is told, beginning with what it missed since `watch`. Does nothing
        for one that does not watch.
        """
        self._boards.begin(channel, watcher)

    def unwatch(self, channel: str, watcher: Watcher) -> None:
        """No more. Does nothing for one that does not watch."""
        self._boards.unwatch(channel, watcher)

    async def members(self, channel: str, limit: int, cursor: str | None) -> PresencePage:
        """A page of the channel's members. First pages that are asked for while one is read share the next reading.

        Raises:
            Unavailable: the store is away.
            BadRequest: the cursor is none of ours.
        """
        if cursor is not None:
            return await self._store.members(channel, limit, cursor)
        key = (channel, limit)
        answer: asyncio.Future[PresencePage] = asyncio.get_running_loop().create_future()
        waiting = self._reads.get(key)
        if waiting is None:
            self._reads[key] = [answer]
            self._hub.spawn(self._read(key))
        else:
            waiting.append(answer)
        return await answer

    async def _read(self, key: tuple[str, int]) -> None:
        await asyncio.sleep(0)  # whoever asks in this turn of the loop shares the first reading
        channel, limit = key
        waiting: list[asyncio.Future[PresencePage]] = []
        failed: TocsinError = Unavailable("the store could not be asked", retry_after=1.0)
        try:
            while waiting := self._reads[key]:
                self._reads[key] = []
                page = await self._store.members(channel, limit, None)
                for future in waiting:
                    if not future.done():
                        future.set_result(page)
        except TocsinError as error:
            failed = error
        finally:
            for future in (*waiting, *self._reads.pop(key)):
                if not future.done():
                    future.set_exception(failed)

    # -- for the hub and the worker

    def received(self, channel: str, item: Attendance) -> None:
        """What the hub hears of a channel's members."""
        self._boards.received(channel, item)

    def tick(self) -> None:
        """Once a second."""
        losses = self._hub.counters.reconnects
        if losses != self._losses:
            self._losses = losses
            self._boards.doubt()
            self._members.doubt()
        self._members.tick()
        self._boards.tick()

    def add_reaped(self, clients: int) -> None:
        """So many of a dead worker's were removed by this one."""
        self.reaped += clients

    def trust(self, until: float) -> None:
        """This worker's lease holds until then (seconds of the monotonic clock); without that nothing is written."""
        self._members.trust(until)

    def suspend(self) -> None:
        """The store does not answer: until `trust` nobody can come back, and what it was told is in doubt."""
        self._members.suspend()

    def doubt(self) -> None:
        """Another server leads: it may have lost what the one before had taken."""
        self._members.doubt()

    def assert_all(self) -> None:
        """The store did not know this worker any more: its members join again."""
        self._members.assert_all()

    def reincarnate(self, incarnation: str) -> None:
        """This worker was declared dead: its members join again under another name, after `trust`."""
        self._members.reincarnate(incarnation)
