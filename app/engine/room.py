"""One room as its worker has it: who ought to be there, what the store must still learn, and who waits for that."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from app.brokers import Attendee
from app.core.errors import TocsinError, Unavailable


class Room:
    """One room with clients of this worker.

    Attributes:
        here: who ought to be a member, by client.
        due: clients of whom the store may think otherwise.
        waiting: those who want to know when they have joined, by client, in the order of their coming.
        haunted: buried incarnations of this worker, of which something may be left.
    """

    __slots__ = ("due", "haunted", "here", "name", "registered", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.here: dict[str, Attendee] = {}
        self.due: dict[str, None] = {}
        self.waiting: dict[str, list[tuple[Attendee, asyncio.Future[None]]]] | None = None
        self.haunted: tuple[str, ...] = ()
        self.registered = False

    def wait(self, attendee: Attendee) -> asyncio.Future[None]:
        """Want to know when this one has joined."""
        joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting = self.waiting or {}
        self.waiting.setdefault(attendee.client, []).append((attendee, joined))
        return joined

    def answer(self, attendee: Attendee, error: TocsinError | None = None) -> bool:
        """Tell who waits for this one, and for what it has replaced. Returns whether there was anybody."""
        waiting = self.waiting.get(attendee.client, []) if self.waiting else []
        own = next((at for at, (one, _) in enumerate(waiting, 1) if one is attendee), 0)
        self._tell(waiting[:own], error)
        del waiting[:own]
        if self.waiting and not waiting:
            self.waiting.pop(attendee.client, None)
        self.waiting = self.waiting or None
        return own > 0

    def dismiss(self, client: str) -> None:
        """It has left: whoever waits for it waits in vain."""
        waiting = self.waiting.pop(client, []) if self.waiting else []
        self.waiting = self.waiting or None
        self._tell(waiting, Unavailable("it has left meanwhile", retry_after=1.0))

    @staticmethod
    def _tell(waiting: Iterable[tuple[Attendee, asyncio.Future[None]]], error: TocsinError | None) -> None:
        for _, future in waiting:
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
