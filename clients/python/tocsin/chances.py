"""Time and chance, which tests may want to choose."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Chances:
    """Where time and chance come from.

    Attributes:
        clock: seconds that only go forward.
        wall: seconds since 1970; only for the end of tokens.
        random: for jitter and keys.
    """

    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    random: random.Random = field(default_factory=random.SystemRandom)
