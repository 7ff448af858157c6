"""The portable path: the same contract over any ASGI server, at the price of a task that reads and one that writes.

The server below frames, pings and enforces RFC 6455 in its own way; what it hides (pongs, half-closed peers, peers that
do not read our close frame) cannot be seen here.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import signal
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from app.core.errors import Close
from app.sockets import ALONE, BURST_SECONDS, FLOOD_SECONDS, JOIN_LIMIT, Framing, Limits, Receiver
from app.sockets.frames import Joined, cut_reason

TURN = 256
"""Messages of one peer at most in one turn of the loop: a server's `receive` may never wait."""

Message = MutableMapping[str, Any]
Sized = tuple[dict[str, Any], int]
"""An ASGI message, shared by all sockets, and the bytes of its payload."""


def _ignore(_chunk: Any) -> None:
    """Take the place of `write` once nothing can be written any more."""


class Messages:
    """The framing of ASGI sockets: a unit is one message, a chunk a tuple of them."""

    __slots__ = ()

    def text(self, payload: bytes) -> Sized:
        """Frame a text message of UTF-8 bytes."""
        return {"type": "websocket.send", "text": payload.decode()}, len(payload)

    def binary(self, payload: bytes) -> Sized:
        """Frame a binary message."""
        return {"type": "websocket.send", "bytes": payload}, len(payload)

    def join(self, units: Sequence[Sized]) -> list[tuple[Sized, ...]]:
        """As few chunks as `JOIN_LIMIT` and `ALONE` (bytes) allow, in order."""
        chunks: list[tuple[Sized, ...]] = []
        run: list[Sized] = []
        room = JOIN_LIMIT
        for unit in units:
            size = unit[1]
            if run and (size > room or size > ALONE):
                chunks.append(tuple(run))
                run, room = [], JOIN_LIMIT
            run.append(unit)
            room = room - size if size <= ALONE else -1
        if run:
            chunks.append(tuple(run))
        return chunks


MESSAGES = Messages()


