"""Many durations in little memory: buckets that grow with what they hold."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

STEPS = 32
"""Buckets from a duration to its double: the error of a quantile is 1/32 at most."""


class Latencies:
    """A histogram of durations in seconds.

    Attributes:
        count: of durations.
        longest: exactly; 0 without any.
    """

    def __init__(self) -> None:
        self.count = 0
        self.longest = 0.0
        self._buckets: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """One more."""
        mantissa, exponent = math.frexp(max(seconds, 1e-6))
        self._buckets[exponent * STEPS + int((mantissa - 0.5) * 2 * STEPS)] += 1
        self.count += 1
        self.longest = max(self.longest, seconds)

    def quantile(self, share: float) -> float:
        """What this share of them does not exceed; 0 without any."""
        wanted, seen = share * self.count, 0
        for index, count in sorted(self._buckets.items()):
            seen += count
            if seen >= wanted:
                return min(_end(index), self.longest)
        return self.longest

    def rows(self) -> Iterator[tuple[float, int]]:
        """For a picture: upper ends, two from a duration to its double, and how many lie below each."""
        grouped: Counter[int] = Counter()
        for index, count in self._buckets.items():
            grouped[index // (STEPS // 2)] += count
        if grouped:
            for group in range(min(grouped), max(grouped) + 1):
                yield _end((group + 1) * (STEPS // 2) - 1), grouped[group]

    def summary(self) -> dict[str, float]:
        """Milliseconds, for people and for JSON."""
        shown = {f"p{round(100 * share)}": self.quantile(share) for share in (0.5, 0.9, 0.99)}
        return {name: round(1000 * seconds, 3) for name, seconds in (shown | {"max": self.longest}).items()}


def _end(index: int) -> float:
    exponent, step = divmod(index, STEPS)
    return math.ldexp(0.5 + (step + 1) / (2 * STEPS), exponent)
