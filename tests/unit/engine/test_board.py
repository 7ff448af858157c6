"""Boards on a store that says what the test wants: whoever watches comes to the list that is true."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest

from app.brokers import Presence, Roll
from app.core.messages import Attendance, Member, PresenceChange
from app.engine import boards as module
from app.engine.board import LARGE, Watcher
from app.engine.boards import Boards
from app.engine.channel import Channel
from app.protocols import Message
from tests.unit.engine.clock import run
from tests.unit.engine.crowd import Wire


class Codec:
    """Writes what it is told as names, and the count."""

    def say(self, event: PresenceChange) -> Message:
        joined, left = ([one.member for one in some] for some in (event.joined, event.left))
        return Message(orjson.dumps([joined, left, event.count]), text=True)


class Watching:
    """A client with a list, as the protocol wants it: what is told is done to the list, in whatever order."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.heard: list[list[Any]] = []
        self.members: set[str] = set()
        self.count = 0
        self.socket = Wire(self._take, lambda _: None)

    def _take(self, payload: bytes) -> None:
        joined, left, self.count = orjson.loads(payload)
        self.heard.append([joined, left, self.count])
        self.members = (self.members | set(joined)) - set(left)


class Rooms:
    """The store and a worker's boards. What is in the room is in `members`; messages come when the test says so.

    Attributes:
        reading: awaited by each reading, after it has read.
    """

    def __init__(self, *members: str) -> None:
        self.members = dict.fromkeys(members)
        self.tasks: set[asyncio.Task[None]] = set()
        self.codec = Codec()
        self.asked: list[int] = []
        self.reading: Callable[[], Awaitable[None]] | None = None
        channel = cast("Channel", SimpleNamespace(live=True))
        self.boards = Boards(cast("Presence", self), _Channels(channel), self._spawn)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def rolls(self, rooms: Sequence[str], limit: int) -> list[Roll]:
        self.asked.append(len(rooms))
        count = len(self.members)
        members = None if count > limit else tuple(Member(name, 1) for name in self.members)
        if self.reading is not None:
            await self.reading()
        return [Roll(count, members) for _ in rooms]

    def join(self, *names: str, heard: bool = True) -> None:
        self.members.update(dict.fromkeys(names))
        if heard:
            self.hear(names, ())

    def leave(self, *names: str, heard: bool = True) -> None:
        for name in names:
            del self.members[name]
        if heard:
            self.hear((), names)

    def hear(self, joined: Sequence[str], left: Sequence[str]) -> None:
        """As the store tells it: of a large room only the number."""
        if len(self.members) > LARGE:
            joined, left = (), ()
        come, gone = tuple(Member(name, 1) for name in joined), tuple(Member(name, 0) for name in left)
        self.boards.received("room", Attendance(come, gone, len(self.members)))

    def watch(self) -> Watching:
        """Watches and reads its list, which is not yet written."""
        watcher = Watching(self.codec)
        self.boards.watch("room", cast("Watcher", watcher))
        self.page(watcher)
        return watcher

    def page(self, watcher: Watching) -> None:
        watcher.members, watcher.count = set(self.members), len(self.members)

    def begin(self, watcher: Watching) -> None:
        self.boards.begin("room", cast("Watcher", watcher))

    async def watched(self) -> Watching:
        """One that has watched for a while."""
        watcher = self.watch()
        await asyncio.sleep(0.01)
        self.begin(watcher)
        await asyncio.sleep(5)
        watcher.heard.clear()
        return watcher

    def right(self, watcher: Watching) -> bool:
        return (watcher.members, watcher.count) == (set(self.members), len(self.members))


