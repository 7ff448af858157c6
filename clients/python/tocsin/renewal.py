"""When to ask for the next token, and which `authenticate` shows it. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable

from tocsin.line import Backoff

EARLY = 60.0
"""Seconds before a token's end at which the next one is asked for, but at most a fifth of its life."""

AGAIN = 10.0
"""Seconds at least from one renewal to the next."""


class Renewal:
    """The token of one connection after another.

    Args:
        wall: seconds since 1970; None where no new token can be had.

    Attributes:
        at: when to ask for a token (seconds, monotonic), or None.
        ref: of the `authenticate` under way.
    """

    def __init__(self, wall: Callable[[], float] | None, backoff: Backoff, chance: random.Random) -> None:
        self.at: float | None = None
        self.ref: int | None = None
        self._wall = wall
        self._backoff = backoff
        self._chance = chance
        self._failures = 0

    def expect_end(self, expires_at: float | None, now: float) -> None:
        """The service has said when the token in use ends (seconds since 1970). One that is fresh and seems to have
        ended, or to end at once, tells that our clock is ahead: then the service's 4401 is waited for, or a while.
        """
        again = self.ref is not None
        self.at = self.ref = None
        self._failures = 0
        if expires_at is not None and self._wall is not None:
            left = expires_at - self._wall()
            if left > 0:
                self.at = now + max(AGAIN if again else 1.0, left - min(EARLY, left / 5))

    def due(self, now: float) -> bool:
        """Whether to ask for a token now; said once."""
        if self.at is None or now < self.at:
            return False
        self.at = None
        return True

    def later(self, retry_after: float | None, now: float) -> None:
        """There was none, or it could not be taken: ask again after a while."""
        self.ref = None
        self.at = now + max(1.0, retry_after or self._backoff.delay(self._failures, self._chance))
        self._failures += 1

    def lost(self) -> None:
        """The connection is gone; the next one asks for a token of its own."""
        self.at = self.ref = None
