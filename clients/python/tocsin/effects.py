"""What the state machines ask of whoever drives them."""

from __future__ import annotations

from dataclasses import dataclass

from tocsin.errors import TocsinError
from tocsin.events import Ack, Change, Event, Members, Page


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a WebSocket, with a token asked for anew; report `received`, `closed`, `refused` or `failed`."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send this as one frame."""

    data: str | bytes


@dataclass(frozen=True, slots=True)
class Drop:
    """Let go of the socket and report nothing more of it. With a code close it, without cut it off."""

    code: int | None = None


@dataclass(frozen=True, slots=True)
class Renew:
    """Ask for a new token and bring it to `renewed`, or the failure to `not_renewed`."""


@dataclass(frozen=True, slots=True)
class Changed:
    """The state of the connection is another."""

    change: Change


@dataclass(frozen=True, slots=True)
class Opened:
    """A channel is live for the first time."""

    channel: str


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand this to the one who listens to the channel."""

    channel: str
    event: Event | str | bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """Nothing more comes in the channel; `error` says why, None when it was asked for."""

    channel: str
    error: TocsinError | None


@dataclass(frozen=True, slots=True)
class Settle:
    """A command has come to its end."""

    ref: int
    outcome: Ack | Page | Members | TocsinError


Effect = Connect | Send | Drop | Renew | Changed | Opened | Deliver | Ended | Settle
