"""When a publisher may be told: batches that the store has taken wait here until they are as safe as was asked for.

A message that waits is in the log and has been heard; only its publisher has not been told. It is asked for on a
connection of its own, since a wait holds up whatever comes behind it. One wait is on its way at a time; it covers all
batches that were answered before it was sent, and what is answered meanwhile is covered by the next.

Nobody may be told of a level that was reached on another server, or in another reign of the same one: the reign is
asked before each batch is written and again before each wait, and both must be one (decision 0012).
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from redis.asyncio.connection import AbstractConnection

from app.brokers import AckLevel, Receipt
from app.brokers.commands import away, translate
from app.brokers.link import Link, Refusal
from app.brokers.scripts import pack
from app.core.errors import TocsinError
from app.core.messages import Published

Outcome = Published | TocsinError
Told = tuple[Receipt, Outcome]
"""A publish and how it ended."""

ASK_REIGN = pack(("INFO", "replication"))
"""Its reply goes to `read_reign`."""
GRAIN = 0.01
"""Seconds: batches whose time is up within these are given up together."""
GRACE = 0.5
"""Seconds after the end of a wait until its answer must have come."""
_KEY_MS = 60_000
_ASK_FSYNC = pack(("CONFIG", "GET", "*append*"))
_REIGN = re.compile(rb"^role:master\r?$.*^master_replid:(\w+)", re.MULTILINE | re.DOTALL)

_log = structlog.get_logger("tocsin.broker")


def guard(callback: Callable[..., None], *arguments: Any) -> None:
    """Call what somebody gave us; a fault of theirs must not cost the others their answers."""
    try:
        callback(*arguments)
    except Exception:  # noqa: BLE001 - see above
        _log.exception("publish_callback_failed")


def read_reign(info: Any) -> bytes | None:
    """The replication id of a primary from its INFO; None for a replica or a refusal."""
    found = _REIGN.search(info) if isinstance(info, bytes) else None
    return None if found is None else found[1]


def fsyncs_always(config: Any) -> bool:
    """Whether a reply of Redis means that what it speaks of is on its disk, by CONFIG GET *append*."""
    if not isinstance(config, list):
        return False
    settings = dict(zip(config[::2], config[1::2], strict=False))
    wanted = {b"appendonly": b"yes", b"appendfsync": b"always", b"no-appendfsync-on-rewrite": b"no"}
    return all(settings.get(name) == value for name, value in wanted.items())


class _Batch:
    """Publishes of one batch with their outcomes. `reign` is None where no outcome depends on the level."""

    __slots__ = ("due", "reign", "told")

    def __init__(self, told: Sequence[Told], reign: bytes | None, due: float) -> None:
        self.told = told
        self.reign = reign
        self.due = due


class Acks:
    """The batches whose level is awaited, told in the order in which they came.

    Args:
        make: makes an unconnected connection.
        key: written with each wait; holds nothing.
        level: which one; not `written`.
        timeout: seconds in which it must be reached.
        deadline: seconds for connecting.
        on_replica: called when the server says that it is not the primary.
    """

    def __init__(
        self,
        make: Callable[[], AbstractConnection],
        key: str,
        level: AckLevel,
        *,
        timeout: float,
        deadline: float,
        on_replica: Callable[[], None],
    ) -> None:
        self.level = level
        self.held = 0
        self.errors = 0
        self.on_released: Callable[[], None] = lambda: None
        # A wait covers what came before the newest write of its own connection; without one it covers nothing, and says
        # that it covers all. Up to 7.0 a read would do; a PUBLISH does not where no replica is, on any version.
        self._head = ASK_REIGN + pack(("SET", key, "", "PX", _KEY_MS))
        self._timeout = timeout
        self._on_replica = on_replica
        self._batches: deque[_Batch] = deque()
        self._covered = 0
        self._replies: list[Any] = []
        self._by_config = False
        self._timer: asyncio.TimerHandle | None = None
        self.link = Link("acks", make, deadline, on_up=self._on_up, on_burst=self._on_burst, on_down=self._on_down)

    def take(self, told: Sequence[Told], reign: bytes | None) -> None:
        """Hold a batch that the store has answered until its publishers may be told.

        Args:
            told: its publishes and what the store answered.
            reign: of the server just before the batch; None where that is not known.
        """
        durable = any(isinstance(outcome, Published) and outcome.position is not None for _, outcome in told)
        if durable and not self.link.up:
            told, durable = self._unsure(told, "this cannot be asked now"), False
        due = asyncio.get_running_loop().time() + self._timeout
        self._batches.append(_Batch(told, reign or b"", due) if durable else _Batch(told, None, due))
        self.held += len(told)
        self._release_free()
        self._ask()

    def _ask(self) -> None:
        """Wait for all that is held, unless a wait is on its way."""
        if self._covered or not self._batches or not self.link.up:
            return
        loop = asyncio.get_running_loop()
        wait = max(GRAIN, self._batches[0].due - loop.time())
        milliseconds = round(wait * 1000)
        if self.level.replicas:
            question = pack(("WAIT", self.level.replicas, milliseconds))
        elif self._by_config:
            question = _ASK_FSYNC
        else:
            question = pack(("WAITAOF", 1, 0, milliseconds))
        self._covered = len(self._batches)
        self._timer = loop.call_later(wait + GRACE, self.link.drop, "no answer to a wait in time")
        self.link.send(self._head + question)

    def _on_up(self) -> None:
        self._by_config = False  # perhaps it is another server now

    def _on_burst(self, replies: list[Any]) -> None:
        self._replies += replies
        if len(self._replies) < 3:
            return
        self._stop_timer()
        (info, written, proof), self._replies = self._replies, []
        covered, self._covered = self._covered, 0
        if isinstance(proof, Refusal) and "unknown command" in str(proof) and not self.level.replicas:
            self._by_config = True  # before 7.2: there, only `appendfsync always` makes an answer mean a disk
            apart = False
        else:
            apart = self._judge(covered, read_reign(info), written if isinstance(written, Refusal) else proof)
        self._ask()
        self.on_released()
        if apart or (isinstance(info, bytes) and read_reign(info) is None):
            self._on_replica()

    def _judge(self, covered: int, reign: bytes | None, proof: Any) -> bool:
        """Tell what a wait covered, or give it up; what was not reached and still has time stays for the next wait.
        Returns whether the batches went to another primary than the wait: then one of the connections has to move.
        """
        reached, may_come = self._weigh(proof)
        lacking = translate(proof).message if isinstance(proof, Refusal) else "this was not reached in time"
        soon = asyncio.get_running_loop().time() + GRAIN
        apart = False
        for _ in range(covered):
            batch = self._batches[0]
            if batch.reign not in (None, reign):
                apart = apart or (batch.reign != b"" and reign is not None)
                self._release(self._unsure(batch.told, "the primary has changed"))
            elif reached or batch.reign is None:
                self._release(batch.told)
            elif may_come and batch.due > soon:
                return apart
            else:
                self._release(self._unsure(batch.told, lacking))
        self._release_free()
        return apart

    def _weigh(self, proof: Any) -> tuple[bool, bool]:
        """Whether the answer to a wait says that the level is reached, and whether a longer wait might reach it."""
        if self.level.replicas:
            return isinstance(proof, int) and proof >= self.level.replicas, isinstance(proof, int)
        if self._by_config:
            return fsyncs_always(proof), False
        return isinstance(proof, list) and proof[0] >= 1, isinstance(proof, list)

    def _unsure(self, told: Sequence[Told], why: str) -> list[Told]:
        """The outcomes where the level is not known: what was published is refused, though all can see it."""
        error = away(f"the message was published, but it is not known to be {self.level}: {why}")
        unsure: list[Told] = []
        for receipt, outcome in told:
            lacking = isinstance(outcome, Published) and outcome.position is not None
            self.errors += lacking
            unsure.append((receipt, error if lacking else outcome))
        return unsure

    def _release(self, told: Sequence[Told]) -> None:
        """Tell the oldest batch."""
        self._batches.popleft()
        self.held -= len(told)
        for receipt, outcome in told:
            guard(receipt, outcome)

    def _release_free(self) -> None:
        """Tell the oldest batches as long as they have nothing to wait for."""
        while self._batches and self._batches[0].reign is None:
            self._release(self._batches[0].told)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_down(self) -> None:
        self._stop_timer()
        self._covered, self._replies = 0, []
        while self._batches:
            batch = self._batches[0]
            self._release(
                batch.told if batch.reign is None else self._unsure(batch.told, "the connection was lost meanwhile")
            )
        self.on_released()