class AsgiSocket:
    """A `Socket` on an accepted ASGI connection.

    `heard` is infinite: the server answers and counts pongs itself and ends a silent peer.

    Args:
        receive: of the ASGI application.
        send: of the ASGI application; `websocket.accept` has been sent.
        limits: what the peer is held to.
    """

    __slots__ = (
        "_closing",
        "_ended",
        "_limits",
        "_loop",
        "_queue",
        "_reading",
        "_receive",
        "_receiver",
        "_send",
        "_timer",
        "_waiting",
        "_work",
        "heard",
        "paused",
        "write",
    )

    def __init__(
        self,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
        limits: Limits,
    ) -> None:
        self.write: Callable[[Sequence[Sized]], None] = self._write
        self.paused = False
        self.heard = math.inf
        self._receive = receive
        self._send = send
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._receiver: Receiver | None = None
        self._queue: deque[Sized] = deque()
        self._waiting = 0
        self._work = asyncio.Event()
        self._reading = asyncio.Event()
        self._reading.set()
        self._closing = False
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def framing(self) -> Framing:
        """The framing of this kind of socket."""
        return MESSAGES

    async def run(self, receiver: Receiver) -> None:
        """Drive the connection until it ends; `receiver.on_closed` has been called when this returns or raises."""
        self._receiver = receiver
        if self.paused:
            receiver.on_paused()
        work = [asyncio.create_task(self._read()), asyncio.create_task(self._drain())]
        for task in work:
            task.add_done_callback(self._check)
        code = int(Close.ABNORMAL)
        try:
            code = await self._ended
        finally:
            self._stop()
            self._receiver = None
            if self._timer is not None:
                self._timer.cancel()
            for task in work:
                task.cancel()
            receiver.on_closed(code)
            await asyncio.wait(work)

    def _check(self, task: asyncio.Task[None]) -> None:
        """Neither task ends in an error but for a receiver that raises: then the application does too."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._ended.done():
            self._ended.set_exception(error)

    def ping(self, chunk: Sequence[Sized] | None) -> None:
        """Send the chunk; pinging is the server's."""
        if chunk:
            self.write(chunk)

    def pause_reading(self) -> None:
        """Do not ask the server for more."""
        if not self._closing:
            self._reading.clear()

    def resume_reading(self) -> None:
        """Ask again."""
        self._reading.set()

    def close(self, code: int, reason: str = "") -> None:
        """Send the last message after what is waiting; the server has `close_seconds` to report the end."""
        if self._closing:
            return
        self._closing = True
        self.write = _ignore
        self._queue.append((self._last(code, reason), 0))
        self._work.set()
        self._reading.set()
        self._set_deadline()

    def _last(self, code: int, reason: str) -> dict[str, Any]:
        """The message that ends the connection."""
        return {"type": "websocket.close", "code": int(code), "reason": cut_reason(reason)}

    def abort(self) -> None:
        """End now: the application returns, and what becomes of the connection is the server's business."""
        self._end(Close.ABNORMAL)

    def _set_deadline(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(self._limits.close_seconds, self._end, Close.ABNORMAL)

    def _end(self, code: int) -> None:
        self._stop()
        if not self._ended.done():
            self._ended.set_result(int(code))

    def _stop(self) -> None:
        self._closing = True
        self.write = _ignore

    def _write(self, chunk: Sequence[Sized]) -> None:
        """The first value of `write`. The hub stops writing to a paused socket within a turn; a queue that grows far
        beyond the high mark all the same is the end.
        """
        self._queue.extend(chunk)
        self._waiting += sum(size for _, size in chunk)
        self._work.set()
        high = self._limits.high_mark
        if self._waiting > 4 * high + JOIN_LIMIT:
            self._queue.clear()
            self.abort()
        elif self._waiting > high and not self.paused:
            self.paused = True
            if self._receiver is not None:
                self._receiver.on_paused()

    async def _drain(self) -> None:
        """Send what waits, in order."""
        while True:
            while self._queue:
                message, size = self._queue.popleft()
                try:
                    await self._send(message)
                except Exception:  # noqa: BLE001 servers differ in what they throw; it means that the peer is gone
                    # Why is about to be read; should the server not say, we do.
                    self._reading.set()
                    self._set_deadline()
                    return
                self._waiting -= size
                if self.paused and self._waiting <= self._limits.high_mark // 4:
                    self.paused = False
                    if self._receiver is not None and not self._closing:
                        self._receiver.on_resumed()
            self._work.clear()
            await self._work.wait()

    async def _read(self) -> None:
        """Give what the server reads to the receiver, as long as it wants it and the rate allows."""
        rate = self._limits.frame_rate
        due = 0.0
        for count in itertools.count(1):
            await self._reading.wait()
            try:
                message = await self._receive()
            except Exception:  # noqa: BLE001 as above
                self._end(Close.ABNORMAL)
                return
            if message["type"] == "websocket.disconnect":
                self._end(message.get("code") or Close.ABNORMAL)
                return
            # Paused while this one was on its way: it waits.
            await self._reading.wait()
            self._deliver(message)
            if rate and not self._closing:
                now = self._loop.time()
                due = max(due, now) + 1 / rate
                if due - now > BURST_SECONDS:
                    if self._receiver is not None:
                        self._receiver.on_flooded()
                    await asyncio.sleep(due - now - BURST_SECONDS + max(FLOOD_SECONDS, 1 / rate))
            if count % TURN == 0:
                await asyncio.sleep(0)

    def _deliver(self, message: Message) -> None:
        receiver = self._receiver
        if self._closing or receiver is None:
            return
        text = message.get("text")
        try:
            payload = message["bytes"] if text is None else text.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, from a server that does not check
            self.close(Close.BAD_UTF8, "invalid UTF-8")
            return
        if len(payload) > self._limits.message:
            self.close(Close.TOO_BIG, "message too big")
        elif text is None:
            receiver.on_binary(payload)
        else:
            receiver.on_text(payload)


class Bodies(Joined):
    """The framing of ASGI responses: a unit is bytes of the body, a chunk one message with several."""

    __slots__ = ()

    def text(self, payload: bytes) -> bytes:
        """The bytes as they are."""
        return payload

    binary = text

    def join(self, units: Sequence[bytes]) -> list[Any]:
        """As few chunks as `JOIN_LIMIT` and `ALONE` (bytes) allow, in order."""
        return [
            (({"type": "http.response.body", "body": body, "more_body": True}, len(body)),)
            for body in super().join(units)
        ]


BODIES = Bodies()
STOP_SECONDS = 1.0
"""How often a stream looks whether the server is to stop."""


def server_is_stopping() -> bool:
    """Whether the uvicorn of this process, if it is one, has been told to stop: it does not tell its HTTP applications,
    and waits for their responses to end.
    """
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return bool(getattr(server, "should_exit", False))


class AsgiStream(AsgiSocket):
    """A `Socket` on an ASGI response whose head was sent: the body goes on until somebody ends it."""

    __slots__ = ("_watch",)

    @property
    def framing(self) -> Framing:
        """The framing of this kind of socket."""
        return BODIES

    async def run(self, receiver: Receiver) -> None:
        """Drive the response until it ends; `receiver.on_closed` has been called when this returns or raises."""
        self._watch = self._loop.call_later(STOP_SECONDS, self._look, receiver)
        try:
            await super().run(receiver)
        finally:
            self._watch.cancel()

    def _look(self, receiver: Receiver) -> None:
        if server_is_stopping():
            receiver.on_shutdown()
        else:
            self._watch = self._loop.call_later(STOP_SECONDS, self._look, receiver)

    def _last(self, code: int, reason: str) -> dict[str, Any]:  # noqa: ARG002 a response cannot say why it ends
        return {"type": "http.response.body", "body": b"", "more_body": False}

    async def _read(self) -> None:
        """Wait for the peer to leave; it has nothing more to say."""
        while True:
            try:
                message = await self._receive()
            except Exception:  # noqa: BLE001 as above
                break
            if message["type"] == "http.disconnect":
                break
        self._end(Close.ABNORMAL)
