"""`tocsin.plain`: one channel, and messages that are nothing but their bytes.

A plain connection sees no ids, so it cannot know what it missed while it was away: after each return its user is told
by a `Gap`.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import websockets

from tocsin.driver import LOG, Driver, Target
from tocsin.effects import Changed, Deliver, Drop, Effect
from tocsin.errors import Closed, TocsinError, Unavailable
from tocsin.events import Change, Gap, State
from tocsin.line import GAP, Backoff, Line, Refusal

SUBPROTOCOL = "tocsin.plain"
PING_SECONDS = 25.0
"""Between pings of our own: a plain connection is not told of the service's."""


class Plain:
    """The state machine of a plain connection.

    Args:
        url: with its query; `since` and `history` are for the first connection alone.
    """

    def __init__(self, url: str, *, backoff: Backoff, chance: random.Random, renewable: bool) -> None:
        self._line = Line(backoff, chance, renewable=renewable)
        self._url = urlsplit(url)
        self._effects: list[Effect] = []
        self._missed: str | None = None
        self._begun = False
        query = dict(parse_qsl(self._url.query))
        self.channel = query.get("channel", "lobby")

    @property
    def url(self) -> str:
        """Where to connect to now."""
        if not self._begun:
            return urlunsplit(self._url)
        kept = [(name, value) for name, value in parse_qsl(self._url.query) if name not in {"since", "history"}]
        return urlunsplit(self._url._replace(query=urlencode(kept)))

    @property
    def state(self) -> State:
        """Where the connection stands."""
        return self._line.state

    @property
    def error(self) -> TocsinError | None:
        """Why it has stopped."""
        return self._line.error

    @property
    def deadline(self) -> float | None:
        """When to call `tick`, at the latest."""
        return self._line.return_at

    def effects(self) -> list[Effect]:
        """What is to be done."""
        effects, self._effects = self._effects, []
        return effects

    def start(self, now: float) -> None:
        """Connect for the first time."""
        self._effects += self._line.connect(now)

    def close(self) -> None:
        """Connect no more."""
        if self.state is not State.STOPPED:
            self._effects += [Drop(1000), *self._line.stop(None, "closed")]

    def connected(self, now: float) -> None:
        """The upgrade was accepted, and the channel is live."""
        self._begun = True
        self._effects += self._line.opened(now)
        if self._missed is not None:
            self._effects.append(Deliver(self.channel, Gap(self.channel, self._missed)))
            self._missed = None

    def receive(self, data: str | bytes, now: float) -> None:  # noqa: ARG002 - nothing here depends on it
        """A message has come."""
        self._effects.append(Deliver(self.channel, data))

    def closed(self, code: int, reason: str, now: float) -> None:
        """The WebSocket has ended. 4510 says why in its reason: `gap: expired; ...`."""
        told = reason.removeprefix("gap: ").partition(";")[0] if code == GAP else ""
        self._missed = told or self._missed or "reconnected"
        self._effects += self._line.closed(code, reason, now)

    def refused(self, refusal: Refusal, now: float) -> None:
        """The upgrade was refused."""
        self._effects += self._line.refused(refusal, now)

    def failed(self, reason: str, now: float) -> None:
        """No WebSocket came about."""
        self._effects += self._line.failed(reason, now)

    def stop(self, error: TocsinError) -> None:
        """Coming back would not help."""
        self._effects += [Drop(1000), *self._line.stop(error)]

    def renewed(self, token: str | None, now: float) -> None:
        """A plain connection cannot show another token, and asks for none."""

    def tick(self, now: float) -> None:
        """Time has passed."""
        if self._line.late(now):
            self._effects += [Drop(), *self._line.failed("the service did not answer in time", now)]
        self._effects += self._line.due(now)


class PlainClient:
    """One plain connection, kept up until `close`; an async iterator. Made by `connect(..., plain=True)`."""

    def __init__(
        self, machine: Plain, target: Target, *, queue: int, on_state: Callable[[Change], None] | None, clock: Any
    ) -> None:
        self._machine = machine
        self._driver = Driver(machine, target, self._handle, self._pace, clock)
        self._limit = queue
        self._on_state = on_state
        self._queue: deque[str | bytes | Gap] = deque()
        self._changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def state(self) -> State:
        """`connecting`, `open`, `waiting` (to come back) or `stopped` (for good)."""
        return self._machine.state

    @property
    def trouble(self) -> str:
        """Why there was no connection when there was none last."""
        return self._driver.trouble

    async def start(self) -> None:
        """Connect, and wait for the first `open`."""
        self._machine.start(self._driver.now())
        self._driver.act()
        try:
            await self._open()
        except BaseException:
            await self.close()
            raise

    async def send(self, data: str | bytes) -> None:
        """Publish text or bytes, verbatim, as soon as there is a connection. There is no acknowledgement: whether a
        message that was sent shortly before a connection was lost has been published is not known.

        Raises:
            Unavailable: the connection was lost while sending.
            TocsinError: it has stopped.
        """
        await self._open()
        assert self._driver.socket is not None
        try:
            await self._driver.socket.send(data)
        except websockets.ConnectionClosed:
            raise Unavailable("the connection was lost: whether it was published is not known") from None

    async def close(self) -> None:
        """Close the connection for good."""
        self._machine.close()
        self._driver.act()
        await self._driver.finish()

    def __aiter__(self) -> AsyncIterator[str | bytes | Gap]:
        """Messages in their order: text as str, binary as bytes, and a `Gap` after each return."""
        return self

    async def __anext__(self) -> str | bytes | Gap:
        """The next message.

        Raises:
            StopAsyncIteration: the client was closed.
            TocsinError: nothing more will come, for this reason.
        """
        while not self._queue:
            if self.state is State.STOPPED:
                if self._machine.error is not None:
                    raise self._machine.error
                raise StopAsyncIteration
            await self._change()
        item = self._queue.popleft()
        if len(self._queue) == self._limit // 2:
            self._wake()
        return item

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _open(self) -> None:
        while self.state is not State.OPEN:
            if self.state is State.STOPPED:
                raise self._machine.error or Closed("the client is closed")
            await self._change()

    async def _pace(self) -> None:
        """Back-pressure: nothing more is read while the queue is full."""
        while len(self._queue) >= self._limit and self.state is not State.STOPPED:
            await self._change()

    async def _change(self) -> None:
        """Wait until anything is otherwise."""
        await asyncio.shield(self._changed)

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.get_running_loop().create_future()
        changed.set_result(None)

    def _handle(self, effect: Effect) -> None:
        match effect:
            case Deliver(_, event):
                assert isinstance(event, str | bytes | Gap)
                self._queue.append(event)
                if len(self._queue) == 1:
                    self._wake()
            case Changed(change):
                self._wake()
                if self._on_state is not None:
                    try:
                        self._on_state(change)
                    except Exception:  # noqa: BLE001 - the connection must outlive it
                        LOG.exception("on_state failed")
            case _:
                raise AssertionError(effect)
