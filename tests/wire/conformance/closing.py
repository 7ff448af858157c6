"""Group 7: who closes is answered by a close frame, and nothing that comes behind a close frame is (RFC 6455 sections
5.5.1, 7.1 and 7.4).
"""

from __future__ import annotations

from tests.stage.frames import CLOSE, CONT, PING, TEXT, close, frame, text
from tests.wire.conformance.case import Turn, answered, closed, failed, whole

GOOD_CODES = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999)
BAD_CODES = (0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999)
UNDEFINED_CODES = (5000, 65_535)
"""Outside of all ranges of section 7.4.2: informational in Autobahn, whatever comes. We still want an end."""
NO_TEXT = b"hello \xed\xa0\x80end"
LARGE = b"0123456789abcdef" * 16_384
"""256 KiB: four times the default of `TOCSIN_MAX_MESSAGE`."""

CASES = (
    answered("7.1.1", "text then close", Turn(whole(text("hello")), ((TEXT, b"hello"),))),
    closed("7.1.2", "two closes", whole(close(), frame(CLOSE)), {1000}),
    closed("7.1.3", "ping behind a close", whole(close(), frame(PING)), {1000}),
    closed("7.1.4", "text behind a close", whole(close(), text("hello")), {1000}),
    closed(
        "7.1.5",
        "close between fragments",
        whole(frame(TEXT, b"one ", fin=False), close(), frame(CONT, b"two")),
        {1000},
    ),
    # Informational in Autobahn. The large message is beyond our limit: 1009, unless the close behind it is seen first.
    closed(
        "7.1.6",
        "large text then text then close then ping",
        whole(frame(TEXT, LARGE), text("hello"), close(), frame(PING)),
        {1000, 1009},
    ),
    closed("7.3.1", "close without payload", whole(close(None)), {1000, 1005}),
    failed("7.3.2", "close with one byte", whole(frame(CLOSE, b"\x03")), 1002),
    closed("7.3.3", "close with a code", whole(close()), {1000}),
    closed("7.3.4", "close with a code and a reason", whole(close(1000, b"hello")), {1000}),
    closed("7.3.5", "close with a reason of 123 bytes", whole(close(1000, b"*" * 123)), {1000}),
    failed("7.3.6", "close with a reason of 124 bytes", whole(close(1000, b"*" * 124)), 1002),
    closed("7.5.1", "close with a reason that is no text", whole(close(1000, NO_TEXT)), {1002, 1007}),
    *(
        closed(f"7.7.{place}", f"close with {code}", whole(close(code)), {1000, code})
        for place, code in enumerate(GOOD_CODES, 1)
    ),
    *(
        failed(f"7.9.{place}", f"close with {code} which may not be sent", whole(close(code)), 1002)
        for place, code in enumerate(BAD_CODES, 1)
    ),
    *(
        closed(f"7.13.{place}", f"close with {code} which is undefined", whole(close(code)), {1000, 1002, code})
        for place, code in enumerate(UNDEFINED_CODES, 1)
    ),
)
