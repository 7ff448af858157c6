"""Group 3: the bits RSV1 to RSV3 are 0 where no extension was agreed (RFC 6455 section 5.2). What is behind them is not
answered, what is before them may be.
"""

from __future__ import annotations

from tests.stage.frames import BINARY, CLOSE, PING, TEXT, frame, text
from tests.wire.conformance.case import apart, failed, octets, whole

HELLO = (TEXT, b"hello")


def _between(rsv: int) -> tuple[bytes, ...]:
    return text("hello"), frame(TEXT, b"hello", rsv=rsv), frame(PING)


CASES = (
    failed("3.1", "text with bits 1", whole(frame(TEXT, b"hello", rsv=1)), 1002),
    failed("3.2", "text then text with bits 2 then ping", whole(*_between(2)), 1002, echoed=HELLO),
    failed("3.3", "text then text with bits 3 then ping frame by frame", apart(*_between(3)), 1002, echoed=HELLO),
    failed("3.4", "text then text with bits 4 then ping octet by octet", octets(*_between(4)), 1002, echoed=HELLO),
    failed("3.5", "binary with bits 5", whole(frame(BINARY, b"\0\xff\xfe", rsv=5)), 1002),
    failed("3.6", "ping with bits 6", whole(frame(PING, b"hello", rsv=6)), 1002),
    failed("3.7", "close with bits 7", whole(frame(CLOSE, rsv=7)), 1002),
)
