"""The client of `tocsin.v1` on asyncio: `connect`, and what it gives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from tocsin.driver import LOG, Driver, Target
from tocsin.effects import Changed, Deliver, Effect, Ended, Opened, Settle
from tocsin.errors import Closed, OutboxFull, PublishTimeout, TocsinError
from tocsin.events import Ack, Attendance, Change, Members, Page, State
from tocsin.room import Room, Subscribing
from tocsin.session import Session

PATIENCE = 1.0
"""Seconds for which a room may hold up the whole connection, beyond those for which it lets it flow, before its channel
is left instead: a reader that moves, but too slowly, must not cost the other rooms more than one that stands still.
"""
GLANCE = 0.05
"""Seconds between two looks at a full queue."""

Outcome = TypeVar("Outcome", Ack, Page, Members)


class Client:
    """One user's connection to a service, kept up until `close`. Made by `connect`; not for several threads.

    Attributes:
        session: the state machine behind it.
    """

    def __init__(
        self, session: Session, target: Target, *, queue: int, on_state: Callable[[Change], None] | None, clock: Any
    ) -> None:
        self.session = session
        self._driver = Driver(session, target, self._handle, self._pace, clock)
        self._queue = queue
        self._on_state = on_state
        self._rooms: dict[str, Room] = {}
        self._opening: dict[str, asyncio.Future[None]] = {}
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turn = asyncio.Lock()
        self._in_line = 0
        self._vacancy: asyncio.Future[None] | None = None
        self._full: Room | None = None

    # What is known

    @property
    def state(self) -> State:
        """`connecting`, `open`, `waiting` (to come back) or `stopped` (for good)."""
        return self.session.state

    @property
    def id(self) -> str | None:
        """How the service names the present connection: `Message.sender` of what it publishes."""
        return self.session.welcome.client if self.session.welcome else None

    @property
    def user(self) -> str | None:
        """Whose token it showed."""
        return self.session.welcome.user if self.session.welcome else None

    @property
    def worker(self) -> str | None:
        """The worker that it is, or was last, connected to."""
        return self.session.welcome.worker if self.session.welcome else None

    # What can be done

    def subscribe(
        self,
        channel: str,
        *,
        since: str | None = None,
        history: int = 0,
        presence: Attendance = None,
        queue: int | None = None,
    ) -> Subscribing:
        """Hear a channel: `async with client.subscribe(...) as room`, or `room = await client.subscribe(...)`.

        Args:
            channel: 1 to 128 of `A-Z a-z 0-9 _ . : @ -`.
            since: begin after this position; what cannot be had is told by a `Gap`.
            history: begin with so many of the newest messages (at most 1,000), where there is no `since`.
            presence: `"watch"`, or `{"info": {...}}` to be a member too (at most 1 KiB).
            queue: events that may wait to be iterated over; without it that of `connect`.

        Raises:
            ValueError: a queue for less than 1; on entering, `since` or `presence` that is no JSON (also TypeError).
            AlreadySubscribed: on entering: a client hears a channel once.
            TocsinError: on entering, if the service refuses it.
        """
        limit = self._queue if queue is None else queue
        if limit < 1:
            raise ValueError("queue holds at least 1")
        return Subscribing(lambda: self._enter(channel, since, history, presence, limit))

    async def publish(
        self,
        channel: str,
        data: Any,
        *,
        key: str | None = None,
        ephemeral: bool = False,
        timeout: float | None = None,
        wait: bool = True,
    ) -> Ack:
        """Publish exactly once. Returns when the message is in the log.

        Without a connection the message waits in the outbox; after a lost one it is sent again, with the same key.
        Messages are sent in the order of the calls. One that has to be repeated may be overtaken by others that were
        already on their way: await each where the order matters.

        Args:
            channel: 1 to 128 of `A-Z a-z 0-9 _ . : @ -`.
            data: any JSON; bytes are published as binary.
            key: names this message, 16 to 64 of `A-Z a-z 0-9 _ -`; without one it is made.
            ephemeral: not logged, not repeated, outside the promise.
            timeout: seconds in all, with the wait for room; None: until there is an answer.
            wait: whether to wait for room in a full outbox.

        Raises:
            PublishTimeout: given up, after `timeout` or because the key is too old to be repeated.
            OutboxFull: no room, and not to wait for it.
            TocsinError: refused.
            TypeError, ValueError: `data` is no JSON.
        """
        message = self.session.draft(channel, data, key=key, ephemeral=ephemeral)
        if self.session.full or self._in_line:
            if not wait:
                raise OutboxFull("too much waits for its answer already")
            timeout = await self._stand_in_line(timeout)
        ref = self.session.publish(message, self._driver.now(), timeout=timeout)
        return await self._answer(ref, Ack)

    async def history(
        self,
        channel: str,
        *,
        since: str | None = None,
        before: str | None = None,
        limit: int = 100,
        timeout: float | None = None,
    ) -> Page:
        """Read the log: with `since` the first messages after it, else the newest ones; ascending.

        Args:
            channel: whose log.
            since: only what comes after this position.
            before: only what comes before this position.
            limit: 1 to 1,000; a page also ends at a mebibyte.
            timeout: seconds; None: until there is an answer, over whatever connection.

        Raises:
            Gone: the log does not reach back to `since`; `position` of the error says from where to go on.
            Timeout: no answer in time.
            TocsinError: refused.
        """
        now = self._driver.now()
        ref = self.session.ask_history(channel, now, since=since, before=before, limit=limit, timeout=timeout)
        return await self._answer(ref, Page)

    async def presence(
        self, channel: str, *, limit: int = 100, cursor: str | None = None, timeout: float | None = None
    ) -> Members:
        """Read who is in a channel, a page at a time: hand `cursor` back until it is None.

        Raises:
            Timeout: no answer in time (seconds).
            TocsinError: refused.
        """
        ref = self.session.ask_members(channel, self._driver.now(), limit=limit, cursor=cursor, timeout=timeout)
        return await self._answer(ref, Members)

    def cut(self) -> None:
        """Lose the present connection, as a bad network would; the client comes back by itself. To see how your program
        takes it, and for load tests.
        """
        self._driver.cut()

    async def close(self) -> None:
        """Close the connection for good. Rooms end; publishes without an answer raise `Closed`."""
        self.session.close()
        self._driver.act()
        await self._driver.finish()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # For rooms

    def leave(self, room: Room) -> None:
        """Unsubscribe."""
        if self._rooms.get(room.channel) is room:
            self.session.unsubscribe(room.channel)
            self._driver.act()

    def catch_up(self, room: Room) -> None:
        """A room that was behind has room again."""
        self.session.catch_up(room.channel)
        self._driver.act()

    # Parts

    async def _enter(self, channel: str, since: str | None, history: int, presence: Attendance, limit: int) -> Room:
        """Subscribe, and wait until the channel is live."""
        self.session.subscribe(channel, since=since, history=history, presence=presence)
        room = self._rooms[channel] = Room(self, channel, limit, since)
        opened = self._opening[channel] = asyncio.get_running_loop().create_future()
        self._driver.act()
        try:
            await opened
        except asyncio.CancelledError:
            self.leave(room)
            raise
        return room

    @property
    def trouble(self) -> str:
        """Why there was no connection when there was none last."""
        return self._driver.trouble

    async def start(self) -> None:
        """Connect, and wait for the first `open`."""
        self.session.start(self._driver.now())
        self._driver.act()
        try:
            await self._first
        except BaseException:
            await self.close()
            raise

    async def _answer(self, ref: int, kind: type[Outcome]) -> Outcome:
        answer = self._answers[ref] = asyncio.get_running_loop().create_future()
        self._driver.act()
        try:
            outcome = await answer
        finally:
            self._answers.pop(ref, None)
            self.session.withdraw(ref)
            self._announce_vacancy()
        assert isinstance(outcome, kind), "the answer of another command"
        return outcome

    async def _stand_in_line(self, timeout: float | None) -> float | None:
        """Wait for room in the outbox, in the order of the calls: who has the turn watches the outbox, and whatever
        becomes of that one, the next one looks for itself. Returns what is left of the time.
        """
        began = self._driver.now()
        self._in_line += 1
        try:
            async with asyncio.timeout(timeout), self._turn:
                while self.session.full:
                    self._vacancy = asyncio.get_running_loop().create_future()
                    await self._vacancy
        except TimeoutError:
            raise PublishTimeout("no room in the outbox in time: it was not published", sent=False) from None
        finally:
            self._in_line -= 1
        return None if timeout is None else max(0.0, timeout - (self._driver.now() - began))

    def _announce_vacancy(self) -> None:
        if self._vacancy is not None and not self._vacancy.done() and not self.session.full:
            self._vacancy.set_result(None)

    async def _pace(self) -> None:
        """Back-pressure: read on when the room that is full has room. If that takes long, or an answer is awaited,
        which would come behind its messages, the channel is left for the log to keep them.
        """
        room = self._full
        if room is None:
            return
        self._full = None
        glanced = False
        while room.full:
            if room.held >= PATIENCE or (glanced and self.session.expecting):
                room.fall_behind()
                self.session.lag(room.channel)
                self._driver.act()
                return
            await room.hold(GLANCE)
            glanced = True

    def _handle(self, effect: Effect) -> None:
        match effect:
            case Deliver(channel, event):
                room = self._rooms[channel]
                assert not isinstance(event, str | bytes)
                room.put(event)
                if room.full:
                    self._full = room
            case Settle(ref, outcome):
                answer = self._answers.get(ref)
                if answer is not None and not answer.done():
                    if isinstance(outcome, TocsinError):
                        answer.set_exception(outcome)
                    else:
                        answer.set_result(outcome)
            case Opened(channel):
                subscription = self.session.subscription(channel)
                self._rooms[channel].opened(subscription.position if subscription else None)
                opened = self._opening.pop(channel)
                if not opened.done():
                    opened.set_result(None)
            case Ended(channel, error):
                room_left = self._rooms.pop(channel, None)
                if room_left is not None:
                    room_left.end(error)
                opening = self._opening.pop(channel, None)
                if opening is not None and not opening.done():
                    opening.set_exception(error or Closed("left before the channel was open"))
            case Changed(change):
                self._on_change(change)
            case _:
                raise AssertionError(effect)

    def _on_change(self, change: Change) -> None:
        if not self._first.done():
            if change.state is State.OPEN:
                self._first.set_result(None)
            elif change.state is State.STOPPED:
                self._first.set_exception(change.error or Closed("the client is closed"))
        if change.state is State.STOPPED:
            self._announce_vacancy()
        if self._on_state is not None:
            try:
                self._on_state(change)
            except Exception:  # noqa: BLE001 - the connection must outlive it
                LOG.exception("on_state failed")
