"""Publishing over REST without I/O: which requests to make, when to repeat them and what came of each message.

`deliver` is a generator: it yields a `Request` to be answered with a `Reply` or a `Fault`, or a `Pause` to be slept,
and returns the outcomes. Whoever drives it, waiting or awaiting, decides nothing.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tocsin import errors, frames
from tocsin.draft import draft
from tocsin.errors import OF_THE_SENDER, TRANSIENT, PublishTimeout, TocsinError, Unauthorized
from tocsin.events import Ack
from tocsin.line import Backoff, read_refusal
from tocsin.outbox import KEY_SHARE

PATH = "/api/v1/messages"
BATCH = 1000
"""Messages of a request at most."""
BATCH_BYTES = 900_000
"""Bytes of a request at most, but for a single message: the service takes a mebibyte."""
ATTEMPT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Post:
    """A message to be published.

    Attributes:
        data: any JSON; bytes are published as binary.
        key: names it, 16 to 64 of `A-Z a-z 0-9 _ -`; without one it is made.
        ephemeral: not logged, not repeated.
    """

    channel: str
    data: Any
    key: str | None = None
    ephemeral: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """POST this to `PATH`.

    Attributes:
        seconds: to wait for the answer.
        renew: ask for a new token first.
    """

    body: bytes
    seconds: float
    renew: bool = False


@dataclass(frozen=True, slots=True)
class Pause:
    """Do nothing for so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer."""

    status: int
    body: bytes
    retry_after: str | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """There was no answer.

    Attributes:
        sent: whether the request may have reached the service.
    """

    reason: str
    sent: bool


@dataclass(frozen=True, slots=True)
class Terms:
    """How long to try.

    Attributes:
        timeout: seconds in all.
        key_seconds: how long the service remembers a key (`TOCSIN_KEY_SECONDS`): no key is repeated after 80 % of it.
        renewable: whether a new token can be asked for.
    """

    timeout: float
    clock: Callable[[], float]
    chance: random.Random
    key_seconds: float = 120.0
    backoff: Backoff = field(default_factory=Backoff)
    renewable: bool = False


@dataclass(slots=True)
class _Item:
    """A message and what came of it."""

    text: str
    repeatable: bool
    outcome: Ack | TocsinError | None = None
    sent: bool = False


Outcomes = list[Ack | TocsinError]
Steps = Generator[Request | Pause, Reply | Fault | None, Outcomes]


def deliver(posts: Iterable[Post], terms: Terms) -> Steps:
    """Publish messages in their order. Each has an outcome of its own.

    Raises:
        TypeError, ValueError: `data` is no JSON.
        BadChannel, BadRequest: a name, a key.
        TocsinError: the service refuses what comes first (a token that is not good, for instance), so that nothing can
            have been published. Later the same is the outcome of each message that it concerns.
    """
    items = [_item(post, terms.chance) for post in posts]
    until = terms.clock() + terms.timeout
    for batch in _batches(items):
        try:
            yield from _deliver(batch, until, terms)
        except TocsinError as error:
            if not any(item.sent or item.outcome is not None for item in items):
                raise
            of_all = isinstance(error, OF_THE_SENDER)
            for item in items if of_all else batch:
                if item.outcome is None:
                    item.outcome = _refusal(item, error)
            if of_all:
                break
    return [item.outcome for item in items if item.outcome is not None]


def _item(post: Post, chance: random.Random) -> _Item:
    made = draft(post.channel, post.data, post.key, chance, ephemeral=post.ephemeral)
    given = {"channel": made.channel} | ({"ephemeral": True} if made.key is None else {"key": made.key})
    return _Item(f"{json.dumps(given)[:-1]},{made.body}}}", repeatable=not post.ephemeral)


def _batches(items: Sequence[_Item]) -> Iterator[list[_Item]]:
    batch: list[_Item] = []
    size = 0
    for item in items:
        if batch and (len(batch) == BATCH or size + len(item.text.encode()) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += len(item.text.encode()) + 1
    if batch:
        yield batch


def _deliver(batch: list[_Item], until: float, terms: Terms) -> Generator[Request | Pause, Reply | Fault | None, None]:
    """One request, repeated with what is left of it."""
    until = min(until, terms.clock() + KEY_SHARE * terms.key_seconds)
    failures = 0
    reason = "too slow"
    renew, renewed = False, False
    while left := [item for item in batch if item.outcome is None]:
        seconds = until - terms.clock()
        if seconds <= 0:
            for item in left:
                item.outcome = PublishTimeout(f"not acknowledged in time: {reason}", sent=item.sent)
            return
        body = f'{{"messages":[{",".join(item.text for item in left)}]}}'.encode()
        answer = yield Request(body, min(seconds, ATTEMPT_SECONDS), renew)
        renew = False
        try:
            wait, reason = _read(answer, left)
        except Unauthorized:
            if renewed or not terms.renewable:
                raise
            renew = renewed = True
            continue
        if any(item.outcome is None for item in left):
            wait += terms.backoff.delay(failures, terms.chance)
            failures += 1
            yield Pause(max(0.0, min(wait, until - terms.clock())))


def _read(answer: Reply | Fault | None, items: list[_Item]) -> tuple[float, str]:
    """Settle what an answer settles. Returns the seconds after which the service wants to be asked again, and why."""
    assert answer is not None
    if isinstance(answer, Fault):
        for item in items:
            item.sent = item.sent or answer.sent
            if not item.repeatable:
                item.outcome = PublishTimeout(f"no answer: {answer.reason}", sent=answer.sent)
        return 0.0, answer.reason
    try:
        body: Any = json.loads(answer.body or b"null")
    except ValueError:
        body = None
    if answer.status != 200 or not isinstance(body, dict):
        error = read_refusal(answer.status, body, answer.retry_after).error
        if answer.status not in {408, 425, 429} and answer.status < 500:
            raise error
        return _transient(error, items), error.message
    wait, reason = 0.0, ""
    for item, result in zip(items, body["results"], strict=True):
        if "error" in result:
            error = errors.from_wire(result["error"])
            if error.code in TRANSIENT:
                wait, reason = max(wait, _transient(error, [item])), error.message
            else:
                item.outcome = _refusal(item, error)
        else:
            item.outcome = frames.ack(result)
    return wait, reason


def _refusal(item: _Item, error: TocsinError) -> TocsinError:
    return errors.in_doubt(error) if item.sent and isinstance(error, OF_THE_SENDER) else error


def _transient(error: TocsinError, items: list[_Item]) -> float:
    for item in items:
        item.sent = item.sent or error.code != "rate_limited"
        if not item.repeatable:
            item.outcome = error
    return error.retry_after or 0.0
