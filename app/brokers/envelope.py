"""How a message lies in the store and travels over Pub/Sub, and how it is read back.

At rest: a kind byte, a JSON object of attributes, a newline, the payload as published. Over Pub/Sub the position and a
space stand before it (`-` for an ephemeral one). The kind byte doubles as version: an unknown one is read as a message
that nobody can read, never guessed.
"""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import Any

import orjson

from app.core.messages import Attendance, Cleared, Draft, Kind, Member, Position, Publication

_KINDS = {ord(kind.value): kind for kind in Kind}
_CLEAR = ord("c")
_PRESENCE = ord("p")
_BYTE = {kind: kind.value.encode() for kind in Kind}
_EPOCHS = 1024
_epochs: dict[bytes, str] = {}
"""One string per epoch rather than one per message."""


def open_envelope(draft: Draft) -> bytes:
    """Kind byte and attributes up to where a script adds `"t":<ms>}`, the newline and the payload."""
    attributes: dict[str, str] = {}
    if draft.client is not None:
        attributes["c"] = draft.client
    if draft.user is not None:
        attributes["u"] = draft.user
    if draft.key is not None:
        attributes["k"] = draft.key
    if not attributes:
        return _BYTE[draft.kind] + b"{"
    return _BYTE[draft.kind] + orjson.dumps(attributes)[:-1] + b","


def digest(draft: Draft) -> bytes:
    """8 bytes that tell one body from another under the same idempotency key."""
    return blake2b(_BYTE[draft.kind] + draft.payload, digest_size=8).digest()


def read_id(data: bytes) -> Position:
    """Read `<epoch>-<offset>` as our scripts write it.

    Raises:
        ValueError: it is something else.
    """
    name, _, offset = data.partition(b"-")
    epoch = _epochs.get(name)
    if epoch is None:
        if len(_epochs) >= _EPOCHS:
            _epochs.clear()
        epoch = _epochs[name] = name.decode("ascii")
    return Position(epoch, int(offset))


def read_envelope(position: Position | None, data: bytes, start: int = 0) -> Publication:
    """Read an envelope that begins at byte `start`; one that is not of our grammar has kind None."""
    end = data.find(b"\n", start)
    kind = _KINDS.get(data[start]) if end > start else None
    if kind is None:
        return Publication(position, None, data[start:])
    return Publication(position, kind, data[end + 1 :], data[start + 1 : end])


def read_member(member: str, clients: int, info: bytes) -> Member:
    """A member as the store has it. An info that is not JSON, which we never wrote, counts as none."""
    try:
        orjson.loads(info)
    except orjson.JSONDecodeError:
        info = b"{}"
    return Member(member, clients, info)


def _read_joined(entries: list[dict[str, Any]]) -> tuple[Member, ...]:
    return tuple(read_member(one["member"], one["clients"], one["info"].encode("utf-8", "replace")) for one in entries)


def _read_left(entries: list[dict[str, Any]]) -> tuple[Member, ...]:
    """Who has left has a name only."""
    return tuple(Member(one["member"], 0) for one in entries)


def read_attendance(data: bytes, start: int = 0) -> Attendance:
    """Read an envelope of presence that begins at byte `start`; in it an info is a string, so that it stays as it is.

    Raises:
        ValueError: it is something else.
    """
    end = data.find(b"\n", start)
    try:
        body = orjson.loads(data[end + 1 :])
    except orjson.JSONDecodeError:  # bytes that are not UTF-8, in a name or an info
        body = json.loads(data[end + 1 :].decode("utf-8", "replace"))
    try:
        reaped = orjson.loads(data[start + 1 : end]).get("reaped") is True
        return Attendance(_read_joined(body["joined"]), _read_left(body["left"]), body["count"], reaped)
    except (KeyError, TypeError, AttributeError):
        raise ValueError("this is not how we write presence") from None


def read_message(data: bytes) -> Publication | Cleared | Attendance:
    """Read a Pub/Sub message.

    Raises:
        ValueError: not a message of ours.
    """
    space = data.find(b" ")
    if space < 1 or space + 1 == len(data):
        raise ValueError("a message is `<position> <envelope>`")
    if space == 1 and data[0] == 0x2D:
        return read_attendance(data, 2) if data[2] == _PRESENCE else read_envelope(None, data, 2)
    position = read_id(data[:space])
    return Cleared(position) if data[space + 1] == _CLEAR else read_envelope(position, data, space + 1)


def read_page(flat: list[bytes]) -> tuple[Publication, ...]:
    """Read the flat page of a script: id, envelope, id, envelope, ..."""
    return tuple(read_envelope(read_id(flat[at]), flat[at + 1]) for at in range(0, len(flat), 2))
