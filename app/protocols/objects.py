"""The objects of `tocsin.v1` as types: what a client sends, checked while it is decoded, and what it is told.

The AsyncAPI document is made from them. Only messages have none (`native.message`): their JSON stays as it came.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from app.core import continuity

INTEGER = 2**63
"""A ref that is a number is one of 64 bits."""
Ref = Annotated[int, Meta(ge=-INTEGER, le=INTEGER - 1)] | Annotated[str, Meta(max_length=64)] | None
Echo = int | str | UnsetType
"""The `ref` of the command that is answered, where it had one."""
Key = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{16,64}\Z")]
Id = Annotated[str, Meta(description="Where a message stands; opaque.", examples=["4c1f9be07a2d-126"])]
Name = Annotated[str, Meta(description="1 to 128 of A-Z a-z 0-9 _ . : @ -", examples=["room:42"])]
Reason = Annotated[str, Meta(extra_json_schema={"enum": [reason.value for reason in continuity.Reason]})]
Shown = Annotated[Raw, Meta(extra_json_schema={"$ref": "#/components/schemas/Message"})]
"""A message, as REST shows it too."""
Anything = Annotated[Raw, Meta(extra_json_schema={"type": "object"})]
Size = Annotated[int, Meta(ge=1, le=1000)]


# What a client sends. What only the rules can judge (channels, ids) is plain text here.


class Attend(msgspec.Struct):
    """Be a member, and say so much about oneself: any object of at most 1 KiB."""

    info: Anything | UnsetType = UNSET


class Subscribe(msgspec.Struct, tag="subscribe"):
    """Hear a channel: from now on, after `since`, or with the newest of its log."""

    channel: str
    ref: Ref = None
    since: str | None = None
    history: Annotated[int, Meta(ge=0, le=1000)] = 0
    presence: Literal["watch"] | Attend | None = None


class Unsubscribe(msgspec.Struct, tag="unsubscribe"):
    """Hear it no more."""

    channel: str
    ref: Ref = None


class Publish(msgspec.Struct, tag="publish"):
    """Publish `data` (any JSON) or `base64` (binary); with a `key` exactly once."""

    channel: str
    ref: Ref = None
    data: Raw | UnsetType = UNSET
    base64: str | None = None
    key: Key | None = None
    ephemeral: bool = False


class History(msgspec.Struct, tag="history"):
    """Read the log: after `since` the first messages, else the newest."""

    channel: str
    ref: Ref = None
    since: str | None = None
    before: str | None = None
    limit: Size = 100


class Presence(msgspec.Struct, tag="presence"):
    """Read who is in a channel."""

    channel: str
    ref: Ref = None
    limit: Size = 100
    cursor: Annotated[str, Meta(max_length=512)] | None = None


class Authenticate(msgspec.Struct, tag="authenticate"):
    """Show a new token, of the same user."""

    token: str
    ref: Ref = None


class Ping(msgspec.Struct, tag="ping"):
    """Is anybody there?"""

    ref: Ref = None


Command = Subscribe | Unsubscribe | Publish | History | Presence | Authenticate | Ping


# What a client is told.


class Member(msgspec.Struct):
    """One who is in a channel: a user, or a client that is nobody known; with its number of connections there."""

    member: str
    clients: int
    info: Anything


class Welcome(msgspec.Struct, tag="welcome"):
    """The first frame. Sizes in bytes, times in seconds."""

    client: str
    user: str | None
    worker: str
    ping: float
    max_data: int
    key_seconds: int
    expires_at: float | None


class Subscribed(msgspec.Struct, tag="subscribed", kw_only=True):
    """The channel is heard from `position` on; `recovered` says whether what was missed follows."""

    ref: Echo = UNSET
    channel: Name
    position: Id
    recovered: bool | None
    replayed: int
    reason: Reason | UnsetType = UNSET
    members: list[Member] | UnsetType = UNSET
    count: int | UnsetType = UNSET


class Unsubscribed(msgspec.Struct, tag="unsubscribed", kw_only=True):
    """It is heard no more; with a `reason` where nobody asked for that."""

    ref: Echo = UNSET
    channel: Name
    reason: str | UnsetType = UNSET


class Published(msgspec.Struct, tag="published", kw_only=True):
    """The store has taken the message; an ephemeral one has no id."""

    ref: Echo = UNSET
    id: Id | None
    duplicate: bool


class HistoryPage(msgspec.Struct, tag="history", kw_only=True):
    """A page of the log, ascending; `position` is the next `since`."""

    ref: Echo = UNSET
    channel: Name
    messages: list[Shown]
    position: Id
    complete: bool


class Members(msgspec.Struct, tag="presence", kw_only=True):
    """A page of members, of `count` in all."""

    ref: Echo = UNSET
    channel: Name
    members: list[Member]
    count: int
    cursor: str | None


class PresenceChange(msgspec.Struct, tag="presence"):
    """Who has joined and left since the last one; above 500 members only `count` is told."""

    channel: Name
    joined: list[Member]
    left: list[Member]
    count: int


class Authenticated(msgspec.Struct, tag="authenticated", kw_only=True):
    """The new token holds; it ends at `expires_at` (Unix seconds)."""

    ref: Echo = UNSET
    user: str | None
    expires_at: float | None


class Pong(msgspec.Struct, tag="pong"):
    """Somebody is there."""

    ref: Echo = UNSET


class Error(msgspec.Struct, tag="error", kw_only=True):
    """A command was refused; `retry_after` (seconds) where trying again helps."""

    ref: Echo = UNSET
    code: str
    message: str
    retry_after: float | UnsetType = UNSET
    position: Id | UnsetType = UNSET


class Gap(msgspec.Struct, tag="gap"):
    """Continuity was lost: reload, and go on from `position`."""

    channel: Name
    reason: Reason
    position: Id


class Alive(msgspec.Struct, tag="alive"):
    """The service is there."""


class Reconnect(msgspec.Struct, tag="reconnect"):
    """Come back after so many seconds; the connection ends."""

    after: float
    reason: str


Event = (
    Welcome
    | Subscribed
    | Unsubscribed
    | Published
    | HistoryPage
    | Members
    | PresenceChange
    | Authenticated
    | Pong
    | Error
    | Gap
    | Alive
    | Reconnect
)
