"""What waits for an answer: publishes, and reads of the log and of members. Pure.

Whatever was not answered when its connection was lost is sent again on the next one, a publish with its key: the
service then answers with the first result. A key is given up at 80 % of the time for which the service remembers it,
counted from the first try; later a repetition might publish twice.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass

from tocsin.errors import (
    OF_THE_SENDER,
    TRANSIENT,
    PublishTimeout,
    RateLimited,
    Timeout,
    TocsinError,
    TooLarge,
    in_doubt,
)
from tocsin.line import Backoff

KEY_SHARE = 0.8
WINDOW = 64
"""Commands on the wire at most: what the service may have to refuse at once."""
SLOW_SECONDS = 10.0
"""For so long after `rate_limited` one command at a time."""
PAUSE = 0.25
"""Seconds to wait at least after `rate_limited`: the service closes the connection of who goes on all the same."""


@dataclass(slots=True)
class Entry:
    """One command.

    Attributes:
        text: its frame.
        size: of its data in bytes, as the service counts it; 0 for what is no publish.
        publish: whether it is one. Reads may be repeated at will.
        keyed: whether it may be repeated; an ephemeral publish may not.
        deadline: when its caller stops to wait.
        gives_up: when its key must not be used any more; None while it was never sent.
        doubtful: whether an earlier try may have taken effect.
    """

    ref: int
    text: str
    size: int = 0
    publish: bool = False
    keyed: bool = True
    deadline: float | None = None
    gives_up: float | None = None
    sent: bool = False
    doubtful: bool = False
    failures: int = 0

    def overdue(self, now: float) -> bool:
        """Whether it must be given up."""
        return any(end is not None and now >= end for end in (self.deadline, self.gives_up))

    def timeout(self) -> Timeout:
        """What its caller is told then."""
        if not self.publish:
            return Timeout("no answer in time")
        if not self.sent:
            return PublishTimeout("not sent in time: it was not published", sent=False)
        return PublishTimeout("not acknowledged in time: whether it was published is not known", sent=True)


class Outbox:
    """Commands in the order of their refs, which is that in which they were given.

    Args:
        limit: entries at most.

    Attributes:
        key_seconds: how long the service remembers a key.
        max_data: bytes of a publish at most; None while that is not known.
    """

    def __init__(self, limit: int, backoff: Backoff, chance: random.Random) -> None:
        self.key_seconds = 120.0
        self.max_data: int | None = None
        self._limit = limit
        self._backoff = backoff
        self._chance = chance
        self._entries: dict[int, Entry] = {}
        self._waiting: list[int] = []  # heaps; refs that are gone are skipped
        self._alarms: list[tuple[float, int]] = []
        self._wire: set[int] = set()
        self._hold = 0.0
        self._slow_until = 0.0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def full(self) -> bool:
        """Whether nothing more may be added."""
        return len(self._entries) >= self._limit

    @property
    def expecting(self) -> bool:
        """Whether an answer is on its way."""
        return bool(self._wire)

    def add(self, entry: Entry) -> None:
        """Take a command."""
        self._entries[entry.ref] = entry
        heapq.heappush(self._waiting, entry.ref)
        if entry.deadline is not None:
            heapq.heappush(self._alarms, (entry.deadline, entry.ref))

    def remove(self, ref: int) -> Entry | None:
        """Forget a command, because it is answered or nobody waits any more."""
        self._wire.discard(ref)
        return self._entries.pop(ref, None)

    def clear(self) -> list[Entry]:
        """Forget all."""
        entries = list(self._entries.values())
        self._entries.clear()
        self._wire.clear()
        return entries

    def flush(self, now: float) -> Iterator[str | tuple[int, TocsinError]]:
        """The frames that may be sent now, and what need not be sent, since it is too late or would be refused."""
        if now < self._hold:
            return
        self._hold = 0.0
        window = 1 if now < self._slow_until else WINDOW
        while self._waiting and len(self._wire) < window:
            entry = self._entries.get(heapq.heappop(self._waiting))
            if entry is None:
                continue
            if entry.overdue(now):  # the machine has slept
                self.remove(entry.ref)
                yield entry.ref, entry.timeout()
                continue
            if self.max_data is not None and entry.size > self.max_data:
                self.remove(entry.ref)
                yield entry.ref, TooLarge(f"`data` has at most {self.max_data} bytes here")
                continue
            if entry.publish and not entry.sent and entry.keyed:
                entry.gives_up = now + KEY_SHARE * self.key_seconds
                heapq.heappush(self._alarms, (entry.gives_up, entry.ref))
            entry.sent = True
            self._wire.add(entry.ref)
            yield entry.text

    def refused(self, ref: int, error: TocsinError, now: float) -> TocsinError | None:
        """The end of a command, which is then forgotten; or None: it is sent again after a while."""
        entry = self._entries.get(ref)
        if entry is None:
            return None
        if error.code not in TRANSIENT or not entry.keyed:
            self.remove(ref)
            in_question = entry.publish and entry.doubtful and isinstance(error, OF_THE_SENDER)
            return in_doubt(error) if in_question else error
        self._wire.discard(ref)
        heapq.heappush(self._waiting, ref)
        if isinstance(error, RateLimited):
            self._slow_until = now + SLOW_SECONDS
            wait = max(PAUSE, error.retry_after or 0.0)
        else:
            wait = (error.retry_after or 0.0) + self._backoff.delay(entry.failures, self._chance)
            entry.failures += 1
            entry.doubtful = True
        self._hold = max(self._hold, now + wait)
        return None

    def lost(self) -> list[tuple[int, TocsinError]]:
        """The connection is gone: what was on the wire goes out again, but for what may not be repeated."""
        ended: list[tuple[int, TocsinError]] = []
        for ref, entry in self._entries.items():
            if not entry.keyed:  # sent or not: it was for the moment
                ended.append((ref, entry.timeout()))
            elif ref in self._wire:
                entry.doubtful = True
                heapq.heappush(self._waiting, ref)
        self._wire.clear()
        for ref, _ in ended:
            self.remove(ref)
        self._hold = 0.0
        return ended

    def disown(self) -> list[tuple[int, TocsinError]]:
        """The connection is another user's now: what one has said is not sent as another's. The service knows a key as
        its user's alone, so that it would be published twice.
        """
        ended: list[tuple[int, TocsinError]] = [
            (ref, entry.timeout()) for ref, entry in self._entries.items() if entry.publish
        ]
        for ref, _ in ended:
            self.remove(ref)
        return ended

    def expire(self, now: float) -> list[tuple[int, TocsinError]]:
        """What has to be given up."""
        ended: list[tuple[int, TocsinError]] = []
        while self._alarms and (self._alarms[0][0] <= now or self._alarms[0][1] not in self._entries):
            _, ref = heapq.heappop(self._alarms)
            entry = self._entries.get(ref)
            if entry is not None and entry.overdue(now):
                self.remove(ref)
                ended.append((ref, entry.timeout()))
        return ended

    def deadline(self, *, flowing: bool) -> float | None:
        """When `expire`, or with `flowing` also `flush`, has something to do."""
        while self._alarms and self._alarms[0][1] not in self._entries:
            heapq.heappop(self._alarms)
        alarm = self._alarms[0][0] if self._alarms else None
        if not flowing or not self._waiting or not self._hold:
            return alarm
        return self._hold if alarm is None else min(alarm, self._hold)
