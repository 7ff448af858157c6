"""Event streams as bytes: the golden streams of tests/wire/sse.json, and what holds for every one.

Each row takes an event of tests/wire/events.json by its name, and has its exact text in a stream of one channel (`one`)
and in one of two that stood at `KNOWN` (`several`).
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.errors import BadPosition, UnsupportedType
from app.core.messages import Kind, Malformed, Position, Publication
from app.engine.stream import Numbered, Numbering
from app.protocols import Message
from app.protocols.sse import EventStream, read_positions, retry
from app.sockets.stream import CHUNKS, PIECES, Chunks, Pieces
from tests.unit.test_native_codec import EVENTS, MAKERS, WIRE, name_of, publication

STREAMS = json.loads((WIRE / "sse.json").read_text("utf-8"))
MEANINGS = {row["name"]: row["meaning"] for row in EVENTS}
FRAMES = {row["name"]: row["frame"] for row in EVENTS}
ONE, SEVERAL = EventStream(several=False), EventStream(several=True)
KNOWN = {"lobby": Position("9f3a", 7), "room:42": Position("4c1f9be07a2d", 120)}


class Wire:
    """What a `Numbering` needs of a socket."""

    def __init__(self, framing: Chunks | Pieces = PIECES) -> None:
        self.framing = framing
        self.write: Any = self._write
        self.written: list[bytes] = []

    def _write(self, chunk: bytes) -> None:
        self.written.append(chunk)


def encode(codec: EventStream, meaning: dict[str, Any]) -> Message:
    """An event in a stream."""
    if meaning["event"] == "message":
        return codec.encode(meaning["channel"], publication(meaning))
    return codec.say(MAKERS[meaning["event"]](meaning))


def write_to_several(wire: Wire, *messages: Message) -> None:
    """Write to a stream of two channels."""
    numbered = Numbered(wire.framing)
    Numbering(wire, KNOWN)  # type: ignore[arg-type] # it needs no more of a socket
    for chunk in numbered.join([numbered.text(message.payload) for message in messages]):
        wire.write(chunk)


@pytest.mark.parametrize("row", STREAMS, ids=name_of)
def test_golden_stream(row: dict[str, Any]) -> None:
    meaning = MEANINGS[row["name"]]
    assert encode(ONE, meaning).payload.decode() == row["one"]
    wire = Wire()
    write_to_several(wire, encode(SEVERAL, meaning))
    assert b"".join(wire.written).decode() == row["several"]


def test_golden_streams_hold_the_native_objects() -> None:
    told = {"message", "gap", "reconnect", "subscribed", "alive"}
    assert {MEANINGS[row["name"]]["event"] for row in STREAMS} == told
    assert len({row["name"] for row in STREAMS}) == len(STREAMS)
    for row in STREAMS:
        data = [line[6:] for line in row["one"].split("\n") if line.startswith("data: ")]
        if data and MEANINGS[row["name"]]["event"] != "subscribed":
            assert json.loads("\n".join(data)) == json.loads(FRAMES[row["name"]])


def test_what_a_stream_never_says_is_a_comment() -> None:
    for row in EVENTS:
        if row["meaning"]["event"] not in {"message", "gap", "reconnect", "subscribed", "alive"}:
            assert encode(ONE, row["meaning"]).payload == b":\n\n"


def test_data_has_a_line_for_each_line_of_the_json() -> None:
    spaced = Publication(Position("ab", 3), Kind.JSON, b'{\r\n"a":\r[1,\n2]}', b'{"t":1}')
    text = ONE.encode("a", spaced).payload.decode()
    lines = text.split("\n")
    assert "\r" not in text
    assert lines[0] == "id: ab-3"
    assert all(line.startswith("data: ") for line in lines[1:-2])
    assert lines[-2:] == ["", ""]
    assert json.loads("\n".join(line[6:] for line in lines[1:-2]))["data"] == {"a": [1, 2]}


def test_each_message_of_several_channels_has_an_id_of_its_own_in_one_write() -> None:
    wire = Wire(CHUNKS)
    messages = [
        SEVERAL.encode(
            channel,
            Publication(
                Position("9f3a" if channel == "lobby" else "4c1f9be07a2d", offset), Kind.TEXT, b"x", b'{"t":1}'
            ),
        )
        for channel, offset in (("room:42", 121), ("lobby", 8), ("room:42", 122))
    ]
    write_to_several(wire, *messages)
    [written] = wire.written
    ids = [line for line in written.split(b"\n") if line.startswith(b"id: ")]
    assert ids == [
        b"id: lobby=9f3a-7,room:42=4c1f9be07a2d-121",
        b"id: lobby=9f3a-8,room:42=4c1f9be07a2d-121",
        b"id: lobby=9f3a-8,room:42=4c1f9be07a2d-122",
    ]


def test_what_follows_the_id_is_the_same_object_for_all_streams() -> None:
    numbered = Numbered(PIECES)
    unit = numbered.text(SEVERAL.encode("lobby", Publication(Position("9f3a", 8), Kind.TEXT, b"x", b"{}")).payload)
    assert numbered.join([unit]) == [(unit,)]
    assert Numbered(PIECES) == numbered
    assert hash(Numbered(PIECES)) == hash(numbered)


def test_retry_never_lets_a_browser_ask_more_than_once_a_second() -> None:
    assert [retry(seconds) for seconds in (0, 0.0004, 2.4)] == [b"retry: 1000\n", b"retry: 1000\n", b"retry: 3400\n"]


def test_a_stream_takes_no_commands() -> None:
    for taken in (ONE.decode_text(b"{}"), ONE.decode_binary(b"")):
        assert isinstance(taken, Malformed)
        assert isinstance(taken.error, UnsupportedType)


CHANNELS = st.lists(st.text("aZ09_.:@-", min_size=1, max_size=8), min_size=1, max_size=5, unique=True)


@given(CHANNELS, st.data())
def test_positions_are_read_as_they_were_written(channels: list[str], data: st.DataObject) -> None:
    offsets = st.integers(0, 10**15)
    positions = {name: Position("ab12", data.draw(offsets)) for name in channels}
    text = (
        ",".join(f"{name}={it}" for name, it in positions.items()) if len(channels) > 1 else str(positions[channels[0]])
    )
    assert read_positions(text, channels) == positions


@given(st.text(alphabet="ab=,-01 \n", max_size=20))
def test_any_text_is_positions_of_the_channels_or_refused(text: str) -> None:
    for channels in (["a"], ["a", "b"]):
        try:
            found = read_positions(text, channels)
        except BadPosition:
            continue
        assert set(found) <= set(channels)
        written = str(found["a"]) if len(channels) == 1 else ",".join(f"{name}={it}" for name, it in found.items())
        assert written.split("-")[0] == text.split("-", maxsplit=1)[0]
