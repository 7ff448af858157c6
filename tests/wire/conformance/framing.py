"""Group 1: messages of every form of length (RFC 6455 section 5.2) come back with their type and payload."""

from __future__ import annotations

from tests.stage.frames import BINARY, TEXT, frame
from tests.wire.conformance.case import Case, Turn, answered, pieces, whole

SIZES = (0, 125, 126, 127, 128, 65_535, 65_536)
CHUNK = 997
"""Bytes of a chunk that coincides with no buffer."""


def _cases(series: str, kind: str, opcode: int, octet: bytes) -> list[Case]:
    cases = []
    for place, size in enumerate(SIZES, 1):
        payload = octet * size
        turn = Turn(whole(frame(opcode, payload)), ((opcode, payload),))
        cases.append(answered(f"{series}.{place}", f"{kind} of {size} bytes", turn))
    payload = octet * SIZES[-1]
    turn = Turn(pieces(CHUNK, frame(opcode, payload)), ((opcode, payload),))
    cases.append(answered(f"{series}.8", f"{kind} of {SIZES[-1]} bytes in chunks of {CHUNK}", turn))
    return cases


CASES = (*_cases("1.1", "text", TEXT, b"*"), *_cases("1.2", "binary", BINARY, b"\xfe"))
