"""WebSocket frames as a server sends them (RFC 6455 section 5): built once, shared by all sockets.

Nothing is read here: frames from a peer are `detached`'s business.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import lru_cache

from websockets.frames import Close, Frame, Opcode

from app.sockets import ALONE, JOIN_LIMIT

REASON_LIMIT = 123
"""Bytes of a close reason at most: a control frame carries 125, the code takes two (RFC 6455 section 5.5)."""

PING = b"\x89\x04" + secrets.token_bytes(4)
"""The ping frame of this process: any pong proves life, so all sockets share one payload."""


def _frame(first: int, payload: bytes) -> bytes:
    """An unmasked frame with the payload length in its shortest form (RFC 6455 section 5.2)."""
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 65_536:
        return bytes((first, 126, size >> 8, size & 0xFF)) + payload
    return bytes((first, 127)) + size.to_bytes(8, "big") + payload


def cut_reason(reason: str) -> str:
    """A close reason, cut between two characters where it exceeds `REASON_LIMIT`."""
    return reason.encode(errors="replace")[:REASON_LIMIT].decode(errors="ignore")


@lru_cache(maxsize=64)
def close_frame(code: int, reason: str = "") -> bytes:
    """A close frame (RFC 6455 section 5.5.1), with as much of the reason as fits.

    Raises:
        websockets.exceptions.ProtocolError: the code may not stand in a close frame (section 7.4).
    """
    return Frame(Opcode.CLOSE, Close(code, cut_reason(reason)).serialize()).serialize(mask=False)


class Joined:
    """What the framings of sockets that take bytes share: a chunk is the bytes of several units."""

    __slots__ = ()

    def join(self, units: Sequence[bytes]) -> list[bytes]:
        """As few chunks as `JOIN_LIMIT` and `ALONE` (bytes) allow, in order."""
        if len(units) < 2:
            return list(units)
        chunks: list[bytes] = []
        run: list[bytes] = []
        size = 0
        for unit in units:
            if len(unit) > ALONE or size + len(unit) > JOIN_LIMIT:
                if run:
                    chunks.append(b"".join(run))
                    run, size = [], 0
                if len(unit) > ALONE:
                    chunks.append(unit)
                    continue
            run.append(unit)
            size += len(unit)
        if run:
            chunks.append(b"".join(run))
        return chunks


class Frames(Joined):
    """The framing of detached WebSockets: a unit is one frame."""

    __slots__ = ()

    def text(self, payload: bytes) -> bytes:
        """Frame a text message of UTF-8 bytes."""
        return _frame(0x81, payload)

    def binary(self, payload: bytes) -> bytes:
        """Frame a binary message."""
        return _frame(0x82, payload)
