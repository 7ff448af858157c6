"""Publishes: joined into batches, one write and one answer for many, on a connection of their own.

Order is the point. One batch is in flight at a time. Its first call brings the script's body, so that a server that has
lost its scripts cannot run a later message before an earlier one. Nothing is ever repeated that may have been done.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from redis.asyncio.connection import AbstractConnection

from app.brokers import Receipt
from app.brokers.acks import ASK_REIGN, Acks, Told, guard, read_reign
from app.brokers.commands import REPLICA, away, translate
from app.brokers.envelope import read_id
from app.brokers.link import Link, Refusal
from app.brokers.scripts import Opener
from app.core.errors import TocsinError
from app.core.messages import Published


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much the writer takes on.

    Attributes:
        queue: publishes waiting at most.
        queue_bytes: bytes waiting at most.
        batch: publishes in one batch at most.
        batch_bytes: bytes after which a batch is closed.
        patience: seconds that a publish may wait before it is given up.
    """

    queue: int = 10_000
    queue_bytes: int = 16 * 1_048_576
    batch: int = 512
    batch_bytes: int = 1_048_576
    patience: float = 30.0


class _Call:
    """One publish on its way. `packed` is all but the opener and the nonce, which is new in every attempt."""

    __slots__ = ("opener", "packed", "receipt", "since")

    def __init__(self, opener: Opener, packed: bytes, receipt: Receipt, since: float) -> None:
        self.opener = opener
        self.packed = packed
        self.receipt = receipt
        self.since = since


