"""Membership on a store that may forget, refuse and take things late: in the end it has who ought to be there."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Coroutine, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.brokers import Attendee, Look, Presence
from app.core.errors import Unavailable
from app.engine import membership
from app.engine.membership import Membership
from tests.unit.engine.clock import run

AWAY = Unavailable("the store is away", retry_after=1.0)


class Rooms:
    """The store, with one worker's membership, whose lease is renewed each second.

    Attributes:
        members: client to attendee, by room.
        away: nothing is taken.
        slow: seconds that `attend` takes before it is done.
        failing: rooms of which it takes nothing.
    """

    def __init__(self) -> None:
        self.members: dict[str, dict[str, Attendee]] = defaultdict(dict)
        self.noted: set[str] = set()
        self.calls: list[tuple[str, list[str], list[str]]] = []
        self.away = False
        self.slow = 0.0
        self.failing: set[str] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.membership = Membership(cast("Presence", self), "one", self._spawn)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def register(self, incarnation: str, rooms: Sequence[str], *, here: bool) -> None:
        if self.away:
            raise AWAY
        (self.noted.update if here else self.noted.difference_update)(rooms)

    async def attend(self, room: str, incarnation: str, joins: Sequence[Attendee], leaves: Sequence[str]) -> None:
        await asyncio.sleep(self.slow)
        self.calls.append((room, [one.client for one in joins], list(leaves)))
        if self.away or room in self.failing:
            raise AWAY
        self.members[room].update({one.client: one for one in joins})
        for client in leaves:
            self.members[room].pop(client, None)

    async def absent(self, incarnation: str, attendees: Sequence[tuple[str, Attendee]]) -> Look:
        if self.away:
            raise AWAY
        absent = [at for at, (room, one) in enumerate(attendees) if self.members[room].get(one.client) != one]
        rooms = dict.fromkeys(room for room, _ in attendees)
        return Look(absent, [(room, client) for room in rooms for client in self.members[room]])

    async def run(self, seconds: float) -> None:
        """A worker's ticks and beats."""
        for _ in itertools.repeat(None, int(seconds)):
            self.membership.tick()
            if self.away:
                self.membership.suspend()
            else:
                self.membership.trust(asyncio.get_running_loop().time() + 4)
            await asyncio.sleep(1)

    async def enter(self, *clients: str, room: str = "room") -> None:
        await asyncio.gather(*(self.membership.enter(room, Attendee(client, client)) for client in clients))

    def here(self, room: str = "room") -> list[str]:
        return sorted(self.members[room])


