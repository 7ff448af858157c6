"""What a client may take until its request is whole: a deadline and a size for the head, a deadline for the body.

uvicorn has neither with httptools: who connects and says nothing, or a byte now and then, stays for ever, and a head
grows without end. A class for uvicorn's `http`; `tocsin serve` names it. No task, and one timer of the loop for as long
as something is missing: none while a request is answered, between two requests (uvicorn's keep-alive timeout rules
there) or after an upgrade. The object must leave no reference behind when it is upgraded (see `WebSocketProtocol`) or
when an application takes the connection of its response over, which is offered to each.
"""

from __future__ import annotations

import asyncio
from functools import partial
from http import HTTPStatus
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from app.sockets import EXTENSION, HANDSHAKE_SECONDS, Limits, Receiver, Socket
from app.sockets.stream import CHUNKS, PIECES, DetachedStream

HEAD_LIMIT = 65_536
"""Bytes of a head or of trailers at most, counted as HTTP/2 counts them. A WebSocket handshake keeps within the limits
of the websockets library besides.
"""
LINE_COST = 32
"""What a header line costs beside its bytes (RFC 9113 section 6.5.2), for each is an object of its own here."""
LINGER_SECONDS = 2.0
"""How long a refused peer may take to read why, before it is aborted."""
DEFAULT_SECONDS = 10.0
"""The deadline under an application that names none."""

_FIELDS = b"content-type: text/plain; charset=utf-8\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
_UNNAMED = 2**62
"""More bytes than any response has."""
_LEAST_SECONDS = 0.1
"""A deadline is put off by so much at least, and the last look at a request is taken so much before."""


class _Flow(FlowControl):
    """uvicorn's flow control, with a memory of how long nothing was read from the peer."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(transport)
        self._loop = loop
        self._since = self._before = 0.0

    @property
    def unread(self) -> float:
        """Seconds in which reading was paused, in all."""
        return self._before + (self._loop.time() - self._since if self.read_paused else 0.0)

    def pause_reading(self) -> None:
        if not self.read_paused:
            self._since = self._loop.time()
        super().pause_reading()

    def resume_reading(self) -> None:
        self._before = self.unread
        super().resume_reading()


class _TooLarge(Exception):
    """Ends the parser's work on a request that has been refused."""


