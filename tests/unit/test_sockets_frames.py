"""Framing of both kinds of sockets."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.sockets import ALONE, JOIN_LIMIT, Framing
from app.sockets.asgi import MESSAGES
from app.sockets.detached import FRAMES
from app.sockets.frames import PING, REASON_LIMIT, close_frame, cut_reason

BOTH = pytest.mark.parametrize("framing", [FRAMES, MESSAGES], ids=["frames", "messages"])


@pytest.mark.parametrize(
    ("size", "head"),
    [
        (0, b"\x00"),
        (125, b"\x7d"),
        (126, b"\x7e\x00\x7e"),
        (65_535, b"\x7e\xff\xff"),
        (65_536, b"\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
    ],
)
def test_lengths_stand_in_their_shortest_form(size: int, head: bytes) -> None:
    assert FRAMES.text(b"x" * size) == b"\x81" + head + b"x" * size
    assert FRAMES.binary(b"x" * size) == b"\x82" + head + b"x" * size


def test_control_frames() -> None:
    assert close_frame(1000) == b"\x88\x02\x03\xe8"
    assert close_frame(4001, "bye") == b"\x88\x05\x0f\xa1bye"
    assert PING[:2] == b"\x89\x04"
    assert len(PING) == 6


@given(st.text())
def test_a_reason_is_cut_to_what_fits(reason: str) -> None:
    cut = cut_reason(reason)
    assert len(cut.encode()) <= REASON_LIMIT
    assert len(close_frame(1000, reason)) <= 2 + 2 + REASON_LIMIT


def measure(chunk: Any) -> list[int]:
    """Payload sizes in a chunk of messages, or its total in bytes."""
    return [len(chunk)] if isinstance(chunk, bytes) else [size for _, size in chunk]


@BOTH
@given(
    sizes=st.lists(st.one_of(st.integers(0, 300), st.integers(ALONE - 20, ALONE + 20), st.just(65_536)), max_size=60)
)
def test_joining_keeps_order_and_limits(framing: Framing, sizes: list[int]) -> None:
    units = [framing.binary(bytes([i % 256]) * size) for i, size in enumerate(sizes)]
    chunks = framing.join(units)
    if framing is FRAMES:
        assert b"".join(chunks) == b"".join(units)
    else:
        assert [unit for chunk in chunks for unit in chunk] == units
    for chunk in chunks:
        parts = measure(chunk)
        assert sum(parts) <= JOIN_LIMIT
        assert len(parts) == 1 or all(part <= ALONE for part in parts)


@BOTH
def test_joining_needs_few_chunks(framing: Framing) -> None:
    assert framing.join([]) == []
    assert len(framing.join([framing.text(b"x" * 100)] * 1000)) == 1
    assert len(framing.join([framing.text(b"x" * 10_000)] * 100)) == 4


def test_an_asgi_message_is_shared() -> None:
    unit = MESSAGES.text("é".encode())
    assert unit == ({"type": "websocket.send", "text": "é"}, 2)
    [chunk] = MESSAGES.join([unit, unit])
    assert chunk[0][0] is unit[0]
