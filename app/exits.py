"""How a command ends: its exit status."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """The statuses that `tocsin --help` lists."""

    DONE = 0
    REFUSED = 1
    USAGE = 2
    PORT = 3
    UNREACHABLE = 4
    REDIS = 5
