"""What a client hears and is answered: values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from tocsin.errors import TocsinError


@dataclass(frozen=True, slots=True)
class Message:
    """A publication, live or replayed.

    Attributes:
        channel: where it was published.
        id: its position, from which one can resume; None for an ephemeral one.
        data: any JSON, or bytes for what was published as binary.
        sender: the connection that published it; None for REST.
        user: of the sender's token, or None.
        at: milliseconds since 1970 by the clock of the service's Redis.
    """

    channel: str
    id: str | None
    data: Any
    sender: str | None = None
    user: str | None = None
    at: int | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages are missing here: reload your state. What follows comes after `position`.

    Attributes:
        reason: `expired` the log no longer reaches back, `diverged` the store has lost what was seen, `cleared` the
            log was cleared; plain connections also `reconnected`: they cannot know what they missed.
        position: where it goes on; None for plain connections.
    """

    channel: str
    reason: str
    position: str | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """Who is in a channel.

    Attributes:
        member: a user, or a connection where it is anonymous.
        clients: its connections in the channel.
        info: what the newest of them said about itself.
    """

    member: str
    clients: int = 1
    info: Any = None


@dataclass(frozen=True, slots=True)
class Presence:
    """Who came and left. Above 500 members only `count` is told."""

    channel: str
    joined: tuple[Member, ...]
    left: tuple[Member, ...]
    count: int


Event = Message | Gap | Presence


@dataclass(frozen=True, slots=True)
class Ack:
    """A message is published.

    Attributes:
        id: its position; None for an ephemeral one.
        duplicate: an earlier try had published it already.
    """

    id: str | None
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the log, ascending.

    Attributes:
        position: of its last message: the next `since`.
        complete: nothing more follows in the range.
    """

    messages: tuple[Message, ...]
    position: str
    complete: bool


@dataclass(frozen=True, slots=True)
class Members:
    """A page of members.

    Attributes:
        count: of all members.
        cursor: for the next page; None at the end.
    """

    members: tuple[Member, ...]
    count: int
    cursor: str | None = None


class State(StrEnum):
    """Where a connection stands."""

    CONNECTING = "connecting"
    OPEN = "open"
    WAITING = "waiting"
    """To come back after a while."""
    STOPPED = "stopped"
    """For good."""


@dataclass(frozen=True, slots=True)
class Change:
    """The connection's state has changed.

    Attributes:
        reason: one sentence for people.
        delay: seconds until the next try, when `waiting`.
        error: why it ended, when `stopped` other than by `close`.
    """

    state: State
    reason: str = ""
    delay: float | None = None
    error: TocsinError | None = None


Attendance = Literal["watch"] | dict[str, Any] | None
"""What a subscription asks of presence: nothing, to watch, or to be a member too (`{"info": {...}}`)."""
