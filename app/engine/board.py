"""One board: what is known of a watched room, and what those who watch it have not been told of that.

A board has the whole list of a room of ordinary size, so that what was not heard can be found by reading the room
again: after a loss of the reader, and now and then. What the messages of a room say counts more than a reading that
was under way when they came.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from app.brokers import Roll
from app.core.messages import Attendance, Member, PresenceChange
from app.protocols import Conversation
from app.sockets import Socket

LARGE = 500
"""Members from which on only their number is told; the same as in `room.lua`."""


class Watcher(Protocol):
    """A connection that wants to know who comes and leaves."""

    codec: Conversation
    socket: Socket


class Changes:
    """Who has joined and who has left; who did both has done neither.

    Attributes:
        count: members of the room that one was told of before.
    """

    __slots__ = ("_joined", "_left", "count")

    def __init__(self, count: int = 0) -> None:
        self._joined: dict[str, Member] = {}
        self._left: dict[str, Member] = {}
        self.count = count

    def join(self, member: Member) -> None:
        """One has come."""
        if self._left.pop(member.member, None) is None:
            self._joined[member.member] = member

    def leave(self, member: Member) -> None:
        """One has left."""
        if self._joined.pop(member.member, None) is None:
            self._left[member.member] = member

    def add(self, event: PresenceChange) -> None:
        """What was not told."""
        for member in event.joined:
            self.join(member)
        for member in event.left:
            self.leave(member)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._joined or self._left)

    def take(self) -> tuple[tuple[Member, ...], tuple[Member, ...]]:
        """What is to be told, once."""
        joined, left = tuple(self._joined.values()), tuple(self._left.values())
        self._joined, self._left = {}, {}
        return joined, left


class Newcomer:
    """One whose list was read between two pushes: nobody knows which of the changes it has.

    Attributes:
        since: the board's serial when it began to watch; `told` when it was told last.
        count: what it was told last; None when it has only its list.
        begun: its list has been written.
    """

    __slots__ = ("begun", "count", "since", "told")

    def __init__(self, serial: int) -> None:
        self.since = serial
        self.told = serial
        self.count: int | None = None
        self.begun = False


class Board:
    """One watched room.

    Attributes:
        members: who is here, by name; None before the first reading. Left as it is while the room is large, since that
            is what those who watched before were told.
        count: how many there are; `told` is what the watchers have been told last.
        large: only the number is told now; `listed` is False from then until the room has been read again.
        touched: what was heard while a reading is under way, None when there is none; `heard` if anything was.
        stale: it must be read again.
        serial: counts what was learnt.
        fresh: watchers that came since the last push, and their `log`: the last that is known of each name that was
            touched since, with its serial, oldest first. It may be told to anyone who has a list, as often as one
            likes.
        behind: watchers that read too slowly, with what they have not been told.
    """

    __slots__ = (
        "behind",
        "changes",
        "channel",
        "count",
        "fresh",
        "heard",
        "large",
        "listed",
        "log",
        "members",
        "serial",
        "stale",
        "timer",
        "told",
        "touched",
        "watchers",
    )

    def __init__(self, channel: str) -> None:
        self.channel = channel
        self.watchers: dict[Watcher, None] = {}
        self.members: dict[str, Member] | None = None
        self.changes = Changes()
        self.count = 0
        self.told: int | None = None
        self.large = False
        self.listed = True
        self.stale = True
        self.heard = False
        self.touched: dict[str, Member | None] | None = None
        self.serial = 0
        self.fresh: dict[Watcher, Newcomer] = {}
        self.log: dict[str, tuple[int, Member]] = {}
        self.timer: asyncio.TimerHandle | None = None
        self.behind: dict[Watcher, Changes] | None = None

    # -- who watches

    def watch(self, watcher: Watcher) -> None:
        """One comes, or reads its list again."""
        self.watchers[watcher] = None
        self.fresh[watcher] = Newcomer(self.serial)
        if self.behind is not None:
            self.behind.pop(watcher, None)

    def unwatch(self, watcher: Watcher) -> None:
        """One goes."""
        self.watchers.pop(watcher, None)
        if self.fresh.pop(watcher, None) is not None:
            self._forget()
        if self.behind is not None:
            self.behind.pop(watcher, None)

    def begin(self, watcher: Watcher) -> bool:
        """One has its list. Returns whether there is something to tell it."""
        newcomer = self.fresh.get(watcher)
        if newcomer is None:
            return False
        newcomer.begun = True
        if newcomer.told != self.serial:
            return True
        if self._whole and not self.changes and self.count == self.told:  # it knows what the others know
            del self.fresh[watcher]
            self._forget()
        return False

    @property
    def _whole(self) -> bool:
        """Whether we have a list that those who watch can be brought to."""
        return self.members is not None and self.listed and not self.large

    # -- what is learnt

    def hear(self, item: Attendance) -> None:
        """A message of the room."""
        self.serial += 1
        self.heard = True
        self.count = item.count
        if item.count > LARGE:
            self.large, self.listed = True, False
            return
        if self.large:  # what happened meanwhile is in none of our lists
            self.large = False
            self.stale = True
        for member in item.joined:
            self._set(member.member, member)
        for member in item.left:
            self._unset(member)

    def _set(self, name: str, member: Member) -> None:
        if self.touched is not None:
            self.touched[name] = member
        if self.members is None or name not in self.members:
            self.changes.join(member)
        if self.members is not None:
            self.members[name] = member
        self._note(member)

    def _unset(self, member: Member) -> None:
        """Messages do not repeat the info of who has left."""
        name = member.member
        if self.touched is not None:
            self.touched[name] = None
        known = None if self.members is None else self.members.pop(name, None)
        if known is not None:
            member = Member(name, 0, known.info)
        if self.members is None or known is not None:
            self.changes.leave(member)
        self._note(member)

    def _note(self, member: Member) -> None:
        if self.fresh:
            self.log.pop(member.member, None)
            self.log[member.member] = (self.serial, member)

    def _forget(self) -> None:
        """What none of the newcomers needs."""
        oldest = min((newcomer.since for newcomer in self.fresh.values()), default=self.serial)
        for name, (serial, _) in list(self.log.items()):
            if serial > oldest:
                return
            del self.log[name]

    def begin_reading(self) -> None:
        """What is heard from now on is newer than what will be read."""
        self.stale, self.heard, self.touched = False, False, {}

    def read(self, roll: Roll) -> None:
        """What has been read since `begin_reading`."""
        touched, self.touched = self.touched or {}, None
        if not self.heard and self.count != roll.count:
            self.count = roll.count
            self.serial += self.told is not None
        if self.told is None:
            self.told = self.count
        self.large = self.count > LARGE
        if self.large:
            self.listed = False
            return
        if roll.members is None:
            self.stale = True
            return
        now = {member.member: member for member in roll.members}
        for name, heard in touched.items():
            if heard is None:
                now.pop(name, None)
            else:
                now[name] = heard
        before, self.members = self.members, now
        if before is not None:
            self._compare(before, now)
        if not self.listed and not self.stale:  # who came meanwhile has never seen a whole list
            self.listed = True
            self.serial += 1
            for member in now.values():
                self._note(member)

    def _compare(self, before: dict[str, Member], now: dict[str, Member]) -> None:
        joined = [member for name, member in now.items() if name not in before]
        left = [Member(name, 0, member.info) for name, member in before.items() if name not in now]
        self.serial += bool(joined or left)
        for member in joined:
            self.changes.join(member)
            self._note(member)
        for member in left:
            self.changes.leave(member)
            self._note(member)

    # -- what is told

    def take(self) -> tuple[PresenceChange | None, list[Watcher]]:
        """What there is for those who have been told everything until now, and who they are."""
        joined, left = ((), ()) if self.large else self.changes.take()
        if not joined and not left and self.count == self.told:
            return None, []
        event = PresenceChange(self.channel, joined, left, self.count)
        return event, [watcher for watcher in self.watchers if watcher not in self.fresh]

    def welcome(self) -> tuple[PresenceChange, list[Watcher]]:
        """What there is for newcomers that can be told now, and who they are. Right after `take`: then they are
        newcomers no more, unless we have no list ourselves.
        """
        joined, left = list[Member](), list[Member]()
        if not self.large:
            for _, member in self.log.values():
                (joined if member.clients else left).append(member)
        event = PresenceChange(self.channel, tuple(joined), tuple(left), self.count)
        late = []
        for watcher, newcomer in list(self.fresh.items()):
            if newcomer.begun and not watcher.socket.paused:
                if newcomer.told != self.serial and (not self.large or newcomer.count != self.count):
                    late.append(watcher)
                    newcomer.count = self.count
                newcomer.told = self.serial
                if self._whole:
                    del self.fresh[watcher]
        self._forget()
        return event, late

    @property
    def waiting(self) -> bool:
        """Whether a newcomer that has begun was too slow to be told."""
        return any(one.begun and one.told != self.serial for one in self.fresh.values())
