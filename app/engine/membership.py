"""Membership: which clients of this worker are in which rooms, and how the store learns of it.

What ought to be is kept here; what differs is written, all rooms of one turn together, one write of a room at a time.
Nothing is written while this worker's lease may be over: its members may be somebody else's to remove by then.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

import structlog

from app.brokers import Attendee, Presence
from app.core.errors import TocsinError, Unavailable

Thing = TypeVar("Thing")

log = structlog.get_logger("tocsin.presence")

GRACE_SECONDS = 2.0
"""How long a client stays a member after its connection has ended, since it may be back."""
ENTER_SECONDS = 3.0
"""How long entering may take."""
PATIENCE_SECONDS = 1.0
"""How long after the end of our lease a client that enters still waits for the next one."""
BATCH = 500
"""Joins and leaves of a room in one call."""
ROOMS = 64
"""Rooms written at once."""
ASSERT_SECONDS = 60
"""In which each member is looked for in the store once, and each room is noted again."""
LOOK_SECONDS = 2
"""How often some of the members are looked for: a command each time, however few they are."""
REMEMBER_SECONDS = 60.0
"""For which leaves are remembered: the store may lose what it has taken, or take what was given up for lost."""
REPEAT_SECONDS = 10.0
"""After which they are told again while in doubt; a command may come late by so much, and more."""
DOUBT_SECONDS = 25.0
"""How long doubt lasts."""


def spread(things: Sequence[Thing], turns: int) -> list[list[Thing]]:
    """So many even parts of a list, to be popped; of a short one the first are empty."""
    bounds = [turn * len(things) // turns for turn in range(turns + 1)]
    return [list(things[start:end]) for start, end in itertools.pairwise(bounds)][::-1]


class Room:
    """One room with clients of this worker.

    Attributes:
        here: who ought to be a member, by client.
        due: clients of whom the store may think otherwise.
        waiting: those who want to know when they have joined, by client, in the order of their coming.
        haunted: buried incarnations of this worker, of which something may be left.
    """

    __slots__ = ("due", "haunted", "here", "name", "registered", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.here: dict[str, Attendee] = {}
        self.due: dict[str, None] = {}
        self.waiting: dict[str, list[tuple[Attendee, asyncio.Future[None]]]] | None = None
        self.haunted: tuple[str, ...] = ()
        self.registered = False

    def wait(self, attendee: Attendee) -> asyncio.Future[None]:
        """Want to know when this one has joined."""
        joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting = self.waiting or {}
        self.waiting.setdefault(attendee.client, []).append((attendee, joined))
        return joined

    def answer(self, attendee: Attendee, error: TocsinError | None = None) -> bool:
        """Tell who waits for this one, and for what it has replaced. Returns whether there was anybody."""
        waiting = self.waiting.get(attendee.client, []) if self.waiting else []
        own = next((at for at, (one, _) in enumerate(waiting, 1) if one is attendee), 0)
        self._tell(waiting[:own], error)
        del waiting[:own]
        if self.waiting and not waiting:
            self.waiting.pop(attendee.client, None)
        self.waiting = self.waiting or None
        return own > 0

    def dismiss(self, client: str) -> None:
        """It has left: whoever waits for it waits in vain."""
        waiting = self.waiting.pop(client, []) if self.waiting else []
        self.waiting = self.waiting or None
        self._tell(waiting, Unavailable("it has left meanwhile", retry_after=1.0))

    @staticmethod
    def _tell(waiting: Iterable[tuple[Attendee, asyncio.Future[None]]], error: TocsinError | None) -> None:
        for _, future in waiting:
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)


class Membership:
    """The members of one worker.

    Args:
        store: who is in which room.
        incarnation: of this worker.
        spawn: runs a coroutine under supervision.

    Attributes:
        local: clients of this worker that are members, counted in each room.
        joins: joins that the store has taken; `leaves` likewise.
    """

    def __init__(self, store: Presence, incarnation: str, spawn: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        self._store = store
        self._incarnation = incarnation
        self._spawn = spawn
        self._rooms: dict[str, Room] = {}
        self._dirty: dict[Room, None] = {}
        self._writing = False
        self._scheduled = False
        self._good_until = 0.0
        self._fading: deque[tuple[float, Room, Attendee]] = deque()
        self._fader: asyncio.TimerHandle | None = None
        self._left: dict[tuple[str, str], float] = {}
        self._suspended = False
        self._doubtful_until = 0.0
        self._repeat_at = 0.0
        self._looking: list[list[tuple[Room, Attendee]]] = []
        self._look_busy = False
        self._ticks = 0
        self.local = 0
        self.joins = 0
        self.leaves = 0

    async def enter(self, channel: str, attendee: Attendee) -> None:
        """Become a member, or one with another info.

        Raises:
            Unavailable: the store has not taken it; at once when it has been away for longer.
        """
        if 0.0 < self._good_until < time.monotonic() - PATIENCE_SECONDS:
            raise Unavailable("the store cannot be told who is here", retry_after=1.0)
        room = self._rooms.get(channel)
        if room is None:
            room = self._rooms[channel] = Room(channel)
        self.local += attendee.client not in room.here
        room.here[attendee.client] = attendee
        joined = room.wait(attendee)
        self._touch(room, attendee.client)
        try:
            async with asyncio.timeout(ENTER_SECONDS):
                await joined
        except TimeoutError:
            self._withdraw(channel, attendee)
            raise Unavailable("the store cannot be told who is here", retry_after=1.0) from None
        except asyncio.CancelledError:
            self._withdraw(channel, attendee)
            raise

    def _withdraw(self, channel: str, attendee: Attendee) -> None:
        """Leave, unless the client has entered again meanwhile."""
        room = self._rooms.get(channel)
        if room is not None and room.here.get(attendee.client) is attendee:
            self.leave(channel, attendee.client)

    def leave(self, channel: str, client: str) -> None:
        """Be no member any more, now."""
        room = self._rooms.get(channel)
        if room is not None and room.here.pop(client, None) is not None:
            self.local -= 1
            room.dismiss(client)
            self._touch(room, client)

    def gone(self, channel: str, client: str) -> None:
        """Be no member any more in `GRACE_SECONDS` in which one could come back: while the store is away time stands
        still.
        """
        room = self._rooms.get(channel)
        attendee = None if room is None else room.here.get(client)
        if room is None or attendee is None:
            return
        self._fading.append((asyncio.get_running_loop().time() + GRACE_SECONDS, room, attendee))
        self._plan_fading()

    def _plan_fading(self) -> None:
        if self._fading and self._fader is None:
            self._fader = asyncio.get_running_loop().call_at(self._fading[0][0], self._fade)

    def _fade(self) -> None:
        self._fader = None
        if self._suspended or not self._may_write:
            return  # `trust` begins anew
        now = asyncio.get_running_loop().time()
        while self._fading and self._fading[0][0] <= now:
            _, room, attendee = self._fading.popleft()
            self._withdraw(room.name, attendee)
        self._plan_fading()

    def _resume_fading(self) -> None:
        """Now one can come back: the grace of all who are gone begins."""
        if self._fader is not None:
            self._fader.cancel()
            self._fader = None
        until = asyncio.get_running_loop().time() + GRACE_SECONDS
        self._fading = deque((until, room, attendee) for _, room, attendee in self._fading)
        self._plan_fading()

    # -- the lease

    def trust(self, until: float) -> None:
        """The lease holds until then (seconds of the monotonic clock): what waits is written."""
        resumed = self._suspended or not self._may_write
        self._good_until = until
        self._suspended = False
        if resumed:
            self._resume_fading()
        self._repeat()
        self._schedule()

    def doubt(self) -> None:
        """The store has failed, or another server leads: it may have lost what it has taken, and may yet take what was
        given up for lost. Who has left is made to leave again, as soon as there is trust and while doubt lasts.
        """
        now = asyncio.get_running_loop().time()
        self._doubtful_until = now + DOUBT_SECONDS
        self._repeat_at = 0.0
        self._looking = []  # from the beginning, with all rooms
        for room in self._rooms.values():
            room.registered = False

    def suspend(self) -> None:
        """The store does not answer: until `trust` nobody can come back."""
        self._suspended = True
        self.doubt()

    def _repeat(self) -> None:
        """Only we can make our own leave, so that it may be said as often as one likes."""
        now = asyncio.get_running_loop().time()
        if now >= self._doubtful_until or now < self._repeat_at:
            return
        self._repeat_at = now + REPEAT_SECONDS
        for name, client in self._left:
            self._leave_again(name, client)

    def _leave_again(self, channel: str, client: str) -> None:
        room = self._rooms.get(channel)
        if room is None:
            room = self._rooms[channel] = Room(channel)
        if client not in room.here:
            self._touch(room, client)

    def _forget(self) -> None:
        """Leaves of long ago."""
        now = asyncio.get_running_loop().time()
        if self._suspended or not self._may_write or now < self._doubtful_until:
            return
        old = itertools.takewhile(lambda one: one[1] < now - REMEMBER_SECONDS, self._left.items())
        for key, _ in list(old):
            del self._left[key]

    def reincarnate(self, incarnation: str) -> None:
        """This worker was buried: all its members join again, and what the old incarnation may have left is removed.
        Nothing is written before `trust`.
        """
        self._good_until = 0.0
        for room in self._rooms.values():
            room.haunted = (*room.haunted, self._incarnation)
            room.registered = False
        self._incarnation = incarnation
        self.assert_all()
        self._dirty.update(dict.fromkeys(self._rooms.values()))

    def assert_all(self) -> None:
        """The store may have lost everybody."""
        for room in self._rooms.values():
            room.registered = False
            room.due.update(dict.fromkeys(room.here))
            if room.here:
                self._dirty[room] = None
        self._schedule()

    def tick(self) -> None:
        """Once a second: try again what has failed, and look whether some of the members are still known."""
        self._forget()
        self._schedule()
        self._ticks += 1
        if self._may_write and not self._look_busy and self.local and self._ticks % LOOK_SECONDS == 0:
            rooms: list[str] = []
            if not self._looking:
                rooms = [room.name for room in self._rooms.values() if room.here]
                everyone = [(room, one) for room in self._rooms.values() for one in room.here.values()]
                self._looking = spread(everyone, max(1, ASSERT_SECONDS // LOOK_SECONDS))
            turn = [(room, one) for room, one in self._looking.pop() if self._stands(room, one)]
            if turn or rooms:
                self._look_busy = True
                self._spawn(self._look(turn, rooms))

    async def _look(self, turn: list[tuple[Room, Attendee]], rooms: list[str]) -> None:
        """Note `rooms` again, and put back who is absent; a room that has lost somebody may not be noted either."""
        try:
            incarnation = self._incarnation
            await self._store.register(incarnation, rooms, here=True)
            found = await self._store.absent(incarnation, [(room.name, one) for room, one in turn])
            missing = [turn[index] for index in found.absent]
            await self._store.register(incarnation, list({room.name: None for room, _ in missing}), here=True)
            for room, one in missing:
                if self._stands(room, one):
                    self._touch(room, one.client)
            if incarnation == self._incarnation:
                for channel, client in found.strangers:
                    self._leave_again(channel, client)
        except TocsinError as error:
            log.info("members could not be looked for", reason=error.message)
            self.doubt()
        finally:
            self._look_busy = False

    @staticmethod
    def _stands(room: Room, attendee: Attendee) -> bool:
        """Whether the store should have this one, and nothing about it is on its way."""
        return room.here.get(attendee.client) is attendee and attendee.client not in room.due

    # -- writing

    @property
    def _may_write(self) -> bool:
        return time.monotonic() < self._good_until

    def _touch(self, room: Room, client: str) -> None:
        room.due[client] = None
        self._dirty[room] = None
        self._schedule()

    def _schedule(self) -> None:
        if self._dirty and not self._writing and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._start)

    def _start(self) -> None:
        self._scheduled = False
        if self._dirty and not self._writing and self._may_write:
            self._writing = True
            self._spawn(self._write())

    async def _write(self) -> None:
        """Write until nothing is due; after a failure wait for the next tick."""
        try:
            while self._dirty and self._may_write:
                rooms = list(itertools.islice(self._dirty, ROOMS))
                for room in rooms:
                    del self._dirty[room]
                try:
                    await self._register([room for room in rooms if room.here and not room.registered])
                except TocsinError as error:
                    self.doubt()
                    for room in rooms:
                        self._refuse(room, list(room.due), list(room.here.values()), error)
                    return
                written = await asyncio.gather(*(self._write_room(room) for room in rooms))
                await self._close([room for room in rooms if not room.here and not room.due and not room.haunted])
                if not all(written):
                    self.doubt()
                    return
        finally:
            self._writing = False

    async def _register(self, rooms: list[Room]) -> None:
        """Before anyone joins, a reaper must be able to find the room."""
        if rooms:
            incarnation = self._incarnation
            await self._store.register(incarnation, [room.name for room in rooms], here=True)
            if incarnation == self._incarnation:
                for room in rooms:
                    room.registered = True

    async def _write_room(self, room: Room) -> bool:
        """One batch of a room. Returns whether it succeeded."""
        clients = list(itertools.islice(room.due, BATCH))
        for client in clients:
            del room.due[client]
        incarnation = self._incarnation
        joins = [room.here[client] for client in clients if client in room.here]
        leaves = [client for client in clients if client not in room.here]
        if joins and not room.registered:  # it came while the others were being registered, or we were buried
            room.due.update(dict.fromkeys(clients))
            self._dirty[room] = None
            return True
        try:
            if clients:
                await self._store.attend(room.name, incarnation, joins, leaves)
            if room.haunted and not room.due:
                ghosts = room.haunted
                for ghost in ghosts:
                    await self._store.reap(room.name, ghost)
                room.haunted = room.haunted[len(ghosts) :]
        except TocsinError as error:
            self._refuse(room, clients, joins, error)
            return False
        self.joins += len(joins)
        self.leaves += len(leaves)
        for attendee in joins:
            self._left.pop((room.name, attendee.client), None)
            room.answer(attendee)
        now = asyncio.get_running_loop().time()
        for client in leaves:
            self._left.pop((room.name, client), None)
            self._left[room.name, client] = now
        if room.due or room.haunted:
            self._dirty[room] = None
        return True

    def _refuse(self, room: Room, clients: list[str], joins: list[Attendee], error: TocsinError) -> None:
        """It is unknown what the store has taken. Who has just come is told, and leaves; the rest is tried again."""
        self._dirty[room] = None
        room.due.update(dict.fromkeys(clients))
        for attendee in joins:
            if room.answer(attendee, error) and room.here.get(attendee.client) is attendee:
                del room.here[attendee.client]
                self.local -= 1

    async def _close(self, rooms: list[Room]) -> None:
        """The last one of this worker has left these rooms."""
        named = []
        for room in rooms:
            room.registered = False
            if self._rooms.get(room.name) is room and room not in self._dirty:
                del self._rooms[room.name]
                named.append(room.name)
        if named:
            try:
                await self._store.register(self._incarnation, named, here=False)
            except TocsinError as error:
                log.info("a room without members stays noted", reason=error.message)