async def _send_in_pieces(cycle: RequestResponseCycle, send: Any, message: Any) -> None:
    """ASGI send for HTTP/1.0, which knows no chunks (RFC 9112 section 6.1): where the application names no length, the
    end of the connection is the end of the body. uvicorn would send chunks.
    """
    if message["type"] == "http.response.start":
        if not any(name.lower() == b"content-length" for name, _ in message.get("headers", ())):
            cycle.chunked_encoding = False
            cycle.expected_content_length = 2 * _UNNAMED
    elif cycle.expected_content_length > _UNNAMED and not message.get("more_body", False):
        cycle.expected_content_length = len(message.get("body", b""))
    await send(message)


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, held to a clock.

    Args:
        config: uvicorn's.
        server_state: uvicorn's sets of connections and tasks.
        app_state: what lifespan left for each scope; `HANDSHAKE_SECONDS` in it is the deadline in seconds.
        _loop: event loop; the running one when None.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._seconds: float = app_state.get(HANDSHAKE_SECONDS, DEFAULT_SECONDS)
        # Even: a head is awaited; odd: a body. And the step that the timer runs for.
        self._step = self._timed = 0
        self._timer: asyncio.TimerHandle | None = None
        self._flow: _Flow
        self._excused = 0.0
        self._room = HEAD_LIMIT
        # Bytes since the parser last told us anything: what it keeps of an endless line.
        self._untold = 0
        # Upgraded or refused: nothing that still comes is ours.
        self._done = False
        # The request that is being answered, or was last; `cycle` may stand behind it in the pipeline.
        self._running: RequestResponseCycle | None = None

    # What the transport and the server tell.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """The clock starts before the first byte."""
        super().connection_made(transport)
        self.flow = self._flow = _Flow(transport, self.loop)
        self._set_deadline()

    def data_received(self, data: bytes) -> None:
        """Read on, and see what is still missing."""
        if self._done:
            return
        self._untold += len(data)
        super().data_received(data)
        if self._done:
            return
        if self._untold > HEAD_LIMIT:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is awaited any more."""
        self._done = True
        self._cancel()
        self._drop_pipeline()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self) -> None:
        """Let go: the next protocol owns the transport, and this object is about to be freed."""
        self._done = True
        self._cancel()
        super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 the status says it
        """The parser has given up; where we made it, the peer has its answer already."""
        if not self._done:
            self._refuse(HTTPStatus.BAD_REQUEST)

    # The response.

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Begin to answer a request."""
        self._running = cycle
        super()._start_asgi_task(cycle, partial(self._answer, cycle, app))

    async def _answer(self, cycle: RequestResponseCycle, app: Any, scope: Any, receive: Any, send: Any) -> None:
        """Run the application, with the offer to take the connection over."""
        scope["extensions"] = {EXTENSION: partial(self._hand_over, cycle)}
        try:
            await app(scope, receive, send if scope["http_version"] == "1.1" else partial(_send_in_pieces, cycle, send))
        finally:
            del scope["extensions"]  # a cycle

    def _hand_over(self, cycle: RequestResponseCycle, receiver: Receiver, limits: Limits) -> Socket:
        """The `Handover` in the scope of a request.

        Raises:
            RuntimeError: the peer is there, and the head of the response has not been sent or the response is complete.
        """
        # For a peer that has left uvicorn writes no head; a transport that closes has yet to tell `connection_lost`.
        gone = cycle.disconnected or self.transport.is_closing()
        if not gone and (not cycle.response_started or cycle.response_complete):
            raise RuntimeError("hand a response over once, after its head")
        cycle.disconnected = True  # uvicorn writes nothing more for it
        if not gone:
            self._done = True
            self._cancel()
            self._unset_keepalive_if_required()
            self.connections.discard(self)
            self.flow.resume_reading()
            # What was asked behind it is never answered; and these would be cycles.
            self.pipeline.clear()
            self.parser = self.cycle = self._running = cast("Any", None)
        return DetachedStream(
            self.transport,
            loop=self.loop,
            connections=self.connections,
            receiver=receiver,
            limits=limits,
            framing=CHUNKS if cycle.chunked_encoding else PIECES,
            paused=self.flow.write_paused,
            gone=gone,
        )

    def _drop_pipeline(self) -> None:
        """What waits behind the running request is never answered, so that one is the last: uvicorn tells only the last
        that the peer has left.
        """
        self.pipeline.clear()
        self.cycle = cast("Any", self._running)

    # What the parser tells.

    def on_message_begin(self) -> None:
        """A request begins."""
        self._untold = 0
        self._room = HEAD_LIMIT
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        self._spend(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A line of the head, or of the trailers."""
        self._spend(len(name) + len(value) + LINE_COST)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole: the body has as many seconds again."""
        self._untold = 0
        self._step += 1
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the body: its size is the application's business."""
        self._untold = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._untold = 0
        self._step += 1
        super().on_message_complete()

    def _spend(self, size: int) -> None:
        self._untold = 0
        self._room -= size
        if self._room < 0:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            raise _TooLarge

    # The clock.

    @property
    def _cycle(self) -> RequestResponseCycle | None:
        """The last request whose head is whole, with its answer."""
        return cast("RequestResponseCycle | None", self.cycle)

    @property
    def _pending(self) -> RequestResponseCycle | None:
        """The same, while it is not answered."""
        cycle = self._cycle
        return None if cycle is None or cycle.response_complete else cycle

    def _watch(self) -> None:
        """Let the clock run for what is missing; it stands still while the peer waits for us."""
        if (self._step % 2 == 0 and self._pending is not None) or self.transport.is_closing():
            self._cancel()
        elif self._timer is None or self._timed != self._step:
            self._set_deadline()

    def _set_deadline(self) -> None:
        self._cancel()
        self._timed = self._step
        self._excused = self._flow.unread
        self._timer = self.loop.call_later(self._seconds - _LEAST_SECONDS, self._expire)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self, *, last: bool = False) -> None:
        self._timer = None
        # The clock stands still while it is we who do not read, because the application has enough to do.
        owed = self._flow.unread - self._excused
        if owed > 0:
            owed = max(owed, _LEAST_SECONDS)
            self._excused += owed
            self._timer = self.loop.call_later(owed, self._expire)
        elif not last:  # the loop may have stood still: what has arrived by now is read first
            self._timer = self.loop.call_later(_LEAST_SECONDS, partial(self._expire, last=True))
        else:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)

    def _refuse(self, status: HTTPStatus) -> None:
        """End the connection, with an answer where the peer would not take it for another's (RFC 9110 section 15.5.9).

        Our end of the stream is closed and the rest of theirs dropped: to close at once would reset the connection and
        take the answer with it.
        """
        self._done = True
        self._cancel()
        self._unset_keepalive_if_required()
        cycle, pending = self._cycle, self._pending
        answerable = pending is None
        if cycle is not None and self._step % 2 == 1 and cycle.scope is self.scope:  # it is this request's
            answerable = not cycle.response_started and not self.pipeline
        self._drop_pipeline()
        if pending is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if not self.transport.is_closing():
            if answerable:
                self.transport.write(self._refusal(status))
            if self.transport.can_write_eof():
                self.transport.write_eof()
                self.flow.resume_reading()
            else:
                self.transport.close()
        self._timer = self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def _refusal(self, status: HTTPStatus) -> bytes:
        body = f"{status.phrase}\n".encode()
        ours = [b"%b: %b\r\n" % pair for pair in self.server_state.default_headers]
        return b"".join((STATUS_LINE[status], *ours, _FIELDS % len(body), body))
