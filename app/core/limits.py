"""How much somebody may do: token buckets, as the arithmetic of one number each. Time is an argument."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """A token bucket as one number (the generic cell rate algorithm, ITU-T I.371): the state is the time at which the
    bucket will be full again, so whoever is idle needs no upkeep.

    Attributes:
        rate: a second; 0 is no limit.
        burst: at once, at least 1.
    """

    rate: float
    burst: float = 1.0

    def take(self, full_at: float, now: float, amount: float = 1.0) -> tuple[float, float]:
        """Take `amount` if it is there.

        Args:
            full_at: the state; 0.0 to begin with.
            now: seconds of a clock that only goes forward.
            amount: how much. More than the whole burst is let through when the bucket is full, or it never would be,
                and is paid for afterwards.

        Returns:
            The new state, and 0.0, or the seconds after which it will be there (nothing was taken then).
        """
        if not self.rate:
            return full_at, 0.0
        begin = max(full_at, now)
        wait = begin - now + (min(amount, self.burst) - self.burst) / self.rate
        return (full_at, wait) if wait > 1e-9 else (begin + amount / self.rate, 0.0)

    def owe(self, full_at: float, now: float, amount: float = 1.0) -> tuple[float, float]:
        """Take `amount` in any case. Returns the new state and the seconds until the debt is paid, 0.0 without one."""
        if not self.rate:
            return full_at, 0.0
        after = max(full_at, now) + amount / self.rate
        return after, max(0.0, after - now - self.burst / self.rate)


@dataclass(frozen=True, slots=True)
class Rates:
    """What one client may do a second.

    Attributes:
        publish: messages.
        command: all other commands, and frames that are none.
        refusal: answers `rate_limited`; who goes on beyond them is sent away.
    """

    publish: Rate = Rate(0)
    command: Rate = Rate(0)
    refusal: Rate = Rate(10, 500)


class Tally:
    """How often anybody was refused."""

    __slots__ = ("refused",)

    def __init__(self) -> None:
        self.refused = 0


class Meter:
    """How much of its rates one client (a user with all connections of a worker, or one anonymous connection) has
    used. May be shared.
    """

    __slots__ = ("__weakref__", "_command", "_publish", "_rates", "_refusal", "_tally")

    def __init__(self, rates: Rates, tally: Tally) -> None:
        self._rates = rates
        self._tally = tally
        self._publish = self._command = self._refusal = 0.0

    def publish(self, now: float, amount: int = 1) -> float:
        """Count messages. Returns 0.0, or the seconds after which to try again: nothing was counted then."""
        self._publish, wait = self._rates.publish.take(self._publish, now, amount)
        return wait

    def owe(self, now: float) -> float:
        """Count a message that is taken in any case. Returns the seconds for which nothing more should be read."""
        self._publish, wait = self._rates.publish.owe(self._publish, now)
        return wait

    def command(self, now: float) -> float:
        """Count a command. Returns as `publish`."""
        self._command, wait = self._rates.command.take(self._command, now)
        return wait

    def refuse(self, now: float) -> bool:
        """Count an answer `rate_limited`. Returns whether it was one too many."""
        self._tally.refused += 1
        self._refusal, wait = self._rates.refusal.take(self._refusal, now)
        return wait > 0
