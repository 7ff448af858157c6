"""Group 2: pings are answered with their payload, unasked pongs with nothing (RFC 6455 sections 5.5.2 and 5.5.3)."""

from __future__ import annotations

from tests.stage.frames import PING, PONG, close, frame
from tests.wire.conformance.case import Case, Chunks, Turn, answered, closed, failed, octets, whole

LONGEST = b"\xfe" * 125
TEN = [b"ping %d" % count for count in range(10)]


def _ponged(number: str, meaning: str, chunks: Chunks, *payloads: bytes) -> Case:
    return answered(number, meaning, Turn(chunks, tuple((PONG, payload) for payload in payloads)))


CASES = (
    _ponged("2.1", "ping without payload", whole(frame(PING)), b""),
    _ponged("2.2", "ping with text", whole(frame(PING, b"are you there?")), b"are you there?"),
    _ponged("2.3", "ping with bytes that are no text", whole(frame(PING, b"\0\xff\xfe\xfd\0")), b"\0\xff\xfe\xfd\0"),
    _ponged("2.4", "ping of 125 bytes", whole(frame(PING, LONGEST)), LONGEST),
    failed("2.5", "ping of 126 bytes", whole(frame(PING, LONGEST + b"\xfe")), 1002),
    _ponged("2.6", "ping of 125 bytes octet by octet", octets(frame(PING, LONGEST)), LONGEST),
    closed("2.7", "unasked pong without payload", whole(frame(PONG), close()), {1000}),
    closed("2.8", "unasked pong with payload", whole(frame(PONG, b"unasked"), close()), {1000}),
    _ponged("2.9", "unasked pong then ping", whole(frame(PONG, b"unasked"), frame(PING, b"asked")), b"asked"),
    _ponged("2.10", "ten pings", whole(*(frame(PING, payload) for payload in TEN)), *TEN),
    _ponged("2.11", "ten pings octet by octet", octets(*(frame(PING, payload) for payload in TEN)), *TEN),
)
