"""The store: contracts that `engine` relies on, and what keeps them.

May import `app.core` only. Exceptions of a client library stop here: callers see `app.core.errors`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from app.core.continuity import Reading
from app.core.errors import TocsinError
from app.core.messages import Attendance, Cleared, Draft, Member, Position, PresencePage, Publication, Published

Receipt = Callable[[Published | TocsinError], None]
"""Told once how a publish ended. An `Unavailable` for a draft without a key: the outcome is unknown."""


@dataclass(frozen=True, slots=True)
class AckLevel:
    """How safe a message is when its publisher is told that it is published; never less.

    Attributes:
        replicas: how many replicas have it in memory; 0 asks for none.
        fsynced: it is on the primary's disk.
    """

    replicas: int = 0
    fsynced: bool = False

    def __str__(self) -> str:
        """As an operator writes it."""
        return f"replicated:{self.replicas}" if self.replicas else "fsynced" if self.fsynced else "written"


WRITTEN = AckLevel()
"""The primary has it in memory."""


@dataclass(frozen=True, slots=True)
class Extract:
    """Messages read for someone who is not subscribed (REST, native `history`).

    Attributes:
        position: of the last message of the page, else where the reading ends.
        before: just before the first message; from there a subscriber can go on through the page.
        complete: nothing more follows in the range that was asked for.
    """

    publications: tuple[Publication, ...]
    position: Position
    before: Position
    complete: bool


class Listener(Protocol):
    """What a broker tells the worker. All are called from the event loop and must not block."""

    def confirmed(self, channel: str) -> None:
        """The newest `subscribe` of this channel is in force: whatever is published from now on arrives."""

    def received(self, channel: str, item: Publication | Cleared | Attendance) -> None:
        """A message of a subscribed channel, in the order of the store's connection."""

    def drained(self) -> None:
        """All messages that had arrived have been given to `received`: a good moment to write."""

    def settled(self) -> None:
        """A batch of this worker's publishes has been answered; `Outlet.busy` says whether another is on its way."""

    def told(self, message: bytes) -> None:
        """A message on the control channel of the workers, or on this worker's own."""

    def lost(self) -> None:
        """The reader's connection is gone; nothing of it will be given any more. `confirmed` follows for each channel
        once there is a new one.
        """


class Outlet(Protocol):
    """Where publishes go.

    Guarantees: a message is in the log before anyone hears it. Two drafts of one caller keep their order.
    """

    def publish(self, draft: Draft, receipt: Receipt) -> None:
        """Take a message; `receipt` is called later, exactly once."""

    @property
    def busy(self) -> bool:
        """Whether publishes of this worker are on their way: more will be heard shortly. `Listener.settled` follows."""

    @property
    def congested(self) -> bool:
        """Whether so many publishes wait that those who publish should not be read from."""

    def when_uncongested(self, callback: Callable[[], None]) -> None:
        """Call back once when that is over (at once when it is not so)."""


class Log(Protocol):
    """What has been published, with positions.

    Guarantees: one channel has one order, the same here and live. An answer was begun after the call. Every method
    raises `Unavailable` when the store is away or does not answer in time, at once when that is already known.
    """

    async def read(self, channel: str, position: Position | None, limit: int) -> Reading:
        """Judge `position` and read up to `limit` messages after it (None: only where the channel stands)."""

    async def read_tops(self, asked: Sequence[tuple[str, Position | None]]) -> list[Reading | TocsinError]:
        """`read` of many channels without messages, in few round trips."""

    async def extract(
        self, channel: str, since: Position | None, before: Position | None, limit: int, size: int
    ) -> Extract:
        """With `since` the first `limit` messages after it, else the newest ones; both bounds exclusive, ascending,
        at most `size` bytes.

        Raises:
            Gone: the log no longer reaches back to `since`, or it is not of this history.
        """

    async def clear(self, channel: str) -> Position:
        """Forget the log: a new epoch begins, offsets go on. Subscribers are told."""


class Feed(Protocol):
    """What is published from now on, told to a `Listener`."""

    def subscribe(self, channel: str) -> None:
        """Begin to hear a channel; `Listener.confirmed` says when. Calls of one turn share a command."""

    def unsubscribe(self, channel: str) -> None:
        """Stop hearing it."""

    def reconnect(self) -> None:
        """Replace all connections: they do not speak with the same server."""


class Broker(Outlet, Log, Feed, Protocol):
    """A log per channel with positions, and the way to publish to it and to hear it live."""


@dataclass(frozen=True, slots=True)
class Attendee:
    """One client that is in a room: as which member, and with which info (JSON text)."""

    client: str
    member: str
    info: bytes = b"{}"


@dataclass(frozen=True, slots=True)
class Roll:
    """A whole room: how many members it has, and, unless these are more than were asked for, who."""

    count: int
    members: tuple[Member, ...] | None


class Look(NamedTuple):
    """What is wrong with an incarnation's members: whose (room, client) of those asked for are `absent`, by index, and
    `strangers`, (room, client) that are there and were not asked for. Of large rooms no strangers are told.
    """

    absent: list[int]
    strangers: list[tuple[str, str]]


class Fate(StrEnum):
    """What became of an incarnation whose lease could not be seen."""

    ALIVE = "ALIVE"
    WAIT = "WAIT"
    TAKEN = "TAKEN"
    DEAD = "DEAD"


class Presence(Protocol):
    """Who is in which room, under the incarnations of workers (CONTINUITY, "Presence lease").

    Guarantees: each step is whole. A member joins with its first client and leaves with its last; the `Listener`s of
    the room are told exactly once of either. A client is made to leave only by the incarnation that it is under, or
    when that is dead, and nobody is declared dead who holds a lease. Each step may be repeated. Every method raises
    `Unavailable` when the store is away or does not answer in time; whether it was done is unknown then.
    """

    async def attend(self, room: str, incarnation: str, joins: Sequence[Attendee], leaves: Sequence[str]) -> None:
        """Clients join, and clients leave; `BATCH` at most. The room must be registered for the incarnation before."""

    async def absent(self, incarnation: str, attendees: Sequence[tuple[str, Attendee]]) -> Look:
        """Which of these (room, client) are not there as they should be, and who else is. A room lives on for a day
        after it was last asked for.
        """

    async def members(self, room: str, limit: int, cursor: str | None) -> PresencePage:
        """One page of up to `limit` members, full unless it is the last. Who stays all the time comes at least once.

        Raises:
            BadRequest: the cursor is none of ours.
        """

    async def rolls(self, rooms: Sequence[str], limit: int) -> list[Roll]:
        """All of many rooms, in few round trips; of those with more than `limit` members only their number."""

    async def register(self, incarnation: str, rooms: Sequence[str], *, here: bool) -> None:
        """Note that an incarnation has members in these rooms, or none any more."""

    async def bury(self, incarnation: str, by: str) -> Fate:
        """Declare an incarnation dead if its lease is over. DEAD gives `by` a few seconds to clear up alone."""

    async def estate(self, incarnation: str, done: Sequence[str]) -> list[str]:
        """Rooms that a dead incarnation has left, some at a time; none when it is forgotten. `done` are cleared up."""

    async def reap(self, room: str, incarnation: str) -> int:
        """Remove what a dead incarnation has in a room. Returns how many clients."""
