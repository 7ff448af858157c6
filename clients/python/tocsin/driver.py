"""Drives a state machine on asyncio: opens WebSockets, carries frames and time to it, performs what it wants.

Nothing is decided here. Native and plain connections have the same driver.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, assert_never

import websockets
from websockets.asyncio.client import ClientConnection
from websockets.typing import Subprotocol

from tocsin.effects import Changed, Connect, Deliver, Drop, Effect, Ended, Opened, Renew, Send, Settle
from tocsin.errors import Stopped, TocsinError, Unauthorized
from tocsin.events import State
from tocsin.line import Refusal, read_refusal

LOG = logging.getLogger("tocsin")
FAREWELL = 1.0
"""Seconds that a close may take."""
AHEAD = 64
"""Frames that are taken off the socket at most before their turn comes."""

Token = str | Callable[[], str | Awaitable[str]]


class Machine(Protocol):
    """What can be driven: `Session`, `Plain`. Each call may lead to effects."""

    @property
    def deadline(self) -> float | None:
        """When to call `tick`, at the latest."""

    def effects(self) -> list[Effect]:
        """What is to be done."""

    def receive(self, data: str | bytes, now: float) -> None:
        """A message has come."""

    def closed(self, code: int, reason: str, now: float) -> None:
        """The WebSocket has ended."""

    def refused(self, refusal: Refusal, now: float) -> None:
        """The upgrade was refused."""

    def failed(self, reason: str, now: float) -> None:
        """No WebSocket came about."""

    def connected(self, now: float) -> None:
        """The upgrade was accepted."""

    def stop(self, error: TocsinError) -> None:
        """Coming back would not help."""

    def renewed(self, token: str | None, now: float) -> None:
        """A new token is here, or there is none."""

    def tick(self, now: float) -> None:
        """Time has passed."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to connect to, and as whom.

    Attributes:
        url: `ws://` or `wss://`; asked anew for each connection.
        subprotocol: that the service must choose.
        token: or what makes one, before each connection.
        api_key: sent as `X-API-Key`.
        headers: sent besides.
        tls: for `wss://`; None is the machine's default.
        ping: seconds between pings of our own; None where the service's signs of life are watched.
    """

    url: Callable[[], str]
    subprotocol: str
    token: Token | None = None
    api_key: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    tls: ssl.SSLContext | None = None
    ping: float | None = None

    async def make_token(self) -> str | None:
        """The token to show now."""
        made = self.token() if callable(self.token) else self.token
        return await made if inspect.isawaitable(made) else made

    async def connect(self, token: str | None) -> ClientConnection:
        """One WebSocket."""
        headers = dict(self.headers)
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        if self.api_key is not None:
            headers["X-API-Key"] = self.api_key
        tls: dict[str, Any] = {} if self.tls is None else {"ssl": self.tls}
        return await websockets.connect(
            self.url(),
            subprotocols=[Subprotocol(self.subprotocol)],
            additional_headers=headers,
            compression=None,  # the service compresses nothing
            max_size=None,  # a page of history may have a mebibyte and more
            max_queue=AHEAD,
            open_timeout=None,  # the machine watches
            ping_interval=self.ping,
            ping_timeout=self.ping,
            close_timeout=FAREWELL,
            **tls,
        )


class Driver:
    """Runs one machine.

    Args:
        machine: what decides.
        target: where to connect to.
        handle: takes the effects that are for the user.
        pace: awaited after each message: it returns when more may be read.
        clock: seconds that only go forward.

    Attributes:
        trouble: why there was no connection when there was none last.
    """

    def __init__(
        self,
        machine: Machine,
        target: Target,
        handle: Callable[[Effect], None],
        pace: Callable[[], Awaitable[None]] | None,
        clock: Callable[[], float],
    ) -> None:
        self._machine = machine
        self._target = target
        self._handle = handle
        self._pace = pace
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._attempt: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._socket: ClientConnection | None = None
        self._outgoing: deque[str | bytes] = deque()
        self._more = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._opened = False
        self.trouble = "there was no answer"

    @property
    def socket(self) -> ClientConnection | None:
        """The present WebSocket."""
        return self._socket

    def now(self) -> float:
        """The time."""
        return self._clock()

    def act(self) -> None:
        """Perform what the machine wants. To be called after each call of it."""
        for effect in self._machine.effects():
            self._perform(effect)
        deadline = self._machine.deadline
        if deadline is None:
            self._disarm()
        elif self._timer is None or deadline < self._timer_at:
            self._disarm()
            self._timer_at = deadline
            self._timer = self._loop.call_later(max(0.0, deadline - self._clock()), self._ring)

    def cut(self) -> None:
        """End the present WebSocket without a word: both sides find a broken connection."""
        if self._socket is not None:
            self._socket.transport.abort()

    async def finish(self) -> None:
        """Wait until everything that was started has come to its end."""
        self._disarm()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _ring(self) -> None:
        self._timer = None
        self._machine.tick(self._clock())
        self.act()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Deliver() | Settle() | Opened() | Ended():
                self._handle(effect)
            case Changed(change):
                if change.state is State.WAITING:
                    self.trouble = change.reason
                    LOG.warning("no connection: %s; next try in %.1f s", change.reason, change.delay or 0.0)
                self._opened = self._opened or change.state is State.OPEN
                self._handle(effect)
            case Send(data):
                self._outgoing.append(data)
                self._more.set()
            case Connect():
                self._outgoing.clear()
                self._stop_renewing()  # the connection asks for a token of its own
                self._attempt = self._start(self._run())
            case Drop(code):
                self._drop(code)
            case Renew():
                self._renewing = self._start(self._renew())
            case _:
                assert_never(effect)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _stop_renewing(self) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
            self._renewing = None

    def _drop(self, code: int | None) -> None:
        self._stop_renewing()
        attempt, self._attempt = self._attempt, None
        socket, self._socket = self._socket, None
        if socket is not None and code is None:
            socket.transport.abort()
        if attempt is None:
            return
        if socket is not None and code is not None:
            self._start(self._say_goodbye(socket, code, attempt))
        else:
            attempt.cancel()

    @staticmethod
    async def _say_goodbye(socket: ClientConnection, code: int, attempt: asyncio.Task[None]) -> None:
        attempt.cancel()  # it reads, or writes
        with contextlib.suppress(Exception):
            await socket.close(code)

    async def _run(self) -> None:
        """One connection, from the first try to its end, which is reported."""
        me = asyncio.current_task()
        try:
            report = await self._connect_and_read()
        except Exception as error:
            LOG.warning("connecting failed", exc_info=True)
            reason = f"{type(error).__name__}: {error}"
            report = lambda: self._machine.failed(reason, self._clock())  # noqa: E731
        if self._attempt is me:
            self._attempt = self._socket = None
            report()
            self.act()

    async def _connect_and_read(self) -> Callable[[], None]:
        machine, clock = self._machine, self._clock
        try:
            token = await self._target.make_token()
        except Unauthorized as error:  # there will be none
            refused = error
            return lambda: machine.stop(refused)
        except Exception as error:
            if self._opened:
                raise
            fault = Stopped(f"no token: {type(error).__name__}: {error}")
            fault.__cause__ = error
            return lambda: machine.stop(fault)
        try:
            socket = await self._target.connect(token)
        except websockets.InvalidStatus as error:
            refusal = _refusal(error)
            return lambda: machine.refused(refusal, clock())
        except (OSError, websockets.WebSocketException) as error:
            reason = f"{type(error).__name__}: {error}"
            return lambda: machine.failed(reason, clock())
        try:
            if socket.subprotocol != self._target.subprotocol:
                socket.transport.abort()
                return lambda: machine.stop(Stopped(f"the service does not speak {self._target.subprotocol}"))
            self._socket = socket
            writer = self._start(self._write(socket))
            try:
                machine.connected(clock())
                self.act()
                await self._read(socket)
            except websockets.ConnectionClosed:
                pass
            finally:
                writer.cancel()
            code, words = socket.close_code or 1006, socket.close_reason or ""
            return lambda: machine.closed(code, words, clock())
        finally:
            if self._socket is socket:
                socket.transport.abort()

    async def _read(self, socket: ClientConnection) -> None:
        machine, clock, pace = self._machine, self._clock, self._pace
        while True:
            data = await socket.recv()
            if self._socket is not socket:
                return
            machine.receive(data, clock())
            self.act()
            if pace is not None:
                await pace()

    async def _write(self, socket: ClientConnection) -> None:
        with contextlib.suppress(websockets.ConnectionClosed, OSError):
            while True:
                await self._more.wait()
                self._more.clear()
                while self._outgoing and self._socket is socket:
                    await socket.send(self._outgoing.popleft())

    async def _renew(self) -> None:
        try:
            token = await self._target.make_token()
        except Unauthorized as error:
            self._renewing = None
            self._machine.stop(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the service closes when the old token has ended
            LOG.warning("no new token: %r", error)
            self._machine.renewed(None, self._clock())
        else:
            self._machine.renewed(token, self._clock())
        self.act()


def _refusal(error: websockets.InvalidStatus) -> Refusal:
    response = error.response
    try:
        body = json.loads(response.body or b"")
    except ValueError:
        body = None
    return read_refusal(response.status_code, body, response.headers.get("Retry-After"))
