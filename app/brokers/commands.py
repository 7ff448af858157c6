"""Commands that somebody awaits, on one supervised connection, answered in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio.connection import AbstractConnection

from app.brokers.link import Link, Refusal
from app.brokers.scripts import Argument, load, pack
from app.core.errors import Conflict, TocsinError, Unavailable

_SENTENCES = {
    "NOTPRIMARY": "the store's server is a replica now",
    "READONLY": "the store's server is a replica now",
    "NOREPLID": "the store hides its replication id",
    "LOADING": "the store is loading its data",
    "MASTERDOWN": "the store has lost its primary",
    "OOM": "the store is out of memory",
    "MISCONF": "the store cannot write to its disk",
    "NOREPLICAS": "the store has too few replicas",
    "NOPERM": "the store does not permit this",
    "NOAUTH": "the store does not know us",
    "BUSY": "the store is busy with a script",
}
REPLICA = frozenset({"NOTPRIMARY", "READONLY"})
"""Codes that say: this is not the primary."""
_RETRY_AFTER = 1.0


def away(sentence: str = "the store is away") -> Unavailable:
    """What is answered while the store cannot be asked."""
    return Unavailable(sentence, retry_after=_RETRY_AFTER)


def translate(refusal: Refusal) -> TocsinError:
    """The error that our callers know for an error reply; names no host and repeats no text of the server."""
    if refusal.code == "CONFLICT":
        return Conflict("this key was used with another body")
    return away(_SENTENCES.get(refusal.code, "the store refused"))


class Commands:
    """A connection for commands that are awaited; each has a deadline.

    A caller that is cancelled leaves its place in the queue, so that its reply answers nobody else.

    Args:
        make: makes an unconnected connection.
        deadline: seconds for each answer; a missed one drops the connection.
        on_up: called when connected.
        on_replica: called when the server says that it is not the primary.
    """

    def __init__(
        self,
        make: Callable[[], AbstractConnection],
        deadline: float,
        *,
        on_up: Callable[[], None],
        on_replica: Callable[[], None],
    ) -> None:
        self._pending: deque[asyncio.Future[Any]] = deque()
        self._deadline = deadline
        self._on_replica = on_replica
        self.errors = 0
        self.link = Link("commands", make, deadline, on_up=on_up, on_burst=self._on_burst, on_down=self._on_down)

    async def call(self, *command: Argument) -> Any:
        """Send a command now and return its reply.

        Raises:
            Refusal: Redis answered with an error.
            Unavailable: the store is away or missed the deadline.
        """
        if not self.link.up:
            raise away()
        future = asyncio.get_running_loop().create_future()
        self._pending.append(future)
        self.link.send(pack(command))
        try:
            async with asyncio.timeout(self._deadline):
                return await future
        except TimeoutError:
            self.errors += 1
            self.link.drop("no answer in time")
            raise away("the store did not answer in time") from None

    async def run(self, *command: Argument) -> Any:
        """`call`, with errors that our callers know.

        Raises:
            Unavailable: the store is away, refuses, or missed the deadline.
        """
        try:
            return await self.call(*command)
        except Refusal as refusal:
            raise self._told(refusal) from None

    async def script(self, name: str, keys: Sequence[Argument], arguments: Sequence[Argument]) -> Any:
        """Run a script of ours.

        Raises:
            Unavailable: the store is away, refuses, or missed the deadline.
            Conflict: the script says so.
        """
        script = load(name)
        try:
            try:
                return await self.call(b"EVALSHA", script.digest, len(keys), *keys, *arguments)
            except Refusal as refusal:
                if refusal.code != "NOSCRIPT":
                    raise
            return await self.call(b"EVAL", script.body, len(keys), *keys, *arguments)
        except Refusal as refusal:
            raise self._told(refusal) from None

    def _told(self, refusal: Refusal) -> TocsinError:
        self.errors += 1
        if refusal.code in REPLICA:
            self._on_replica()
        return translate(refusal)

    def _on_burst(self, replies: list[Any]) -> None:
        for reply in replies:
            future = self._pending.popleft()
            if future.done():
                continue
            if isinstance(reply, Refusal):
                future.set_exception(reply)
            else:
                future.set_result(reply)

    def _on_down(self) -> None:
        pending, self._pending = self._pending, deque()
        for future in pending:
            if not future.done():
                future.set_exception(away("the connection to the store was lost"))
