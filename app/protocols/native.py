"""Native, `tocsin.v1`: JSON objects, one a text frame. REST answers with the same message objects.

A JSON payload travels as the text that was published: it is neither parsed nor written anew.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Any, assert_never, overload

import msgspec
import orjson
from msgspec import UNSET

from app.core.errors import BadRequest, TocsinError, TooLarge, UnknownType, UnsupportedType
from app.core.messages import (
    Acknowledged,
    Alive,
    Authenticate,
    Authenticated,
    ComeBack,
    Command,
    Event,
    HistoryPage,
    Kind,
    Lost,
    Malformed,
    Member,
    Members,
    Ping,
    Pong,
    Position,
    PresenceChange,
    PresencePage,
    Publication,
    Publish,
    ReadHistory,
    ReadMembers,
    Ref,
    Refused,
    Subscribe,
    Subscribed,
    Unsubscribe,
    Unsubscribed,
    Welcome,
)
from app.protocols import Message, objects

DEPTH = 32
"""Nesting of `data` at most; the command around it is one level more."""
INFO = 1024
"""Bytes of what a member says about itself, at most."""


class _Head(msgspec.Struct):
    """What can be read of a command that is none of ours."""

    type: Any = None
    ref: Any = None


_DECODER = msgspec.json.Decoder(objects.Command)
_HEAD = msgspec.json.Decoder(_Head)
_ENCODER = msgspec.json.Encoder()
_TYPES = ("subscribe", "unsubscribe", "publish", "history", "presence", "authenticate", "ping")
# To the end of the text where a string has none: it is looked at once, whatever a client sends.
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class Native:
    """The native codec."""

    __slots__ = ()

    subprotocol = "tocsin.v1"

    def encode(self, channel: str, publication: Publication) -> Message:
        """A publication as a `message` frame."""
        return Message(orjson.dumps(message(channel, publication)), text=True)

    def say(self, event: Event) -> Message:
        """An event as its frame."""
        return Message(_ENCODER.encode(_object(event)), text=True)

    def decode_text(self, payload: bytes) -> Command:
        """A command, or why it is none."""
        try:
            _check_depth(payload)
            return _command(_DECODER.decode(payload))
        except TocsinError as error:
            return Malformed(error, _head(payload)[1])
        except msgspec.ValidationError as error:
            kind, ref = _head(payload)
            if kind not in _TYPES:
                return Malformed(UnknownType("a command is an object, and its `type` is one of ours"), ref)
            return Malformed(BadRequest(f"this is not what the command takes: {error}"), ref)
        except msgspec.DecodeError as error:
            return Malformed(BadRequest(f"a frame holds one JSON object: {error}"))

    def decode_binary(self, payload: bytes) -> Command:  # noqa: ARG002 - whatever it holds
        """Native is text; the socket is closed with 1003."""
        return Malformed(UnsupportedType("tocsin.v1 takes text frames"))


def message(channel: str, publication: Publication) -> dict[str, Any]:
    """The native message object of a publication: `data` for text and JSON, `base64` for binary.

    JSON stays the text that was published (an `orjson.Fragment`): serialise with orjson.
    """
    attributes = publication.read_attributes()
    found: dict[str, Any] = {"type": "message", "channel": channel}
    if publication.position is not None:
        found["id"] = str(publication.position)
    match publication.kind:
        case Kind.JSON:
            found["data"] = orjson.Fragment(publication.payload)
        case Kind.BINARY:
            found["base64"] = base64.b64encode(publication.payload).decode()
        case _:
            found["data"] = publication.payload.decode(errors="replace")
    found["from"] = attributes.get("c")
    found["user"] = attributes.get("u")
    found["at"] = attributes.get("t")
    return found


def error_object(error: TocsinError) -> dict[str, Any]:
    """Code and sentence, and where they apply the seconds after which to try again and the position to go on from."""
    found: dict[str, Any] = {"code": error.code.value, "message": error.message}
    if error.retry_after is not None:
        found["retry_after"] = error.retry_after
    if error.position is not None:
        found["position"] = error.position
    return found


def _object(event: Event) -> objects.Event:
    match event:
        case Acknowledged(position, duplicate, ref):
            identity = None if position is None else str(position)
            return objects.Published(ref=_echo(ref), id=identity, duplicate=duplicate)
        case Subscribed(channel, position, recovered, replayed, reason, ref, presence):
            found = objects.Subscribed(
                ref=_echo(ref), channel=channel, position=str(position), recovered=recovered, replayed=replayed
            )
            if reason is not None:
                found.reason = reason
            if presence is not None:
                found.members, found.count = _members(presence.members), presence.count
            return found
        case Unsubscribed(channel, ref, reason):
            return objects.Unsubscribed(ref=_echo(ref), channel=channel, reason=UNSET if reason is None else reason)
        case HistoryPage(channel, publications, position, complete, ref):
            messages = [msgspec.Raw(orjson.dumps(message(channel, item))) for item in publications]
            return objects.HistoryPage(
                ref=_echo(ref), channel=channel, messages=messages, position=str(position), complete=complete
            )
        case Members(channel, page, ref):
            members = _members(page.members)
            return objects.Members(
                ref=_echo(ref), channel=channel, members=members, count=page.count, cursor=page.cursor
            )
        case PresenceChange(channel, joined, left, count):
            return objects.PresenceChange(channel, _members(joined), _members(left), count)
        case Authenticated(user, expires_at, ref):
            return objects.Authenticated(ref=_echo(ref), user=user, expires_at=_seconds(expires_at))
        case Pong(ref):
            return objects.Pong(_echo(ref))
        case Refused(error, ref):
            return objects.Error(ref=_echo(ref), **error_object(error))
        case Lost(channel, reason, position):
            return objects.Gap(channel, reason, str(position))
        case Alive():
            return objects.Alive()
        case ComeBack(after, reason):
            return objects.Reconnect(round(after, 3), reason)
        case Welcome(client, user, worker, ping, max_data, key_seconds, expires_at):
            return objects.Welcome(client, user, worker, _seconds(ping), max_data, key_seconds, _seconds(expires_at))
        case _:
            assert_never(event)


def _members(members: Sequence[Member]) -> list[objects.Member]:
    return [objects.Member(member.member, member.clients, msgspec.Raw(member.info)) for member in members]


def member_object(member: Member) -> dict[str, Any]:
    """One member; its info stays the text that it gave: serialise with orjson."""
    return {"member": member.member, "clients": member.clients, "info": orjson.Fragment(member.info)}


def members_object(page: PresencePage) -> dict[str, Any]:
    """A page of members, as `presence` and REST answer it."""
    return {
        "members": [member_object(member) for member in page.members],
        "count": page.count,
        "cursor": page.cursor,
    }


@overload
def _seconds(seconds: float) -> float: ...
@overload
def _seconds(seconds: float | None) -> float | None: ...
def _seconds(seconds: float | None) -> float | None:
    """Whole seconds as an integer: clients read them so."""
    return int(seconds) if seconds is not None and float(seconds).is_integer() else seconds


def _echo(ref: Ref) -> objects.Echo:
    return UNSET if ref is None else ref


def _command(given: objects.Command) -> Command:
    match given:
        case objects.Publish():
            return _publish(given)
        case objects.Subscribe(channel=channel, ref=ref, since=since, history=history, presence=presence):
            info = _info(presence) if isinstance(presence, objects.Attend) else None
            return Subscribe(channel, ref, _position(since), history, presence is not None, info)
        case objects.Unsubscribe(channel=channel, ref=ref):
            return Unsubscribe(channel, ref)
        case objects.History(channel=channel, ref=ref, since=since, before=before, limit=limit):
            return ReadHistory(channel, ref, _position(since), _position(before), limit)
        case objects.Presence(channel=channel, ref=ref, limit=limit, cursor=cursor):
            return ReadMembers(channel, ref, limit, cursor)
        case objects.Authenticate(token=token, ref=ref):
            return Authenticate(token, ref)
        case objects.Ping(ref=ref):
            return Ping(ref)
        case _:
            assert_never(given)


def _info(given: objects.Attend) -> bytes:
    """What a member says about itself: any JSON object of at most `INFO` bytes."""
    if given.info is UNSET:
        return b"{}"
    assert isinstance(given.info, msgspec.Raw)
    info = bytes(given.info)
    if len(info) > INFO:
        raise TooLarge(f"`info` has at most {INFO} bytes")
    if not info.startswith(b"{"):
        raise BadRequest("`info` is a JSON object")
    _check_readable(info)
    return info


def _position(text: str | None) -> Position | None:
    return None if text is None else Position.parse(text)


def _publish(given: objects.Publish) -> Publish:
    if (given.data is UNSET) == (given.base64 is None):
        raise BadRequest("give either `data` or `base64`")
    if given.base64 is not None:
        try:
            kind, payload, size = Kind.BINARY, base64.b64decode(given.base64, validate=True), len(given.base64)
        except (binascii.Error, ValueError):
            raise BadRequest("`base64` is not base64 (RFC 4648 section 4)") from None
    else:
        assert isinstance(given.data, msgspec.Raw)
        kind, payload = Kind.JSON, bytes(given.data)
        size = len(payload)
        _check_readable(payload)
    return Publish(kind, payload, size, given.channel, given.ref, given.key, given.ephemeral)


def _check_readable(payload: bytes) -> None:
    """What is passed on verbatim must be readable for all: half of a surrogate pair and a number beyond double
    precision's range are JSON by its grammar and refused by many a reader (RFC 8259 sections 6 and 8.2).
    """
    try:
        orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"this JSON is not for every reader: {error.msg}") from None


def _check_depth(payload: bytes) -> None:
    """Take away the innermost pairs of brackets, level by level: what is left after `DEPTH` and one is too deep."""
    if payload.count(b"[") + payload.count(b"{") <= DEPTH:
        return
    brackets = _STRINGS.sub(b"", payload).translate(_BRACKETS, _NO_BRACKETS)
    for _ in range(DEPTH + 1):
        if not brackets:
            return
        brackets = brackets.replace(b"[]", b"")
    if brackets:
        raise BadRequest(f"`data` is nested at most {DEPTH} levels deep")


def _head(payload: bytes) -> tuple[Any, Ref]:
    """`type` and `ref`, as far as they can be read; a ref that no command may carry is none."""
    try:
        head = _HEAD.decode(payload)
    except (msgspec.DecodeError, RecursionError):
        return None, None
    ref = head.ref
    if isinstance(ref, str):
        return head.type, ref if len(ref) <= 64 else None
    whole = isinstance(ref, int) and not isinstance(ref, bool)
    return head.type, ref if whole and -objects.INTEGER <= ref < objects.INTEGER else None
