"""`tocsin.v1` on the wire: commands to text frames, text frames to values. Pure. Nothing else knows the format."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tocsin.errors import BadChannel, BadRequest, TocsinError, from_wire
from tocsin.events import Ack, Attendance, Gap, Member, Members, Message, Page, Presence

SUBPROTOCOL = "tocsin.v1"

Ref = int | str | None
_CHANNEL = re.compile(r"[A-Za-z0-9_.:@-]{1,128}\Z")
_KEY = re.compile(r"[A-Za-z0-9_-]{16,64}\Z")


class BadFrame(ValueError):
    """A frame that no service of this protocol sends."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """The first frame.

    Attributes:
        client: names this connection.
        ping: seconds between two signs of life of the service.
        max_data: bytes of a message's data at most.
        key_seconds: how long the service remembers a key.
        expires_at: when the token ends, seconds since 1970; None without one.
    """

    client: str
    user: str | None
    worker: str
    ping: float
    max_data: int
    key_seconds: float
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class Subscribed:
    """A channel is live; its messages follow."""

    channel: str
    position: str
    recovered: bool | None
    replayed: int
    reason: str | None
    members: tuple[Member, ...] | None
    count: int
    ref: Ref = None


@dataclass(frozen=True, slots=True)
class Unsubscribed:
    """Nothing of the channel follows; without a ref the service has decided so."""

    channel: str
    reason: str | None
    ref: Ref = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command has led to."""

    ref: Ref
    outcome: Ack | Page | Members


@dataclass(frozen=True, slots=True)
class Refused:
    """A command was not done."""

    ref: Ref
    error: TocsinError


@dataclass(frozen=True, slots=True)
class Authenticated:
    """A new token was taken."""

    user: str | None
    expires_at: float | None
    ref: Ref = None


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to `ping`."""

    ref: Ref = None


@dataclass(frozen=True, slots=True)
class Alive:
    """A sign of life."""


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Come back after so many seconds; the connection is about to be closed."""

    after: float
    reason: str


Frame = (
    Welcome
    | Message
    | Gap
    | Presence
    | Subscribed
    | Unsubscribed
    | Answer
    | Refused
    | Authenticated
    | Pong
    | Alive
    | Reconnect
)

_decode = json.JSONDecoder().decode
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def read(text: str) -> Frame | None:
    """What a frame says; None for a type that this version does not know.

    Raises:
        BadFrame: it is no JSON object with a `type`, or lacks what its type has.
    """
    try:
        given: dict[str, Any] = _decode(text)
        kind = given["type"]
        if kind == "message":
            return message(given)
        reader = _READERS.get(kind)
        return None if reader is None else reader(given)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadFrame(f"{type(error).__name__}: {error}") from None


def message(given: dict[str, Any]) -> Message:
    """A message object, as in frames and in pages of the log, there and over HTTP."""
    data = base64.b64decode(given["base64"], validate=True) if "base64" in given else given["data"]
    return Message(given["channel"], given.get("id"), data, given.get("from"), given.get("user"), given.get("at"))


def _member(given: dict[str, Any]) -> Member:
    return Member(given["member"], given.get("clients", 1), given.get("info"))


def _members(given: list[dict[str, Any]]) -> tuple[Member, ...]:
    return tuple(map(_member, given))


def page(given: dict[str, Any]) -> Page:
    """A page of the log, there and over HTTP."""
    return Page(tuple(map(message, given["messages"])), given["position"], given["complete"])


def members(given: dict[str, Any]) -> Members:
    """A page of members, there and over HTTP."""
    return Members(_members(given["members"]), given["count"], given["cursor"])


def ack(given: dict[str, Any]) -> Ack:
    """The answer to a publish, there and over HTTP."""
    return Ack(given["id"], given["duplicate"])


def _subscribed(given: dict[str, Any]) -> Subscribed:
    here = _members(given["members"]) if "members" in given else None
    return Subscribed(
        given["channel"],
        given["position"],
        given["recovered"],
        given["replayed"],
        given.get("reason"),
        here,
        given.get("count", 0),
        given.get("ref"),
    )


def _presence(given: dict[str, Any]) -> Answer | Presence:
    if "members" in given:
        return Answer(given.get("ref"), members(given))
    return Presence(given["channel"], _members(given["joined"]), _members(given["left"]), given["count"])


_READERS: dict[str, Callable[[dict[str, Any]], Frame]] = {
    "welcome": lambda given: Welcome(
        given["client"],
        given["user"],
        given["worker"],
        given["ping"],
        given["max_data"],
        given["key_seconds"],
        given["expires_at"],
    ),
    "subscribed": _subscribed,
    "unsubscribed": lambda given: Unsubscribed(given["channel"], given.get("reason"), given.get("ref")),
    "published": lambda given: Answer(given.get("ref"), ack(given)),
    "history": lambda given: Answer(given.get("ref"), page(given)),
    "presence": _presence,
    "authenticated": lambda given: Authenticated(given["user"], given["expires_at"], given.get("ref")),
    "pong": lambda given: Pong(given.get("ref")),
    "error": lambda given: Refused(given.get("ref"), from_wire(given)),
    "gap": lambda given: Gap(given["channel"], given["reason"], given["position"]),
    "alive": lambda _: Alive(),
    "reconnect": lambda given: Reconnect(given["after"], given.get("reason", "")),
}


def command(kind: str, ref: Ref, **fields: Any) -> str:
    """A command; fields that are None are left away.

    Raises:
        TypeError, ValueError: a field is no JSON.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    text = _encode({"type": kind, **({} if ref is None else {"ref": ref}), **given})
    text.encode()  # halves of surrogate pairs cannot be sent
    return text


def subscribe(
    channel: str, ref: Ref, *, since: str | None = None, history: int = 0, presence: Attendance = None
) -> str:
    """The command `subscribe`."""
    return command("subscribe", ref, channel=channel, since=since, history=history or None, presence=presence)


def body(data: Any) -> tuple[str, int]:
    """`data` as the members of a JSON object, for a frame and for HTTP alike, and its size as the service counts it
    (bytes). Bytes travel as base64, anything else as JSON.

    Raises:
        TypeError, ValueError: it is no JSON (NaN and halves of surrogate pairs are none).
    """
    if isinstance(data, bytes | bytearray | memoryview):
        text = base64.b64encode(data).decode()
        return f'"base64":"{text}"', len(text)
    text = _encode(data)
    return f'"data":{text}', len(text.encode())


def publish(channel: str, ref: Ref, body: str, *, key: str | None = None, ephemeral: bool = False) -> str:
    """The command `publish` with what `body` has made."""
    more = {"key": key} if key is not None else {"ephemeral": True} if ephemeral else {}
    return f"{command('publish', ref, channel=channel, **more)[:-1]},{body}}}"


def check_channel(name: str) -> str:
    """The name itself.

    Raises:
        BadChannel: it is outside the grammar.
    """
    if not _CHANNEL.match(name):
        raise BadChannel("a channel name has 1 to 128 of the characters A-Z a-z 0-9 _ . : @ -")
    return name


def check_key(key: str) -> str:
    """The key itself.

    Raises:
        BadRequest: it is outside the grammar.
    """
    if not _KEY.match(key):
        raise BadRequest("a key has 16 to 64 of the characters A-Z a-z 0-9 _ -")
    return key