@pytest.fixture(autouse=True)
def _virtual(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(monotonic=lambda: asyncio.get_running_loop().time() + 1)
    monkeypatch.setattr(membership, "time", clock)


@pytest.mark.parametrize("others", [0, 1])
def test_a_leave_that_the_store_has_lost_is_told_again_after_a_doubt(others: int) -> None:
    async def scene() -> None:
        rooms = Rooms()
        await rooms.run(1)
        await rooms.enter("ada", *["bob"][:others])
        before = rooms.members["room"]["ada"]
        rooms.membership.leave("room", "ada")
        await rooms.run(20)
        assert rooms.here() == ["bob"][:others]
        rooms.members["room"]["ada"] = before  # another server leads that did not have the leave
        rooms.noted.clear()
        rooms.membership.doubt()
        await rooms.run(2)
        assert rooms.here() == ["bob"][:others]
        await rooms.enter("eve")
        assert rooms.noted == {"room"}
        rooms.membership.leave("room", "eve")
        await rooms.run(200)
        assert not rooms.membership._left
        assert rooms.noted == ({"room"} if others else set())

    run(scene())


def test_a_join_that_was_given_up_and_arrives_after_the_leave_is_undone() -> None:
    async def scene() -> None:
        rooms = Rooms()
        await rooms.run(1)
        rooms.away = True
        with pytest.raises(Unavailable):
            await rooms.enter("ada")
        await rooms.run(2)
        rooms.away = False
        await rooms.run(3)
        rooms.members["room"]["ada"] = Attendee("ada", "ada")  # from the connection before
        await rooms.run(20)
        assert rooms.here() == []
        assert not rooms.membership._rooms

    run(scene())


def test_who_is_in_the_store_under_our_name_and_unknown_leaves_within_a_minute() -> None:
    async def scene() -> None:
        rooms = Rooms()
        await rooms.run(1)
        await rooms.enter("ada", "bob")
        rooms.members["room"]["ghost"] = Attendee("ghost", "ghost")
        await rooms.run(70)
        assert rooms.here() == ["ada", "bob"]

    run(scene())


def test_who_enters_again_is_not_removed_by_the_timeout_of_the_first_time() -> None:
    async def scene() -> None:
        rooms = Rooms()
        await rooms.run(1)
        rooms.slow = 2.0
        first = asyncio.create_task(rooms.membership.enter("room", Attendee("c1", "ada")))
        await asyncio.sleep(1.5)
        rooms.membership.leave("room", "c1")
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await first
        second = asyncio.create_task(rooms.membership.enter("room", Attendee("c1", "bob")))
        await asyncio.sleep(0.1)
        rooms.membership.leave("room", "c1")
        with pytest.raises(Unavailable):
            await second
        third = asyncio.create_task(rooms.membership.enter("room", Attendee("c1", "eve")))
        await asyncio.gather(third, rooms.run(10))
        assert [one.member for one in rooms.members["room"].values()] == ["eve"]
        assert rooms.membership.local == 1

    run(scene())


def test_the_answer_to_a_leave_is_no_success_of_an_enter() -> None:
    async def scene() -> None:
        rooms = Rooms()
        await rooms.run(1)
        await rooms.enter("c1")
        rooms.slow = 1.0
        rooms.membership.leave("room", "c1")
        await asyncio.sleep(0.5)  # the leave is on its way
        entering = asyncio.create_task(rooms.membership.enter("room", Attendee("c1", "bob")))
        await asyncio.sleep(0.9)
        assert not entering.done()
        await asyncio.gather(entering, rooms.run(3))
        assert rooms.here() == ["c1"]

    run(scene())


def test_an_enter_that_replaces_another_answers_both() -> None:
    async def scene() -> None:
        rooms = Rooms()
        await rooms.run(1)
        rooms.slow = 1.0
        entering = [asyncio.create_task(rooms.membership.enter("room", Attendee("c1", name))) for name in "abc"]
        await asyncio.sleep(0)
        await asyncio.wait_for(asyncio.gather(*entering), 2.5)
        assert rooms.members["room"]["c1"].member == "c"

    run(scene())


def test_while_the_store_is_away_the_grace_stands_still() -> None:
    async def scene() -> None:
        rooms = Rooms()
        await rooms.run(1)
        await rooms.enter("ada", "bob", "eve")
        rooms.membership.gone("room", "ada")
        await rooms.run(1)
        rooms.away = True
        await rooms.run(6)
        rooms.membership.gone("room", "bob")
        await rooms.run(6)
        rooms.away = False
        before = len(rooms.calls)
        await rooms.run(1)
        await asyncio.sleep(0.5)
        assert [leaves for _, _, leaves in rooms.calls[before:]] == []
        await rooms.run(2)
        assert rooms.here() == ["eve"]

    run(scene())


def test_a_room_that_is_empty_is_closed_though_another_one_fails() -> None:
    async def scene() -> None:
        rooms = Rooms()
        await rooms.run(1)
        await rooms.enter("ada", room="good")
        await rooms.enter("ada", room="bad")
        rooms.failing = {"bad"}
        rooms.membership.leave("good", "ada")
        rooms.membership.leave("bad", "ada")
        await rooms.run(2)
        assert set(rooms.membership._rooms) == {"bad"}
        assert rooms.noted == {"bad"}
        rooms.failing = set()
        await rooms.run(30)
        assert not rooms.membership._rooms
        assert rooms.noted == set()

    run(scene())
