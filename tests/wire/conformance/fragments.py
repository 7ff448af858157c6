"""Group 5: fragments are one message; control frames may stand between them (RFC 6455 sections 5.4 and 5.5)."""

from __future__ import annotations

from tests.stage.frames import CONT, PING, PONG, TEXT, frame, text
from tests.wire.conformance.case import Case, Chunks, Turn, answered, apart, failed, octets, whole

ONE, TWO = frame(TEXT, b"one ", fin=False), frame(CONT, b"two")
BOTH = (TEXT, b"one two")
BETWEEN = frame(PING, b"between")
ASTRAY, ASTRAY_OPEN = frame(CONT, b"astray"), frame(CONT, b"astray", fin=False)


def _joined(number: str, meaning: str, chunks: Chunks) -> Case:
    return answered(number, meaning, Turn(chunks, (BOTH,)))


def _joined_and_ponged(number: str, meaning: str, chunks: Chunks) -> Case:
    return answered(number, meaning, Turn(chunks, ((PONG, b"between"), BOTH)))


def _early_pongs(number: str, meaning: str, *, separate: bool) -> Case:
    """The first pong must come while the message is not complete."""
    cut = apart if separate else whole
    begin = ONE, frame(CONT, b"2 ", fin=False), frame(PING, b"first")
    end = (
        frame(CONT, b"3 ", fin=False),
        frame(CONT, b"4 ", fin=False),
        frame(PING, b"second"),
        frame(CONT, b"five"),
    )
    message = (TEXT, b"one 2 3 4 five")
    return answered(
        number, meaning, Turn(cut(*begin), ((PONG, b"first"),)), Turn(cut(*end), ((PONG, b"second"), message))
    )


CASES = (
    failed("5.1", "ping in fragments", whole(frame(PING, b"one ", fin=False), TWO), 1002),
    failed("5.2", "pong in fragments", whole(frame(PONG, b"one ", fin=False), TWO), 1002),
    _joined("5.3", "text in fragments", whole(ONE, TWO)),
    _joined("5.4", "text in fragments frame by frame", apart(ONE, TWO)),
    _joined("5.5", "text in fragments octet by octet", octets(ONE, TWO)),
    _joined_and_ponged("5.6", "ping between fragments", whole(ONE, BETWEEN, TWO)),
    _joined_and_ponged("5.7", "ping between fragments frame by frame", apart(ONE, BETWEEN, TWO)),
    _joined_and_ponged("5.8", "ping between fragments octet by octet", octets(ONE, BETWEEN, TWO)),
    failed("5.9", "last fragment of nothing", whole(ASTRAY, text("text")), 1002),
    failed("5.10", "last fragment of nothing frame by frame", apart(ASTRAY, text("text")), 1002),
    failed("5.11", "last fragment of nothing octet by octet", octets(ASTRAY, text("text")), 1002),
    failed("5.12", "fragment of nothing", whole(ASTRAY_OPEN, text("text")), 1002),
    failed("5.13", "fragment of nothing frame by frame", apart(ASTRAY_OPEN, text("text")), 1002),
    failed("5.14", "fragment of nothing octet by octet", octets(ASTRAY_OPEN, text("text")), 1002),
    failed("5.15", "fragment of nothing behind a message", whole(ONE, TWO, ASTRAY_OPEN, text("4")), 1002, echoed=BOTH),
    failed("5.16", "fragment of nothing before each message", whole(*(ASTRAY_OPEN, ONE, TWO) * 2), 1002),
    failed("5.17", "last fragment of nothing before each message", whole(*(ASTRAY, ONE, TWO) * 2), 1002),
    failed("5.18", "text in a fragmented text", whole(ONE, text("two")), 1002),
    _early_pongs("5.19", "pings between five fragments", separate=False),
    _early_pongs("5.20", "pings between five fragments frame by frame", separate=True),
)
