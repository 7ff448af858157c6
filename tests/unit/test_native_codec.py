"""`tocsin.v1` as bytes: the golden frames of tests/wire, which the JavaScript client's tests read too, and what holds
for every frame.

Each golden frame has a `name`, a `direction`, the `frame` as its exact text, and its `meaning`: a command, an event or
a message (binary payloads in base64), or the code of the error. A number too large for JavaScript is given as text.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.errors import Forbidden, Gone, RateLimited, TocsinError, Unavailable
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
    Refused,
    Subscribe,
    Subscribed,
    Unsubscribe,
    Unsubscribed,
    Welcome,
)
from app.protocols.native import DEPTH, Native

WIRE = Path(__file__).parents[1] / "wire"
COMMANDS = json.loads((WIRE / "commands.json").read_text("utf-8"))
EVENTS = json.loads((WIRE / "events.json").read_text("utf-8"))
CODEC = Native()
KINDS = {Kind.JSON: "json", Kind.BINARY: "binary", Kind.TEXT: "text"}
CODES: dict[str, type[TocsinError]] = {
    "forbidden": Forbidden,
    "unavailable": Unavailable,
    "gone": Gone,
    "rate_limited": RateLimited,
}


def name_of(row: dict[str, Any]) -> str:
    return str(row["name"])


def text_of(position: Position | None) -> str | None:
    return None if position is None else str(position)


def describe(command: Command) -> dict[str, Any]:
    """A command as the golden frames put it."""
    ref = str(command.ref) if isinstance(command.ref, int) and abs(command.ref) > 2**53 else command.ref
    match command:
        case Malformed(error):
            return {"error": error.code.value, "ref": ref}
        case Subscribe(channel, _, since, history, watch, info):
            presence = info.decode() if info is not None else "watch" if watch else None
            told: dict[str, Any] = {"channel": channel, "since": text_of(since), "history": history}
            told["presence"] = presence
            return {"command": "subscribe", **told, "ref": ref}
        case Unsubscribe(channel):
            return {"command": "unsubscribe", "channel": channel, "ref": ref}
        case ReadHistory(channel, _, since, before, limit):
            told = {"channel": channel, "since": text_of(since), "before": text_of(before), "limit": limit}
            return {"command": "history", **told, "ref": ref}
        case ReadMembers(channel, _, limit, cursor):
            return {"command": "presence", "channel": channel, "limit": limit, "cursor": cursor, "ref": ref}
        case Authenticate(token):
            return {"command": "authenticate", "token": token, "ref": ref}
        case Ping():
            return {"command": "ping", "ref": ref}
        case Publish(kind, payload, size, channel, _, key, ephemeral):
            written = base64.b64encode(payload).decode() if kind is Kind.BINARY else payload.decode()
            assert size == len(written.encode())
            told = {"channel": channel, "kind": KINDS[kind], "payload": written, "key": key, "ephemeral": ephemeral}
            return {"command": "publish", **told, "ref": ref}


def position(given: dict[str, Any]) -> Position | None:
    return None if given["position"] is None else Position.parse(given["position"])


def publication(given: dict[str, Any]) -> Publication:
    kind = next(kind for kind, name in KINDS.items() if name == given["kind"])
    payload = base64.b64decode(given["payload"]) if kind is Kind.BINARY else given["payload"].encode()
    return Publication(position(given), kind, payload, orjson.dumps(given["attributes"]))


def members(given: list[dict[str, Any]]) -> tuple[Member, ...]:
    return tuple(Member(one["member"], one["clients"], one["info"].encode()) for one in given)


def page_of(given: dict[str, Any] | None) -> PresencePage | None:
    return None if given is None else PresencePage(members(given["members"]), given["count"], given.get("cursor"))


MAKERS: dict[str, Callable[[dict[str, Any]], Event]] = {
    "welcome": lambda m: Welcome(
        m["client"], m["user"], m["worker"], float(m["ping"]), m["max_data"], m["key_seconds"], m["expires_at"]
    ),
    "subscribed": lambda m: Subscribed(
        m["channel"],
        Position.parse(m["position"]),
        m["recovered"],
        m["replayed"],
        m["reason"],
        m["ref"],
        page_of(m["presence"]),
    ),
    "unsubscribed": lambda m: Unsubscribed(m["channel"], m["ref"], m["reason"]),
    "members": lambda m: Members(m["channel"], PresencePage(members(m["members"]), m["count"], m["cursor"]), m["ref"]),
    "presence": lambda m: PresenceChange(m["channel"], members(m["joined"]), members(m["left"]), m["count"]),
    "authenticated": lambda m: Authenticated(m["user"], float(m["expires_at"]), m["ref"]),
    "published": lambda m: Acknowledged(position(m), m["duplicate"], m["ref"]),
    "history": lambda m: HistoryPage(
        m["channel"],
        tuple(publication(item) for item in m["messages"]),
        Position.parse(m["position"]),
        m["complete"],
        m["ref"],
    ),
    "pong": lambda m: Pong(m["ref"]),
    "error": lambda m: Refused(
        CODES[m["code"]](m["message"], retry_after=m["retry_after"], position=m["position"]), m["ref"]
    ),
    "gap": lambda m: Lost(m["channel"], m["reason"], Position.parse(m["position"])),
    "alive": lambda _: Alive(),
    "reconnect": lambda m: ComeBack(m["after"], m["reason"]),
}


@pytest.mark.parametrize("row", COMMANDS, ids=name_of)
def test_golden_frame_of_a_client(row: dict[str, Any]) -> None:
    assert row["direction"] == "to server"
    assert describe(CODEC.decode_text(row["frame"].encode())) == row["meaning"]


@pytest.mark.parametrize("row", EVENTS, ids=name_of)
def test_golden_frame_of_the_service(row: dict[str, Any]) -> None:
    assert row["direction"] == "to client"
    meaning = row["meaning"]
    if meaning["event"] == "message":
        said = CODEC.encode(meaning["channel"], publication(meaning))
    else:
        said = CODEC.say(MAKERS[meaning["event"]](meaning))
    assert said.text
    assert said.payload.decode() == row["frame"]


def test_golden_frames_cover_every_event_and_have_names_of_their_own() -> None:
    assert {row["meaning"]["event"] for row in EVENTS} == {*MAKERS, "message"}
    for rows in (COMMANDS, EVENTS):
        assert len({row["name"] for row in rows}) == len(rows)
        assert all(set(row) == {"name", "direction", "frame", "meaning"} for row in rows)


def test_a_binary_frame_is_not_taken() -> None:
    assert describe(CODEC.decode_binary(b'{"type":"ping"}')) == {"error": "unsupported_type", "ref": None}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
FIELDS = {
    "channel": st.sampled_from(["a", "room:42", "", "a b"]) | JSON,
    "ref": st.integers() | st.text() | JSON,
    "since": st.sampled_from(["ab-1", "ab-", ""]) | JSON,
    "before": st.sampled_from(["ab-1", "ab-", ""]) | JSON,
    "history": st.integers() | JSON,
    "limit": st.integers() | JSON,
    "data": JSON,
    "base64": st.binary().map(lambda raw: base64.b64encode(raw).decode()) | JSON,
    "key": st.text("abc_-", min_size=15, max_size=66) | JSON,
    "ephemeral": st.booleans() | JSON,
    "presence": JSON,
}
TYPES = st.sampled_from(["subscribe", "unsubscribe", "publish", "history", "ping", "presence", "authenticate"]) | JSON
FRAMES = st.builds(lambda kind, more: {"type": kind, **more}, TYPES, st.fixed_dictionaries({}, optional=FIELDS))


@given(st.text() | st.text('{}[]",:\\u0dD8ertyp'))
def test_any_text_is_a_command_or_malformed(text: str) -> None:
    assert CODEC.decode_text(text.encode()) is not None


@given(FRAMES, st.booleans())
@settings(max_examples=300)
def test_any_object_is_a_command_or_malformed_and_its_answer_can_be_written(frame: Any, readable: bool) -> None:
    text = json.dumps(frame, ensure_ascii=readable)
    command = CODEC.decode_text(text.encode())
    answer = CODEC.say(Pong(command.ref))
    if command.ref is not None:
        assert json.loads(answer.payload)["ref"] == frame["ref"]


@given(JSON, st.sampled_from([None, 1, "\t"]), st.booleans())
def test_data_reaches_every_reader_as_the_text_that_was_sent(data: Any, indent: Any, readable: bool) -> None:
    text = json.dumps(data, indent=indent, ensure_ascii=readable)
    command = CODEC.decode_text(f'{{"type":"publish","channel":"a","data":{text}}}'.encode())
    if isinstance(command, Malformed):  # a whole number beyond the range of doubles
        assert "infinity" in command.error.message
        return
    assert isinstance(command, Publish)
    assert command.payload == text.encode()
    frame = CODEC.encode("a", Publication(Position("ab", 1), Kind.JSON, command.payload)).payload
    assert text.encode() in frame
    assert json.loads(frame)["data"] == data


@given(st.integers(1, 100), st.sampled_from(["[", '{"a":']), st.sampled_from(["", "1", '"]]]"']))
def test_depth_counts_brackets_outside_of_strings(depth: int, opening: str, inner: str) -> None:
    closing = {"[": "]", '{"a":': "}"}[opening]
    innermost = inner or ("0" if opening != "[" else "")
    data = opening * depth + innermost + closing * depth
    command = CODEC.decode_text(f'{{"type":"publish","channel":"a","data":{data}}}'.encode())
    assert isinstance(command, Publish) is (depth <= DEPTH)


@pytest.mark.parametrize(
    "frame",
    [
        b"[" * 69_000,
        b"]" * 69_000,
        b"[]" * 34_000,
        b'{"a":' * 13_000,
        b'"' + b'\\"' * 34_000 + b"[" * 40,
        b'["' * 34_000,
        b'{"type":"publish","channel":"a","data":[' + b"[]," * 22_000 + b"0]}",
        b'{"type":"publish","channel":"a","data":"' + b"\\u0041[" * 9_000 + b'"}',
    ],
    ids=["opening", "closing", "pairs", "objects", "no end of a string", "quotes", "wide", "escapes"],
)
def test_the_worst_frame_costs_little(frame: bytes) -> None:
    """Of a size that the service takes; the loop of a worker must not stand still for one client."""
    best = min(_seconds(frame) for _ in range(5))
    assert best < 0.02


def _seconds(frame: bytes) -> float:
    began = time.perf_counter()
    CODEC.decode_text(frame)
    return time.perf_counter() - began
