"""What those who watch one room were told of its members, and who really came and left; judged by what each one saw.

Nobody may be shown who is gone, nobody be missing who is here, and nobody be said to have left who was there.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from tests.faults.checker import SAMPLES


class Wrong(StrEnum):
    """What can be wrong, as it stands in the table."""

    GHOST = "ghosts"
    """In a list at the end, or with more connections there, although gone."""
    MISSING = "missing"
    """Here at the end, and not in a list, or with fewer connections."""
    JOINED_TWICE = "joined twice"
    LEFT_FALSELY = "left falsely"
    """Said to have left, although it was there all the time, or was said to have left already."""
    UNTOLD = "leaves not told in time"
    MISCOUNTED = "miscounted"
    """The last count that was told is not how many there are."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A subscribe was answered with everybody who is here. `at`: seconds of the monotonic clock, here as below."""

    at: float
    members: frozenset[str]


@dataclass(frozen=True, slots=True)
class Changed:
    """A push."""

    at: float
    joined: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    count: int = 0


@dataclass(frozen=True, slots=True)
class Departure:
    """A member was away from this moment on.

    Attributes:
        within: seconds in which each watcher must have been told; None: it may be, since the member was away for longer
            than the grace, but came back.
    """

    member: str
    at: float
    within: float | None = None


@dataclass(slots=True)
class Attendance:
    """One room from before its first member, as its watchers and REST have told of it.

    Attributes:
        seen: by watcher, in its order.
        lists: what each watcher believes now.
        departures: who may be said to have left, once each.
        here: at the end, the connections of each member.
        listed: at the end, the same as REST tells it.
    """

    seen: dict[str, list[Listed | Changed]] = field(default_factory=dict)
    lists: dict[str, set[str]] = field(default_factory=dict)
    departures: list[Departure] = field(default_factory=list)
    here: dict[str, int] = field(default_factory=dict)
    listed: dict[str, int] = field(default_factory=dict)

    def tell(self, watcher: str, event: Listed | Changed) -> None:
        """A watcher was told something."""
        self.seen.setdefault(watcher, []).append(event)
        believed = self.lists.setdefault(watcher, set())
        if isinstance(event, Listed):
            believed.clear()
            believed |= event.members
        else:
            believed |= set(event.joined)
            believed -= set(event.left)

    def believed(self, members: set[str]) -> bool:
        """Whether every watcher has just these in its list."""
        return all(found == members for found in self.lists.values())


@dataclass(slots=True)
class Finding:
    """How often each wrong was found, the first ones in words, and the seconds that the slowest leave took."""

    found: Counter[Wrong] = field(default_factory=Counter)
    samples: list[str] = field(default_factory=list)
    slowest: float = 0.0

    def add(self, wrong: Wrong, text: str) -> None:
        """One more."""
        self.found[wrong] += 1
        if self.found[wrong] <= SAMPLES:
            self.samples.append(f"{wrong}: {text}")


def judge(room: Attendance) -> Finding:
    """Everything that is wrong with what was told of a room."""
    finding = Finding()
    for watcher, events in room.seen.items():
        _walk(room, watcher, events, finding)
    for member in {*room.here, *room.listed}:
        here, listed = room.here.get(member, 0), room.listed.get(member, 0)
        if here != listed:
            wrong = Wrong.GHOST if listed > here else Wrong.MISSING
            finding.add(wrong, f"REST lists {member} with {listed} connections, it has {here}")
    return finding


def _walk(room: Attendance, watcher: str, events: list[Listed | Changed], finding: Finding) -> None:
    believed: set[str] = set()
    open_departures = sorted(room.departures, key=lambda one: one.at)

    def told(departure: Departure, at: float) -> None:
        open_departures.remove(departure)
        if departure.within is not None:
            finding.slowest = max(finding.slowest, at - departure.at)
            if at - departure.at > departure.within:
                finding.add(Wrong.UNTOLD, f"{watcher} was told after {at - departure.at:.1f} s: {departure.member}")

    count: int | None = None
    for event in events:
        if isinstance(event, Listed):
            believed = set(event.members)
            for departure in [one for one in open_departures if one.at <= event.at]:
                if departure.member not in believed:
                    told(departure, event.at)
            continue
        count = event.count
        for member in event.joined:
            if member in believed:
                finding.add(Wrong.JOINED_TWICE, f"{watcher} was told again that {member} has joined")
            believed.add(member)
        for member in event.left:
            due = [one for one in open_departures if one.member == member and one.at <= event.at]
            if due:
                told(due[0], event.at)
            if not due or member not in believed:
                finding.add(Wrong.LEFT_FALSELY, f"{watcher} was told that {member} has left")
            believed.discard(member)
    for departure in open_departures:
        if departure.within is not None:
            finding.add(Wrong.UNTOLD, f"{watcher} was never told: {departure.member}")
    for member in believed - room.here.keys():
        finding.add(Wrong.GHOST, f"{watcher} still has {member}")
    for member in room.here.keys() - believed:
        finding.add(Wrong.MISSING, f"{watcher} does not have {member}")
    if count is not None and count != len(room.here):
        finding.add(Wrong.MISCOUNTED, f"{watcher} was told {count}, there are {len(room.here)}")
