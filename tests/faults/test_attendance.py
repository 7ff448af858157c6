"""What is right about presence is accepted, and each fault that is planted is found."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.attendance import Attendance, Changed, Departure, Listed, Wrong, judge

AT = 100.0
"""When `eve` was cut off with her worker."""


def good() -> Attendance:
    """Three came, one was cut off and left five seconds later, one was away too long and came back."""
    room = Attendance(here={"ada": 1, "bob": 2}, listed={"ada": 1, "bob": 2})
    for watcher in ("first", "second"):
        for event in (
            Listed(90.0, frozenset()),
            Changed(91.0, ("ada", "eve"), (), 2),
            Changed(92.0, ("bob",), (), 3),
            Changed(AT + 2.5, (), ("ada",), 2),
            Changed(AT + 4.0, ("ada",), (), 3),
            Changed(AT + 5.0, (), ("eve",), 2),
        ):
            room.tell(watcher, event)
    room.departures = [Departure("eve", AT, 6.0), Departure("ada", AT), Departure("bob", AT)]
    return room


def test_a_good_room_is_accepted_and_its_slowest_leave_known() -> None:
    finding = judge(good())
    assert (finding.samples, finding.slowest) == ([], 5.0)
    assert good().believed({"ada", "bob"})


def test_who_comes_back_to_a_list_has_been_told_of_those_who_are_not_in_it() -> None:
    room = good()
    room.seen["first"][-1] = Listed(AT + 5.5, frozenset(("ada", "bob")))
    assert judge(room).samples == [
        "miscounted: first was told 3, there are 2",
    ]
    room.seen["first"].append(Changed(AT + 6.5, (), (), 2))
    assert (judge(room).samples, judge(room).slowest) == ([], 5.5)


def put(index: int, event: Changed) -> Callable[[Attendance], None]:
    return lambda room: room.seen["first"].insert(index, event)


def replace(index: int, event: Changed) -> Callable[[Attendance], None]:
    def plant(room: Attendance) -> None:
        room.seen["first"][index] = event

    return plant


def remove(index: int) -> Callable[[Attendance], None]:
    return lambda room: room.seen["first"].__delitem__(index)


@pytest.mark.parametrize(
    ("plant", "wrong"),
    [
        (remove(-1), Wrong.UNTOLD),
        (remove(-1), Wrong.GHOST),
        (replace(-1, Changed(AT + 6.1, (), ("eve",), 2)), Wrong.UNTOLD),
        (lambda room: room.listed.update({"eve": 1}), Wrong.GHOST),
        (lambda room: room.listed.update({"ada": 2}), Wrong.GHOST),
        (lambda room: room.listed.pop("ada"), Wrong.MISSING),
        (lambda room: room.listed.update({"bob": 1}), Wrong.MISSING),
        (remove(2), Wrong.MISSING),
        (remove(4), Wrong.MISSING),
        (put(3, Changed(93.0, ("bob",), (), 3)), Wrong.JOINED_TWICE),
        (remove(3), Wrong.JOINED_TWICE),
        (put(3, Changed(93.0, (), ("bob",), 2)), Wrong.LEFT_FALSELY),
        (put(3, Changed(AT - 0.1, (), ("eve",), 2)), Wrong.LEFT_FALSELY),
        (put(6, Changed(AT + 5.5, (), ("eve",), 2)), Wrong.LEFT_FALSELY),
        (put(5, Changed(AT + 4.5, (), ("ada",), 2)), Wrong.LEFT_FALSELY),
        (replace(-1, Changed(AT + 5.0, (), ("eve",), 3)), Wrong.MISCOUNTED),
    ],
)
def test_a_fault_of_presence_that_is_planted_is_found(plant: Callable[[Attendance], None], wrong: Wrong) -> None:
    room = good()
    plant(room)
    assert judge(room).found[wrong] > 0
    assert judge(room).samples != []


def test_a_room_that_an_outage_has_emptied_is_found() -> None:
    room = Attendance(here={"ada": 1, "bob": 1}, listed={"ada": 1, "bob": 1})
    for event in (
        Listed(90.0, frozenset()),
        Changed(91.0, ("ada", "bob"), (), 2),
        Changed(AT, (), ("ada", "bob"), 0),
        Changed(AT + 1, ("ada", "bob"), (), 2),
    ):
        room.tell("first", event)
    assert dict(judge(room).found) == {Wrong.LEFT_FALSELY: 2}
