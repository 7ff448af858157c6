"""The values that travel through the service, and the grammar of channel names.

Nothing here knows how a value is written on a wire or at rest: `protocols` and `brokers` do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson

from app.core.errors import BadChannel, BadPosition, TocsinError

_CHANNEL = re.compile(r"[A-Za-z0-9_.:@-]{1,128}\Z")
_POSITION = re.compile(r"([0-9a-f]{1,40})-([0-9]{1,16})\Z")


class Verb(StrEnum):
    """What one may be allowed to do in a channel."""

    PUBLISH = "publish"
    SUBSCRIBE = "subscribe"
    HISTORY = "history"
    PRESENCE = "presence"


class Kind(StrEnum):
    """What a publication's payload is; the value is its byte at rest."""

    TEXT = "t"
    BINARY = "b"
    JSON = "j"


@dataclass(frozen=True, slots=True)
class Position:
    """Where a message stands in its channel's history: the epoch of its reign and a consecutive offset.

    Only the history of a channel (its lineage) can compare two epochs; see `continuity`.
    """

    epoch: str
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """Read `<epoch>-<digits>`.

        Raises:
            BadPosition: the text is something else.
        """
        match = _POSITION.match(text)
        if match is None:
            raise BadPosition("a position looks like `4c1f0a-120`: take it from a message's `id`, unchanged")
        return cls(match[1], int(match[2]))


@dataclass(frozen=True, slots=True)
class Publication:
    """One message as the store has it.

    Attributes:
        position: None for an ephemeral one.
        kind: None when this version cannot read it (written by a newer one): a gap, never a guess.
        payload: as published (for JSON its text).
        attributes: JSON object as stored: `c` client, `u` user, `t` ms of Redis time, `k` key, `x` trace context.
    """

    position: Position | None
    kind: Kind | None
    payload: bytes
    attributes: bytes = b"{}"

    def read_attributes(self) -> dict[str, Any]:
        """The attributes as a dict; unknown ones are kept."""
        attributes: dict[str, Any] = orjson.loads(self.attributes)
        return attributes


@dataclass(frozen=True, slots=True)
class Cleared:
    """The control frame of a clear: a new epoch began after `position.offset`. A hint, never delivered."""

    position: Position


@dataclass(frozen=True, slots=True)
class Member:
    """One who is in a room.

    Attributes:
        member: a user, or a client that is nobody known.
        clients: connections with which it is there; 0 when it has left.
        info: of its newest client, JSON text as published.
    """

    member: str
    clients: int
    info: bytes = b"{}"


@dataclass(frozen=True, slots=True)
class Attendance:
    """Who has joined and left a room in one step, and how many are in it now; `reaped` when a worker has died."""

    joined: tuple[Member, ...]
    left: tuple[Member, ...]
    count: int
    reaped: bool = False


@dataclass(frozen=True, slots=True)
class PresencePage:
    """Some of a room's members, `count` in all; `cursor` leads to the next ones, None at the end."""

    members: tuple[Member, ...]
    count: int
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """A publication on its way to the store.

    Attributes:
        scope: who shares the idempotency key (user id; empty for anonymous).
        key: idempotency key or None.
        ephemeral: neither logged nor resumable.
    """

    channel: str
    kind: Kind
    payload: bytes
    client: str | None = None
    user: str | None = None
    scope: str = ""
    key: str | None = None
    ephemeral: bool = False


@dataclass(frozen=True, slots=True)
class Published:
    """The store has taken a message. `position` is None for an ephemeral one."""

    position: Position | None
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class ChannelRule:
    """What holds for the channels that match a pattern; the first matching rule wins.

    Attributes:
        pattern: a channel name in which `*` is any run of channel characters and `{user}` the identity.
        history: how many messages the log keeps (approximately); 0 makes every message ephemeral.
        ttl: seconds that the log lives after the last publish.
        presence: whether members are tracked.
        anonymous: what one without credentials may do where anonymous use is allowed.
    """

    pattern: str = "*"
    history: int = 1000
    ttl: int = 3600
    presence: bool = True
    anonymous: frozenset[Verb] = frozenset(Verb)


def check_channel(name: str) -> str:
    """Return the name if it is in the grammar.

    Raises:
        BadChannel: it is not.
    """
    if _CHANNEL.match(name) is None:
        raise BadChannel("a channel name has 1 to 128 of the characters A-Z a-z 0-9 _ . : @ -")
    return name


def matches(pattern: str, channel: str, user: str | None = None) -> bool:
    """Whether a channel matches a pattern. `{user}` compares literally and never matches an anonymous user.

    Patterns come from tokens too: no regular expression, for one of many stars would take a time exponential in them,
    and one compiled for each user would push the others out of any cache.
    """
    if pattern == "*":
        return True
    if "{user}" in pattern:
        if user is None or _CHANNEL.match(user) is None:
            return False
        pattern = pattern.replace("{user}", user)  # the grammar of channels has no star
    if "*" not in pattern:
        return pattern == channel
    first, *middle, last = pattern.split("*")
    if not channel.startswith(first) or _CHANNEL.match(channel) is None:
        return False
    place = len(first)
    for piece in middle:  # where it comes first leaves most for what follows
        found = channel.find(piece, place)
        if found < 0:
            return False
        place = found + len(piece)
    return len(channel) - len(last) >= place and channel.endswith(last)