class _Channels(dict[str, Channel]):
    """Every channel there is."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def get(self, key: str, default: Any = None) -> Any:
        return self._channel


async def ticking(rooms: Rooms, seconds: int) -> None:
    for _ in range(seconds):
        rooms.boards.tick()
        await asyncio.sleep(1)


def test_who_comes_between_two_pushes_is_told_what_the_others_need_not_be() -> None:
    async def scene() -> None:
        rooms = Rooms("ada", "bob")
        before = await rooms.watched()
        rooms.leave("ada")
        rooms.join("eve")
        late = rooms.watch()  # its list has no ada, and eve
        rooms.begin(late)
        rooms.join("ada")
        rooms.leave("eve")
        await asyncio.sleep(2)
        assert before.heard == []
        assert late.heard == [[["ada"], ["eve"], 2]]
        rooms.leave("bob")
        await asyncio.sleep(2)
        assert before.heard == late.heard[1:] == [[[], ["bob"], 1]]
        assert not rooms.boards._boards["room"].fresh
        assert not rooms.boards._boards["room"].log

    run(scene())


def test_of_a_large_room_too_a_newcomer_is_told_the_number_that_the_others_know() -> None:
    async def scene() -> None:
        rooms = Rooms(*map(str, range(LARGE + 10)))
        before = await rooms.watched()
        rooms.leave("0")
        await asyncio.sleep(2)
        rooms.join("0")
        await asyncio.sleep(2)
        before.heard.clear()
        rooms.leave("1")
        late = rooms.watch()
        rooms.begin(late)
        rooms.join("1")
        await asyncio.sleep(2)
        assert before.heard == []
        assert late.heard == [[[], [], LARGE + 10]]

    run(scene())


def test_nobody_is_told_before_its_list_and_then_what_it_has_missed() -> None:
    async def scene() -> None:
        rooms = Rooms("ada")
        before = await rooms.watched()
        late = rooms.watch()
        rooms.join("bob")
        await asyncio.sleep(1.5)
        rooms.leave("ada")
        await asyncio.sleep(1.5)
        assert (before.heard, late.heard) == ([[["bob"], [], 2], [[], ["ada"], 1]], [])
        rooms.begin(late)
        rooms.begin(late)
        await asyncio.sleep(1.5)
        assert late.heard == [[["bob"], ["ada"], 1]]
        assert len(before.heard) == 2
        rooms.boards.begin("another", cast("Watcher", late))
        rooms.boards.unwatch("room", cast("Watcher", late))
        rooms.begin(late)
        rooms.join("eve")
        await asyncio.sleep(1.5)
        assert len(late.heard) == 1

    run(scene())


def test_who_reads_its_list_again_is_held_again() -> None:
    async def scene() -> None:
        rooms = Rooms("ada")
        watcher = await rooms.watched()
        watcher.socket.paused = True
        rooms.join("bob")
        await asyncio.sleep(1.5)
        rooms.leave("bob")
        rooms.boards.watch("room", cast("Watcher", watcher))
        rooms.page(watcher)
        watcher.socket.paused = False
        await ticking(rooms, 3)
        assert watcher.heard == []
        rooms.begin(watcher)
        await ticking(rooms, 3)
        assert rooms.right(watcher)

    run(scene())


def test_a_newcomer_that_reads_slowly_is_told_when_it_has_read() -> None:
    async def scene() -> None:
        rooms = Rooms("ada")
        await rooms.watched()
        rooms.leave("ada")
        late = rooms.watch()
        late.socket.paused = True
        rooms.begin(late)
        rooms.join("ada")
        await ticking(rooms, 3)
        assert late.heard == []
        late.socket.paused = False
        await ticking(rooms, 3)
        assert late.heard == [[["ada"], [], 1]]
        assert not rooms.boards._behind

    run(scene())


def test_what_the_log_keeps_does_not_grow_while_newcomers_keep_coming() -> None:
    async def scene() -> None:
        rooms = Rooms("ada")
        await rooms.watched()
        watcher = rooms.watch()
        for number in range(200):
            rooms.join(f"m{number}")
            following = rooms.watch()
            rooms.begin(watcher)
            watcher = following
            await asyncio.sleep(0.2)
            rooms.leave(f"m{number}")
        assert len(rooms.boards._boards["room"].log) < 20

    run(scene())


def test_a_room_that_is_read_to_be_small_again_is_told_again() -> None:
    async def scene() -> None:
        rooms = Rooms(*map(str, range(400)))
        before = await rooms.watched()
        rooms.join(*map(str, range(400, 600)))
        late = rooms.watch()
        late.members = set(map(str, range(100)))  # its page is one of several
        rooms.begin(late)
        await asyncio.sleep(2)
        assert before.heard == [[[], [], 600]]
        rooms.leave(*map(str, range(150, 450)), heard=False)
        rooms.boards.doubt()
        await asyncio.sleep(2)
        rooms.join("ada")
        await asyncio.sleep(2)
        assert rooms.right(before)
        assert rooms.right(late)
        assert rooms.boards._boards["room"].members is not None
        assert set(rooms.boards._boards["room"].members) == set(rooms.members)

    run(scene())


def test_who_came_and_went_while_a_room_was_growing_large_is_told_afterwards() -> None:
    async def scene() -> None:
        rooms = Rooms("ada")
        watcher = await rooms.watched()
        rooms.join("bob")  # not yet told
        rooms.join(*map(str, range(LARGE)))
        await asyncio.sleep(2)
        assert watcher.heard == [[[], [], LARGE + 2]]
        rooms.leave(*map(str, range(LARGE)))
        await asyncio.sleep(3)
        assert rooms.right(watcher)

    run(scene())


def test_a_reading_that_is_older_than_a_message_does_not_take_its_number_back() -> None:
    async def scene() -> None:
        rooms = Rooms(*map(str, range(LARGE + 1)))
        watcher = await rooms.watched()

        async def meanwhile() -> None:
            rooms.reading = None
            rooms.join("ada", "bob")

        rooms.reading = meanwhile
        rooms.boards.doubt()
        await asyncio.sleep(2)
        assert rooms.boards._boards["room"].count == LARGE + 3
        assert watcher.heard == [[[], [], LARGE + 3]]

    run(scene())


def test_who_was_slow_is_not_told_that_nothing_has_happened() -> None:
    async def scene() -> None:
        rooms = Rooms("ada")
        watcher = await rooms.watched()
        watcher.socket.paused = True
        rooms.join("bob")
        await ticking(rooms, 2)
        rooms.leave("bob")
        await ticking(rooms, 2)
        watcher.socket.paused = False
        await ticking(rooms, 2)
        assert watcher.heard == []
        assert rooms.boards._boards["room"].behind is None

    run(scene())


def test_stale_boards_are_looked_through_once_not_once_a_round_trip(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        monkeypatch.setattr(module, "READS", 10)
        rooms = Rooms("ada")
        asked = 0
        channels = cast("_Channels", rooms.boards._channels)
        found = channels.get("any")

        def get(key: str, default: Any = None) -> Any:
            nonlocal asked
            asked += 1
            return found

        monkeypatch.setattr(channels, "get", get)
        watcher = Watching(rooms.codec)
        for number in range(1000):
            rooms.boards.watch(f"room{number}", cast("Watcher", watcher))
        await asyncio.sleep(1)
        assert rooms.asked == [10] * 100
        assert asked <= 2000

    run(scene())
