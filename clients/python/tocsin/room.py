"""A channel in the hands of its user: a bounded queue of events, the position, who is there, what can be asked."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tocsin.errors import TocsinError
from tocsin.events import Ack, Event, Gap, Member, Members, Message, Page

if TYPE_CHECKING:
    from tocsin.client import Client


class Room:
    """One subscription: made by `Client.subscribe`, iterated by one task at a time.

    Attributes:
        channel: its name.
    """

    def __init__(self, client: Client, channel: str, limit: int, since: str | None) -> None:
        self.channel = channel
        self._client = client
        self._limit = limit
        self._position = since
        self._queue: deque[Event] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._held = 0.0
        self._held_until = 0.0
        self._behind = False
        self._ended = False
        self._error: TocsinError | None = None

    # What is known

    @property
    def position(self) -> str | None:
        """Where the last event stood that the iteration has handed out, or where it begins: give it to `subscribe` as
        `since`, in whatever process, to go on after it.
        """
        return self._position

    @property
    def members(self) -> tuple[Member, ...]:
        """Who is here, as far as it was told: up to 100 at first, and who came since. Empty without `presence`."""
        subscription = self._client.session.subscription(self.channel)
        return tuple(subscription.members.values()) if subscription is not None else ()

    @property
    def count(self) -> int | None:
        """How many are here; None without `presence`."""
        subscription = self._client.session.subscription(self.channel)
        return None if subscription is None else subscription.count

    @property
    def behind(self) -> bool:
        """Whether events are not handed out as fast as they come: the channel is left until half of the queue is
        handed out, and then read from the log.
        """
        return self._behind

    # What can be done

    async def publish(
        self,
        data: Any,
        *,
        key: str | None = None,
        ephemeral: bool = False,
        timeout: float | None = None,
        wait: bool = True,
    ) -> Ack:
        """`Client.publish` into this channel."""
        return await self._client.publish(self.channel, data, key=key, ephemeral=ephemeral, timeout=timeout, wait=wait)

    async def history(
        self,
        *,
        since: str | None = None,
        before: str | None = None,
        limit: int = 100,
        timeout: float | None = None,
    ) -> Page:
        """`Client.history` of this channel."""
        return await self._client.history(self.channel, since=since, before=before, limit=limit, timeout=timeout)

    async def presence(self, *, limit: int = 100, cursor: str | None = None, timeout: float | None = None) -> Members:
        """`Client.presence` of this channel."""
        return await self._client.presence(self.channel, limit=limit, cursor=cursor, timeout=timeout)

    def unsubscribe(self) -> None:
        """Hear the channel no more. The iteration ends; what was not handed out is thrown away."""
        if not self._ended:
            self._queue.clear()
            self._client.leave(self)

    # Iteration

    def __aiter__(self) -> AsyncIterator[Event]:
        """Events in their order, until `unsubscribe` or `close`."""
        return self

    async def __anext__(self) -> Event:
        """The next event.

        Raises:
            StopAsyncIteration: left, or the client was closed.
            TocsinError: nothing more will come, for this reason.
        """
        while not self._queue:
            if self._ended:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            if self._waiter is not None:
                raise RuntimeError("one task at a time can iterate over a room")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        event = self._queue.popleft()
        if (self._behind or self._drained is not None) and len(self._queue) <= self._limit // 2:
            self._make_room()
        if isinstance(event, Message):
            if event.id is not None:
                self._position = event.id
        elif isinstance(event, Gap):
            self._position = event.position
        return event

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unsubscribe()

    # For the client

    @property
    def full(self) -> bool:
        """Whether the queue has no room, and the channel was not left for that."""
        return len(self._queue) >= self._limit and not self._behind and not self._ended

    def put(self, event: Event) -> None:
        """Queue an event."""
        self._queue.append(event)
        self._wake()

    @property
    def held(self) -> float:
        """Seconds for which the connection was not read because of this room, less those for which it was since."""
        return max(0.0, self._held - (asyncio.get_running_loop().time() - self._held_until))

    async def hold(self, seconds: float) -> None:
        """Wait so long, or until half of the queue is handed out."""
        loop = asyncio.get_running_loop()
        held, began = self.held, loop.time()
        self._drained = loop.create_future()
        await asyncio.wait([self._drained], timeout=seconds)
        self._drained = None
        self._held_until = loop.time()
        self._held = held + self._held_until - began

    def opened(self, position: str | None) -> None:
        """The channel is live for the first time."""
        if self._position is None:
            self._position = position

    def fall_behind(self) -> None:
        """The channel was left, for nobody takes its events."""
        self._behind = True

    def end(self, error: TocsinError | None) -> None:
        """Nothing more comes."""
        self._ended = True
        self._error = error
        self._make_room()
        self._wake()

    def _make_room(self) -> None:
        """Half of the queue has been handed out, or it does not matter any more."""
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self._behind and not self._ended:
            self._behind = False
            self._client.catch_up(self)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Subscribing:
    """What `Client.subscribe` returns: await it, or enter it with `async with`, for the `Room`, which is live then."""

    def __init__(self, enter: Callable[[], Coroutine[Any, Any, Room]]) -> None:
        self._enter = enter
        self._room: Room | None = None

    def __await__(self) -> Generator[Any, None, Room]:
        return self._enter().__await__()

    async def __aenter__(self) -> Room:
        self._room = await self._enter()
        return self._room

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._room is not None
        self._room.unsubscribe()