class Writer:
    """The queue of publishes and the connection that carries them.

    Args:
        make: makes an unconnected connection.
        deadline: seconds for the answer to a batch; a missed one drops the connection.
        nonce: a packed nonce, another one with each call.
        on_replica: called when the server says that it is not the primary.
        acks: hold the outcomes until they are safe; None at the level `written`.
    """

    def __init__(
        self,
        make: Callable[[], AbstractConnection],
        deadline: float,
        nonce: Callable[[], bytes],
        on_replica: Callable[[], None],
        *,
        bounds: Bounds,
        acks: Acks | None = None,
    ) -> None:
        self.congested = False
        self.batches = 0
        self.published = 0
        self.errors = 0
        self._deadline = deadline
        self._nonce = nonce
        self._on_replica = on_replica
        self.on_settled: Callable[[], None] = lambda: None
        self._bounds = bounds
        self._acks = acks
        if acks is not None:
            acks.on_released = self._flush
        self._queue: deque[_Call] = deque()
        self._queued_bytes = 0
        self._flight: list[_Call] = []
        self._replies: list[Any] = []
        self._probe: tuple[bytes, Receipt] | None = None
        self._probing: Receipt | None = None
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: list[Callable[[], None]] = []
        self.link = Link("writer", make, deadline, on_up=lambda: None, on_burst=self._on_burst, on_down=self._on_down)

    @property
    def full(self) -> bool:
        """Whether the next publish would be refused."""
        return len(self._queue) >= self._bounds.queue or self._queued_bytes >= self._bounds.queue_bytes

    @property
    def busy(self) -> bool:
        """Whether a batch is in flight or about to be sent."""
        return bool(self._flight or (self._scheduled and self._queue))

    def when_uncongested(self, callback: Callable[[], None]) -> None:
        """Call back once, when the queue has fallen below a quarter of its bounds (at once if it is short)."""
        if self.congested:
            self._waiting.append(callback)
        else:
            callback()

    def publish(self, opener: Opener, packed: bytes, receipt: Receipt) -> None:
        """Take a call; `receipt` is told in a later turn of the loop."""
        loop = asyncio.get_running_loop()
        if not self.link.up or (self._acks is not None and not self._acks.link.up):
            loop.call_soon(guard, receipt, away("the store is away: the message was not sent"))
            return
        if self.full:
            loop.call_soon(guard, receipt, away("too many messages are waiting for the store"))
            return
        self._queue.append(_Call(opener, packed, receipt, loop.time()))
        self._queued_bytes += len(packed)
        if not self.congested and (
            len(self._queue) * 2 >= self._bounds.queue or self._queued_bytes * 2 >= self._bounds.queue_bytes
        ):
            self.congested = True
        if not self._flight and not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._flush)

    def probe(self, command: bytes, receipt: Receipt) -> None:
        """Send a packed command, which is nobody's message, with the next batch or by itself; `receipt` is told when it
        was done. One that still waits gives way.
        """
        loop = asyncio.get_running_loop()
        if not self.link.up:
            loop.call_soon(guard, receipt, away())
            return
        self._probe = (command, receipt)
        if not self._flight and not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Send what has gathered, unless a batch is in flight."""
        self._scheduled = False
        if self._flight or self._probing is not None or not self.link.up:
            return
        parts = self._gather() if self._queue else []
        if self._probe is not None:
            command, self._probing = self._probe
            self._probe = None
            parts.insert(0, command)
        if parts:
            self._timer = asyncio.get_running_loop().call_later(
                self._deadline, self.link.drop, "no answer to a batch in time"
            )
            self.link.send(b"".join(parts))

    def _gather(self) -> list[bytes]:
        """A batch, unless as many as may wait are waiting for their level."""
        if self._acks is not None:
            if not self._acks.link.up:  # nobody could be told: better not sent than unknown
                self._refuse_queue()
                return []
            if self._acks.held >= self._bounds.queue:
                return []
        loop = asyncio.get_running_loop()
        bounds, queue, flight = self._bounds, self._queue, self._flight
        oldest = loop.time() - bounds.patience
        brought: set[str] = set()
        parts: list[bytes] = [] if self._acks is None else [ASK_REIGN]
        size = 0
        stale: list[_Call] = []
        while queue and len(flight) < bounds.batch and size < bounds.batch_bytes:
            call = queue.popleft()
            self._queued_bytes -= len(call.packed)
            if call.since < oldest:
                stale.append(call)
                continue
            opener = call.opener
            if opener.name in brought:
                parts += (opener.by_digest, call.packed, self._nonce())
            else:
                brought.add(opener.name)
                parts += (opener.by_body, call.packed, self._nonce())
            size += len(call.packed)
            flight.append(call)
        if flight:
            self.batches += 1
        else:
            parts = []
        for call in stale:
            self.errors += 1
            guard(call.receipt, away("the message waited too long: it was not sent"))
        self._relieve()
        return parts

    def _refuse_queue(self) -> None:
        queue, self._queue, self._queued_bytes = self._queue, deque(), 0
        self.errors += len(queue)
        unsent = away("the store is away: the message was not sent")
        self._tell([(call.receipt, unsent) for call in queue], None)
        self._relieve()

    def _tell(self, told: list[Told], reign: bytes | None) -> None:
        """Tell how publishes ended, behind what still waits for its level."""
        if self._acks is not None:
            self._acks.take(told, reign)
            return
        for receipt, outcome in told:
            guard(receipt, outcome)

    def _relieve(self) -> None:
        bounds = self._bounds
        if self.congested and len(self._queue) * 4 < bounds.queue and self._queued_bytes * 4 < bounds.queue_bytes:
            self.congested = False
            waiting, self._waiting = self._waiting, []
            for callback in waiting:
                guard(callback)

    def _on_burst(self, replies: list[Any]) -> None:
        self._replies += replies
        with_reign = self._acks is not None and bool(self._flight)
        probing = self._probing
        if len(self._replies) < len(self._flight) + with_reign + (probing is not None):
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        flight, answers = self._flight, self._replies
        self._flight, self._replies, self._probing = [], [], None
        if probing is not None:
            answer = answers.pop(0)
            guard(probing, translate(answer) if isinstance(answer, Refusal) else Published(None))
            if not flight:
                self._flush()
                return
        reign = read_reign(answers.pop(0)) if with_reign else None
        told: list[Told] = []
        refused = any(isinstance(answer, Refusal) and answer.code == "NOSCRIPT" for answer in answers)
        if refused:
            flight, answers = self._put_back(flight, answers)
        self._flush()  # Redis works on the next batch while we tell of this one
        replica = False
        refusals = 0
        for call, answer in zip(flight, answers, strict=True):
            if type(answer) is bytes:
                outcome: Published | TocsinError = Published(read_id(answer))
            elif type(answer) is list:
                outcome = Published(read_id(answer[0]), duplicate=True)
            elif isinstance(answer, Refusal):
                refusals += 1
                replica = replica or answer.code in REPLICA
                outcome = translate(answer)
            else:
                outcome = Published(None)
            told.append((call.receipt, outcome))
        self._tell(told, reign)
        self.errors += refusals
        self.published += len(answers) - refusals
        guard(self.on_settled)
        if replica:
            self._on_replica()

    def _put_back(self, flight: list[_Call], answers: list[Any]) -> tuple[list[_Call], list[Any]]:
        """The scripts were flushed inside the batch: what did not run goes to the head of the queue, before newer ones.

        If another worker brought the script back meanwhile, later calls of this batch did run; what stands before them
        can no longer be sent without breaking the order, and is refused.
        """
        end = len(answers)
        while end and isinstance(answers[end - 1], Refusal) and answers[end - 1].code == "NOSCRIPT":
            end -= 1
        again = flight[end:]
        self._queue.extendleft(reversed(again))
        self._queued_bytes += sum(len(call.packed) for call in again)
        return flight[:end], answers[:end]

    def _on_down(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        flight, self._flight, self._replies = self._flight, [], []
        probes = [self._probing, *(() if self._probe is None else (self._probe[1],))]
        self._probing = self._probe = None
        for receipt in probes:
            if receipt is not None:
                guard(receipt, away())
        self.errors += len(flight)
        unknown = away("the store did not answer: it is unknown whether the message was taken")
        self._tell([(call.receipt, unknown) for call in flight], None)
        self._refuse_queue()
        guard(self.on_settled)
