"""Time and chance, which tests may want to choose."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

_CLOCK: int | None = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))


def uptime() -> float:
    """Seconds since the machine has started, with those for which it slept: meanwhile the service's clock goes on, and
    forgets keys. (`time.monotonic` leaves them out on Linux and macOS; CLOCK_MONOTONIC does so only on Linux.)
    """
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)


@dataclass(frozen=True, slots=True)
class Chances:
    """Where time and chance come from.

    Attributes:
        clock: seconds that only go forward, also while the machine sleeps.
        wall: seconds since 1970; only for the end of tokens.
        random: for jitter and keys.
    """

    clock: Callable[[], float] = uptime
    wall: Callable[[], float] = time.time
    random: random.Random = field(default_factory=random.SystemRandom)
