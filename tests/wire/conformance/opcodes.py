"""Group 4: opcodes that mean nothing yet fail the connection (RFC 6455 section 5.2). What is behind them is not
answered, what is before them may be.
"""

from __future__ import annotations

from tests.stage.frames import PING, TEXT, frame, text
from tests.wire.conformance.case import Case, failed, octets, whole

HELLO = (TEXT, b"hello")


def _cases(series: str, first: int) -> tuple[Case, ...]:
    def between(opcode: int, payload: bytes) -> tuple[bytes, ...]:
        return text("hello"), frame(opcode, payload), frame(PING)

    after, last = between(first + 2, b""), between(first + 4, b"payload")
    loaded = between(first + 3, b"payload")
    return (
        failed(f"{series}.1", f"opcode {first}", whole(frame(first)), 1002),
        failed(f"{series}.2", f"opcode {first + 1} with payload", whole(frame(first + 1, b"payload")), 1002),
        failed(f"{series}.3", f"text then opcode {first + 2} then ping", whole(*after), 1002, echoed=HELLO),
        failed(
            f"{series}.4", f"text then opcode {first + 3} with payload then ping", whole(*loaded), 1002, echoed=HELLO
        ),
        failed(
            f"{series}.5",
            f"text then opcode {first + 4} with payload then ping octet by octet",
            octets(*last),
            1002,
            echoed=HELLO,
        ),
    )


CASES = (*_cases("4.1", 3), *_cases("4.2", 11))
