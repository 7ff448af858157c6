"""Boards: what those who watch a room are told of it, at most once a second.

A board has the whole list of a room of ordinary size, so that what was not heard can be found by reading the room
again: after a loss of the reader, and now and then. What the messages of a room say counts more than a reading that
was under way when they came.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Protocol

import structlog

from app.brokers import Presence, Roll
from app.core.errors import TocsinError
from app.core.messages import Attendance, Member, PresenceChange
from app.engine.channel import Channel
from app.engine.membership import spread
from app.protocols import Conversation
from app.sockets import Chunk, Framing, Socket

log = structlog.get_logger("tocsin.presence")

LARGE = 500
"""Members from which on only their number is told."""
PUSH_SECONDS = 1.0
READ_SECONDS = 60
"""In which each board is compared with the store once."""
READS = 256
"""Rooms read at once."""
SLICE = 2_000
"""Sockets written in one turn of the loop."""


class Watcher(Protocol):
    """A connection that wants to know who comes and leaves."""

    codec: Conversation
    socket: Socket


class Changes:
    """Who has joined and who has left; who did both has done neither."""

    __slots__ = ("_joined", "_left")

    def __init__(self) -> None:
        self._joined: dict[str, Member] = {}
        self._left: dict[str, Member] = {}

    def join(self, member: Member) -> None:
        """One has come."""
        if self._left.pop(member.member, None) is None:
            self._joined[member.member] = member

    def leave(self, member: Member) -> None:
        """One has left."""
        if self._joined.pop(member.member, None) is None:
            self._left[member.member] = member

    def take(self) -> tuple[tuple[Member, ...], tuple[Member, ...]]:
        """What is to be told, once."""
        joined, left = tuple(self._joined.values()), tuple(self._left.values())
        self._joined, self._left = {}, {}
        return joined, left


class Board:
    """One watched room.

    Attributes:
        members: who is here, by name; None before the first reading. Left as it is while the room is large.
        count: how many there are; `told` is what the watchers have been told last.
        touched: what was heard while a reading is under way; None when there is none.
        stale: it must be read again.
        behind: watchers that read too slowly, with what they have not been told.
    """

    __slots__ = (
        "behind",
        "changes",
        "channel",
        "count",
        "large",
        "members",
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
        self.stale = True
        self.touched: dict[str, Member | None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.behind: dict[Watcher, Changes] | None = None

    def hear(self, item: Attendance) -> None:
        """A message of the room."""
        self.count = item.count
        if item.count > LARGE:
            self.large = True
            self.changes = Changes()
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

    def _unset(self, member: Member) -> None:
        if self.touched is not None:
            self.touched[member.member] = None
        if self.members is None or member.member in self.members:
            self.changes.leave(member)
        if self.members is not None:
            self.members.pop(member.member, None)

    def read(self, roll: Roll) -> None:
        """A reading that began when `touched` was made."""
        touched, self.touched = self.touched or {}, None
        if not touched:
            self.count = roll.count
        if self.told is None:
            self.told = self.count
        if roll.members is None:
            self.large = self.count > LARGE
            self.stale = self.stale or not self.large
            return
        if self.large:
            return
        now = {member.member: member for member in roll.members}
        for name, heard in touched.items():
            if heard is None:
                now.pop(name, None)
            else:
                now[name] = heard
        before, self.members = self.members, now
        if before is not None:
            for name, member in now.items():
                if name not in before:
                    self.changes.join(member)
            for name, member in before.items():
                if name not in now:
                    self.changes.leave(Member(name, 0, member.info))


class Boards:
    """The watched rooms of one worker.

    Args:
        store: who is in which room.
        channels: of the hub, by name.
        spawn: runs a coroutine under supervision.
    """

    def __init__(
        self,
        store: Presence,
        channels: Mapping[str, Channel],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._store = store
        self._channels = channels
        self._spawn = spawn
        self._boards: dict[str, Board] = {}
        self._round: list[list[Board]] = []
        self._reading = False
        self._scheduled = False
        self._behind: dict[Board, None] = {}

    def watch(self, channel: str, watcher: Watcher) -> None:
        """Tell this one of every change from now on."""
        board = self._boards.get(channel)
        if board is None:
            board = self._boards[channel] = Board(channel)
            self._schedule()
        board.watchers[watcher] = None

    def unwatch(self, channel: str, watcher: Watcher) -> None:
        """No more."""
        board = self._boards.get(channel)
        if board is None:
            return
        board.watchers.pop(watcher, None)
        if board.behind is not None:
            board.behind.pop(watcher, None)
        if not board.watchers:
            del self._boards[channel]
            self._behind.pop(board, None)
            if board.timer is not None:
                board.timer.cancel()

    def received(self, channel: str, item: Attendance) -> None:
        """A message of a room."""
        board = self._boards.get(channel)
        if board is None:
            return
        board.hear(item)
        if board.stale:
            self._schedule()
        self._due(board, 0.0 if item.reaped else PUSH_SECONDS)

    def doubt(self) -> None:
        """The reader was lost: every room is read again as soon as it is heard again."""
        for board in self._boards.values():
            board.stale = True

    def tick(self) -> None:
        """Once a second: read what is stale and some of the others, write to those who were slow."""
        if self._boards:
            if not self._round:
                self._round = spread(list(self._boards.values()), READ_SECONDS)
            for board in self._round.pop():
                board.stale = True
            self._schedule()
        for board in list(self._behind):
            self._catch_up(board)

    # -- reading

    def _schedule(self) -> None:
        if not self._scheduled and not self._reading:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._start)

    def _start(self) -> None:
        self._scheduled = False
        if not self._reading and any(board.stale for board in self._boards.values()):
            self._reading = True
            self._spawn(self._read())

    def _readable(self) -> list[Board]:
        """What is stale and heard: a reading of what is not heard would soon be wrong."""
        found = []
        for board in self._boards.values():
            channel = self._channels.get(board.channel) if board.stale else None
            if channel is not None and channel.live:
                found.append(board)
                if len(found) == READS:
                    break
        return found

    async def _read(self) -> None:
        boards: list[Board] = []
        try:
            while boards := self._readable():
                for board in boards:
                    board.stale = False
                    board.touched = {}
                rolls = await self._store.rolls([board.channel for board in boards], LARGE)
                for board, roll in zip(boards, rolls, strict=True):
                    board.read(roll)
                    self._due(board, PUSH_SECONDS)
        except TocsinError as error:
            log.info("a watched room could not be read", reason=error.message)
        finally:
            self._reading = False
            for board in boards:
                board.stale = True
                board.touched = None

    # -- telling

    def _due(self, board: Board, seconds: float) -> None:
        if not board.watchers:
            return
        if board.timer is not None:
            if seconds:
                return
            board.timer.cancel()
        board.timer = asyncio.get_running_loop().call_later(seconds, self._push, board)

    def _push(self, board: Board) -> None:
        board.timer = None
        joined, left = board.changes.take()
        if not joined and not left and board.count == board.told:
            return
        board.told = board.count
        event = PresenceChange(board.channel, joined, left, board.count)
        self._write(board, event, list(board.watchers), 0, {})

    def _write(
        self,
        board: Board,
        event: PresenceChange,
        watchers: list[Watcher],
        start: int,
        encoded: dict[tuple[Conversation, Framing], Chunk],
    ) -> None:
        """Encode once per codec and framing, and write to the next sockets."""
        for watcher in watchers[start : start + SLICE]:
            if watcher not in board.watchers:
                continue
            if watcher.socket.paused or (board.behind is not None and watcher in board.behind):
                self._keep(board, watcher, event)
            else:
                watcher.socket.write(self._encode(watcher, event, encoded))
        if start + SLICE < len(watchers):
            asyncio.get_running_loop().call_soon(self._write, board, event, watchers, start + SLICE, encoded)

    @staticmethod
    def _encode(watcher: Watcher, event: PresenceChange, encoded: dict[tuple[Conversation, Framing], Chunk]) -> Chunk:
        framing = watcher.socket.framing
        key = (watcher.codec, framing)
        if key not in encoded:
            said: Any = event
            encoded[key] = framing.join([framing.text(watcher.codec.say(said).payload)])[0]
        return encoded[key]

    def _keep(self, board: Board, watcher: Watcher, event: PresenceChange) -> None:
        """It reads too slowly: what it is not told now is joined with what follows."""
        board.behind = board.behind or {}
        _add(board.behind.setdefault(watcher, Changes()), event.joined, event.left)
        self._behind[board] = None

    def _catch_up(self, board: Board) -> None:
        for watcher, changes in list((board.behind or {}).items()):
            if not watcher.socket.paused:
                assert board.behind is not None
                del board.behind[watcher]
                event = PresenceChange(board.channel, *changes.take(), board.told or 0)
                watcher.socket.write(self._encode(watcher, event, {}))
        if not board.behind:
            board.behind = None
            del self._behind[board]


def _add(changes: Changes, joined: Iterable[Member], left: Iterable[Member]) -> None:
    for member in joined:
        changes.join(member)
    for member in left:
        changes.leave(member)
