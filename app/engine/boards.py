"""Boards: what those who watch the rooms of one worker are told of them, at most once a second."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import structlog

from app.brokers import Presence, Roll
from app.core.errors import TocsinError
from app.core.messages import Attendance, PresenceChange
from app.engine.board import LARGE, Board, Changes, Watcher
from app.engine.channel import Channel
from app.engine.membership import spread
from app.protocols import Conversation
from app.sockets import Chunk, Framing

log = structlog.get_logger("tocsin.presence")

PUSH_SECONDS = 1.0
READ_SECONDS = 60
"""In which each board is compared with the store once."""
READS = 256
"""Rooms read at once."""
SLICE = 2_000
"""Sockets written in one turn of the loop."""


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
        self._stale: dict[Board, None] = {}
        self._round: list[list[Board]] = []
        self._reading = False
        self._scheduled = False
        self._behind: dict[Board, None] = {}

    def watch(self, channel: str, watcher: Watcher) -> None:
        """Keep for this one what happens from now on, until it is begun."""
        board = self._boards.get(channel)
        if board is None:
            board = self._boards[channel] = Board(channel)
            self._doubt(board)
        board.watch(watcher)

    def begin(self, channel: str, watcher: Watcher) -> None:
        """Its list was written: tell it what has happened since `watch`, and of every change from now on."""
        board = self._boards.get(channel)
        if board is not None and board.begin(watcher):
            self._due(board, PUSH_SECONDS)

    def unwatch(self, channel: str, watcher: Watcher) -> None:
        """No more."""
        board = self._boards.get(channel)
        if board is None:
            return
        board.unwatch(watcher)
        if not board.watchers:
            del self._boards[channel]
            self._stale.pop(board, None)
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
            self._doubt(board)
        self._due(board, 0.0 if item.reaped else PUSH_SECONDS)

    def doubt(self) -> None:
        """The reader was lost: every room is read again as soon as it is heard again."""
        for board in self._boards.values():
            self._doubt(board)

    def tick(self) -> None:
        """Once a second: read what is stale and some of the others, write to those who were slow."""
        if self._boards:
            if not self._round:
                self._round = spread(list(self._boards.values()), READ_SECONDS)
            for board in self._round.pop():
                if board.watchers:
                    self._doubt(board)
            self._schedule()
        for board in list(self._behind):
            self._catch_up(board)

    # -- reading

    def _doubt(self, board: Board) -> None:
        board.stale = True
        self._stale[board] = None
        self._schedule()

    def _schedule(self) -> None:
        if self._stale and not self._scheduled and not self._reading:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._start)

    def _start(self) -> None:
        self._scheduled = False
        if self._stale and not self._reading:
            self._reading = True
            self._spawn(self._read())

    def _readable(self) -> list[Board]:
        """What is stale and heard: a reading of what is not heard would soon be wrong."""
        found = []
        for board in self._stale:
            channel = self._channels.get(board.channel)
            if channel is not None and channel.live:
                found.append(board)
        return found

    async def _read(self) -> None:
        boards: list[Board] = []
        try:
            while found := self._readable():
                for start in range(0, len(found), READS):
                    boards = [board for board in found[start : start + READS] if board in self._stale]
                    for board in boards:
                        del self._stale[board]
                        board.begin_reading()
                    rolls = await self._store.rolls([board.channel for board in boards], LARGE)
                    for board, roll in zip(boards, rolls, strict=True):
                        self._take(board, roll)
                    boards = []
        except TocsinError as error:
            log.info("a watched room could not be read", reason=error.message)
        finally:
            self._reading = False
            for board in boards:
                board.touched = None
                if board.watchers:
                    board.stale = True
                    self._stale[board] = None

    def _take(self, board: Board, roll: Roll) -> None:
        board.read(roll)
        if board.watchers:
            if board.stale:
                self._stale[board] = None
            self._due(board, PUSH_SECONDS)

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
        event, watchers = board.take()
        before, board.told = board.told, board.count
        if event is not None:
            self._write(board, event, before or 0, watchers, {})
        event, watchers = board.welcome()
        if watchers:
            self._write(board, event, None, watchers, {})
        if board.waiting:
            self._behind[board] = None

    def _write(
        self,
        board: Board,
        event: PresenceChange,
        before: int | None,
        watchers: list[Watcher],
        encoded: dict[tuple[Conversation, Framing], Chunk],
    ) -> None:
        """Encode once per codec and framing, and write to the next sockets. `before` is the count that they were told
        last; None for newcomers, which are told at once or not at all.
        """
        for watcher in watchers[:SLICE]:
            newcomer = board.fresh.get(watcher)
            if watcher not in board.watchers or (newcomer is not None and not newcomer.begun):
                continue
            slow = watcher.socket.paused or (board.behind is not None and watcher in board.behind)
            if slow and before is not None:
                self._keep(board, watcher, event, before)
            else:
                watcher.socket.write(self._encode(watcher, event, encoded))
        if len(watchers) > SLICE:
            asyncio.get_running_loop().call_soon(self._write, board, event, before, watchers[SLICE:], encoded)

    @staticmethod
    def _encode(watcher: Watcher, event: PresenceChange, encoded: dict[tuple[Conversation, Framing], Chunk]) -> Chunk:
        framing = watcher.socket.framing
        key = (watcher.codec, framing)
        if key not in encoded:
            said: Any = event
            encoded[key] = framing.join([framing.text(watcher.codec.say(said).payload)])[0]
        return encoded[key]

    def _keep(self, board: Board, watcher: Watcher, event: PresenceChange, before: int) -> None:
        """It reads too slowly: what it is not told now is joined with what follows."""
        board.behind = board.behind or {}
        board.behind.setdefault(watcher, Changes(before)).add(event)
        self._behind[board] = None

    def _catch_up(self, board: Board) -> None:
        count = board.told or 0
        for watcher, changes in list((board.behind or {}).items()):
            if watcher.socket.paused:
                continue
            joined, left = ((), ()) if board.large else changes.take()
            if joined or left or count != changes.count:
                event = PresenceChange(board.channel, joined, left, count)
                watcher.socket.write(self._encode(watcher, event, {}))
            changes.count = count
            if not board.large:
                assert board.behind is not None
                del board.behind[watcher]
        if board.waiting:
            self._due(board, PUSH_SECONDS)
        elif not board.behind:
            board.behind = None
            del self._behind[board]