Ref = int | str | None
"""What a native command may carry, and its answer repeats."""


@dataclass(frozen=True, slots=True)
class Publish:
    """The client asks to publish. `channel` is None on a socket that has one channel.

    Attributes:
        size: bytes that count against the limit of a message (base64 as encoded).
    """

    kind: Kind
    payload: bytes
    size: int
    channel: str | None = None
    ref: Ref = None
    key: str | None = None
    ephemeral: bool = False


@dataclass(frozen=True, slots=True)
class Subscribe:
    """The client asks for a channel, from `since`, or from just before the newest `history` messages, or from now.

    Attributes:
        watch: whether it wants to be told who joins and leaves.
        info: as a member it says this about itself (JSON text); None: it is none.
    """

    channel: str
    ref: Ref = None
    since: Position | None = None
    history: int = 0
    watch: bool = False
    info: bytes | None = None


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """The client leaves a channel."""

    channel: str
    ref: Ref = None


@dataclass(frozen=True, slots=True)
class ReadHistory:
    """The client asks for a page of a channel's log; both bounds exclusive."""

    channel: str
    ref: Ref = None
    since: Position | None = None
    before: Position | None = None
    limit: int = 100


@dataclass(frozen=True, slots=True)
class ReadMembers:
    """The client asks who is in a channel, from where a page before ended."""

    channel: str
    ref: Ref = None
    limit: int = 100
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Authenticate:
    """The client shows a new token of the same user."""

    token: str = field(repr=False)
    ref: Ref = None


@dataclass(frozen=True, slots=True)
class Ping:
    """The client asks whether somebody is there."""

    ref: Ref = None


@dataclass(frozen=True, slots=True)
class Malformed:
    """A message that is no command of this format; `ref` as far as it could be read."""

    error: TocsinError
    ref: Ref = None


Command = Publish | Subscribe | Unsubscribe | ReadHistory | ReadMembers | Authenticate | Ping | Malformed


@dataclass(frozen=True, slots=True)
class Welcome:
    """The first event of a session.

    Attributes:
        worker: `<node>/<slot>`, for people.
        ping: seconds between two `Alive`.
        max_data: bytes of a message's data at most.
        key_seconds: how long an idempotency key is remembered.
        expires_at: when the token ends (Unix seconds), or None.
    """

    client: str
    user: str | None
    worker: str
    ping: float
    max_data: int
    key_seconds: int
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class Subscribed:
    """Answer to `Subscribe`; `position` stands before the `replayed` messages that follow.

    Attributes:
        recovered: True: exactly the missed ones follow; False: nothing is replayed, reload; None: no `since` given.
        reason: with `recovered=False`.
        presence: who is here, for who asked for presence.
    """

    channel: str
    position: Position
    recovered: bool | None
    replayed: int
    reason: str | None = None
    ref: Ref = None
    presence: PresencePage | None = None


@dataclass(frozen=True, slots=True)
class Unsubscribed:
    """Answer to `Unsubscribe`; or, unasked, the end of a subscription that a new token does not allow (`reason`)."""

    channel: str
    ref: Ref = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """Answer to `Publish`: the store has taken it."""

    position: Position | None
    duplicate: bool
    ref: Ref = None


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """Answer to `ReadHistory`."""

    channel: str
    publications: tuple[Publication, ...]
    position: Position
    complete: bool
    ref: Ref = None


@dataclass(frozen=True, slots=True)
class Members:
    """Answer to `ReadMembers`."""

    channel: str
    page: PresencePage
    ref: Ref = None


@dataclass(frozen=True, slots=True)
class PresenceChange:
    """Who has joined and left since the last one; both empty in a large room, where only `count` is told."""

    channel: str
    joined: tuple[Member, ...]
    left: tuple[Member, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Authenticated:
    """Answer to `Authenticate`."""

    user: str | None
    expires_at: float | None
    ref: Ref = None


@dataclass(frozen=True, slots=True)
class Pong:
    """Answer to `Ping`."""

    ref: Ref = None


@dataclass(frozen=True, slots=True)
class Refused:
    """Any command may be answered by an error instead."""

    error: TocsinError
    ref: Ref = None


@dataclass(frozen=True, slots=True)
class Lost:
    """Continuity was lost in a channel; the client reloads and goes on from `position`."""

    channel: str
    reason: str
    position: Position


@dataclass(frozen=True, slots=True)
class Alive:
    """The server is there: what browsers see in the place of a ping frame."""


@dataclass(frozen=True, slots=True)
class ComeBack:
    """The connection is about to end; come back after so many seconds."""

    after: float
    reason: str


Event = (
    Welcome
    | Subscribed
    | Unsubscribed
    | Acknowledged
    | HistoryPage
    | Members
    | PresenceChange
    | Authenticated
    | Pong
    | Refused
    | Lost
    | Alive
    | ComeBack
)
