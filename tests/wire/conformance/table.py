"""All cases, by group."""

from __future__ import annotations

from dataclasses import dataclass

from tests.wire.conformance import closing, fragments, framing, opcodes, pings, reserved, splitting, utf8
from tests.wire.conformance.case import Case


@dataclass(frozen=True, slots=True)
class Group:
    """One of Autobahn's groups; `count` is how many cases it has there."""

    number: int
    title: str
    count: int
    cases: tuple[Case, ...]


@dataclass(frozen=True, slots=True)
class Deviation:
    """A case that the server under the portable path fails: the close code it sends instead, and why."""

    code: int
    why: str


GROUPS = (
    Group(1, "framing", 16, framing.CASES),
    Group(2, "pings and pongs", 11, pings.CASES),
    Group(3, "reserved bits", 7, reserved.CASES),
    Group(4, "opcodes", 10, opcodes.CASES),
    Group(5, "fragmentation", 20, fragments.CASES),
    Group(6, "UTF-8", 145, utf8.CASES),
    Group(7, "close handling", 37, closing.CASES),
    Group(10, "auto-fragmentation", 1, splitting.CASES),
)
CASES = tuple(case for group in GROUPS for case in group.cases)
PORTABLE_DEVIATIONS = {
    "7.1.5": Deviation(
        1002,
        "uvicorn answers as the websockets library does, which takes a close within a fragmented message for an error",
    ),
}
