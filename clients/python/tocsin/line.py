"""The connection as it comes and goes: when to connect, whether to come back, and after how long. Pure.

The rules are those of the protocol's table of close codes: 1000, 1002, 1003, 1007, 1008, 1009 and 44xx stop, everything
else returns. Native and plain connections share them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from tocsin import errors
from tocsin.effects import Changed, Connect, Effect
from tocsin.errors import Forbidden, Stopped, TocsinError, Unauthorized
from tocsin.events import Change, State

_STOPS = frozenset({1000, 1002, 1003, 1007, 1008, 1009})
_WORDS = {
    1000: "the service is done",
    1001: "the service goes away",
    1002: "the service saw a broken frame",
    1003: "the service was sent a type of frame that it does not take",
    1006: "the connection was cut",
    1007: "the service was sent text that is not UTF-8",
    1008: "the service refuses what this client does",
    1009: "the service was sent too much at once",
    1011: "a fault inside the service",
    1012: "the service restarts",
    1013: "the service could not take a message",
    4400: "malformed commands, again and again",
    4401: "the token has ended",
    4403: "disconnected, or not allowed",
    4508: "the service did not hear this client",
    4510: "a gap: what was missed cannot be replayed",
    4529: "far beyond a limit, again and again",
}
ABUSE, GAP, UNAUTHORIZED, FORBIDDEN = 4529, 4510, 4401, 4403
ABUSE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """Full jitter: a random time up to `base` seconds, doubled with each failure, up to `cap`.

    Attributes:
        healthy: seconds of an open connection after which the count begins anew.
    """

    base: float = 0.5
    cap: float = 30.0
    healthy: float = 10.0

    def delay(self, failures: int, chance: random.Random) -> float:
        """How long to wait after so many failures before this one."""
        return chance.random() * min(self.cap, self.base * 2.0 ** min(failures, 60))


@dataclass(frozen=True, slots=True)
class Refusal:
    """The HTTP answer to an upgrade that was refused.

    Attributes:
        error: what its body says.
    """

    status: int
    error: TocsinError


class Line:
    """One connection after another.

    Args:
        renewable: whether a new token can be asked for.
        patience: seconds from `Connect` until the service must have answered.

    Attributes:
        state: where it stands.
        error: why it has stopped.
        return_at: when it will connect again, or must have.
    """

    def __init__(
        self, backoff: Backoff, chance: random.Random, *, renewable: bool = False, patience: float = 10.0
    ) -> None:
        self.state = State.WAITING
        self.error: TocsinError | None = None
        self.return_at: float | None = None
        self._backoff = backoff
        self._chance = chance
        self._renewable = renewable
        self._patience = patience
        self._failures = 0
        self._opened_at: float | None = None
        self._renewed = False
        self._hurried = False
        self._announced: float | None = None

    def connect(self, now: float) -> list[Effect]:
        """Connect now."""
        self.return_at = now + self._patience
        return [*self._become(Change(State.CONNECTING)), Connect()]

    def opened(self, now: float) -> list[Effect]:
        """The connection can be used."""
        self._opened_at = now
        self.return_at = None
        return self._become(Change(State.OPEN))

    def announced(self, after: float, now: float) -> None:
        """The service has said when to come back, and will close."""
        self._announced = now + after

    def closed(self, code: int, reason: str, now: float) -> list[Effect]:
        """A connection that was accepted has ended."""
        self._rest(now)
        words = f"{_WORDS.get(code, 'closed')} ({code}{': ' * bool(reason)}{reason})"
        if code == UNAUTHORIZED:
            return self._renew(Unauthorized(words), now)
        if code in _STOPS or 4400 <= code <= 4499:
            return self.stop(Forbidden(words) if code == FORBIDDEN else Stopped(words, close_code=code))
        if code == GAP:
            return self._wait(self._soon(), words, now)
        if code == ABUSE:
            return self._wait(ABUSE_SECONDS + self._delay(), words, now)
        if self._announced is not None:
            return self._wait(max(0.0, self._announced - now), words, now)
        return self._wait(self._delay(), words, now)

    def refused(self, refusal: Refusal, now: float) -> list[Effect]:
        """The upgrade was answered by HTTP: 401 tries once with a new token; 408, 425, 429 and 5xx return."""
        self._rest(now)
        status, error = refusal.status, refusal.error
        words = f"refused with {status}: {error.message}"
        if status == 401:
            return self._renew(error, now)
        if status in {408, 425, 429} or status >= 500:
            return self._wait((error.retry_after or 0.0) + self._delay(), words, now)
        return self.stop(error)

    def failed(self, reason: str, now: float) -> list[Effect]:
        """There was no answer at all, or the connection was given up."""
        self._rest(now)
        return self._wait(self._delay(), reason, now)

    def due(self, now: float) -> list[Effect]:
        """What time has brought: the return. (That of a connection which does not open is `late`.)"""
        if self.state is State.WAITING and self.return_at is not None and now >= self.return_at:
            return self.connect(now)
        return []

    def late(self, now: float) -> bool:
        """Whether the service has not answered for too long."""
        return self.state is State.CONNECTING and self.return_at is not None and now >= self.return_at

    def stop(self, error: TocsinError | None, reason: str = "") -> list[Effect]:
        """Connect no more."""
        if self.state is State.STOPPED:
            return []
        self.error = error
        self.return_at = None
        return self._become(Change(State.STOPPED, reason or (error.message if error else ""), error=error))

    def _rest(self, now: float) -> None:
        if self._opened_at is not None and now - self._opened_at >= self._backoff.healthy:
            self._failures = 0
            self._renewed = self._hurried = False
        self._opened_at = None

    def _delay(self) -> float:
        self._failures += 1
        return self._backoff.delay(self._failures - 1, self._chance)

    def _soon(self) -> float:
        """At once, but until a connection was healthy only the first time."""
        if self._hurried:
            return self._delay()
        self._hurried = True
        return 0.0

    def _renew(self, error: TocsinError, now: float) -> list[Effect]:
        if self._renewed or not self._renewable:
            return self.stop(error)
        self._renewed = True
        return self._wait(self._soon(), f"{error.message}: asking for a new token", now)

    def _wait(self, delay: float, reason: str, now: float) -> list[Effect]:
        self._announced = None
        self.return_at = now + delay
        return self._become(Change(State.WAITING, reason, delay))

    def _become(self, change: Change) -> list[Effect]:
        self.state = change.state
        return [Changed(change)]


def read_refusal(status: int, body: object, retry_after: str | None) -> Refusal:
    """A refusal from its status, its decoded body and the header Retry-After (seconds; RFC 9110 section 10.2.3)."""
    given = body.get("error") if isinstance(body, dict) else None
    if not isinstance(given, dict):
        code = {401: "unauthorized", 403: "forbidden", 404: "not_found", 429: "rate_limited", 503: "unavailable"}
        given = {
            "code": code.get(status, "bad_request" if status < 500 else "internal"),
            "message": f"HTTP {status}, not from Tocsin",
        }
    error = errors.from_wire(given)
    if error.retry_after is None and retry_after is not None and retry_after.isdecimal():
        error.retry_after = float(retry_after)
    return Refusal(status, error)
