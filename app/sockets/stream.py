"""An event stream's connection after the handover: the head of its response is out, the body goes on for ever.

A slotted protocol on the server's transport, no task, no queue. The peer has nothing more to say: what it sends is
dropped, and its end of the stream ends ours.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable
from typing import Any

from app.core.errors import Close
from app.sockets import Limits, Receiver
from app.sockets.detached import bound_buffers, ignore
from app.sockets.frames import Joined

ROOM = 65_536
"""Bytes that a peer may send behind its request before it is taken for a flood."""
DEAF_MS = 45_000
"""How long what was written may stay without a TCP acknowledgement (RFC 5482): nothing else tells that a peer is gone
without a word.
"""


class Chunks(Joined):
    """The framing of HTTP/1.1: a unit is one chunk of the body (RFC 9112 section 7.1)."""

    __slots__ = ()

    end = b"0\r\n\r\n"

    def text(self, payload: bytes) -> bytes:
        """Frame bytes of the body; there are some."""
        return b"%x\r\n%b\r\n" % (len(payload), payload)

    binary = text


class Pieces(Joined):
    """The framing of HTTP/1.0: a unit is a piece of the body, which ends with the connection."""

    __slots__ = ()

    end = b""

    def text(self, payload: bytes) -> bytes:
        """The bytes as they are."""
        return payload

    binary = text


CHUNKS, PIECES = Chunks(), Pieces()


class DetachedStream(asyncio.Protocol):
    """A `Socket` on the transport of a response. `heard` is infinite: nobody is asked to answer.

    Args:
        transport: open, the head of the response written.
        connections: the server's set of those it tells to shut down; this socket stays in it until it is gone.
        receiver: hears of slowness and of the end.
        limits: `high_mark` and `close_seconds` count.
        framing: of the body.
        paused: the transport has told that more is waiting than it likes, and not yet that it has drained.
        gone: the peer has left already, or the transport is closing: it is not touched.
    """

    __slots__ = (
        "_connections",
        "_ending",
        "_limits",
        "_loop",
        "_receiver",
        "_room",
        "_timer",
        "_transport",
        "framing",
        "heard",
        "paused",
        "write",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        *,
        loop: asyncio.AbstractEventLoop,
        connections: set[Any],
        receiver: Receiver,
        limits: Limits,
        framing: Chunks | Pieces,
        paused: bool,
        gone: bool,
    ) -> None:
        self.write: Callable[[bytes], None] = ignore if gone else transport.write
        self.paused = paused and not gone
        self.heard = math.inf
        self.framing = framing
        self._transport = transport
        self._loop = loop
        self._connections = connections
        self._receiver: Receiver | None = receiver
        self._limits = limits
        self._room = ROOM
        self._ending = gone
        self._timer: asyncio.TimerHandle | None = None
        if gone:
            loop.call_soon(self.connection_lost, None)
            return
        if paused:
            loop.call_soon(self._tell_paused)
        connections.add(self)
        transport.set_protocol(self)
        bound_buffers(transport, limits)
        sock = transport.get_extra_info("socket")
        if (
            sock is not None
            and sock.family in {socket.AF_INET, socket.AF_INET6}
            and hasattr(socket, "TCP_USER_TIMEOUT")
        ):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAF_MS)

    def ping(self, chunk: bytes | None) -> None:
        """Send the chunk: a stream has no pings."""
        if chunk:
            self.write(chunk)

    def pause_reading(self) -> None:
        """Nothing that comes is passed on anyway."""

    def resume_reading(self) -> None:
        """Likewise."""

    def close(self, code: int, reason: str = "") -> None:  # noqa: ARG002 a response cannot say why it ends
        """End the body after what is waiting; the peer has `close_seconds` to read it."""
        if not self._ending:
            self._transport.write(self.framing.end)
            self._stop()
            self._transport.close()

    def abort(self) -> None:
        """End the connection now, whatever is waiting."""
        self._stop()
        self._transport.abort()

    # What the transport tells.

    def data_received(self, data: bytes) -> None:
        """No request behind this one is ever answered."""
        self._room -= len(data)
        if self._room < 0:
            self.abort()

    def eof_received(self) -> None:
        """The peer has hung up; the transport closes itself."""
        self._stop()

    def pause_writing(self) -> None:
        """More than the high mark is waiting. May come from within `write`."""
        self.paused = True
        self._tell_paused()

    def resume_writing(self) -> None:
        """What was waiting has drained."""
        self.paused = False
        if self._receiver is not None and not self._ending:
            self._receiver.on_resumed()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 nobody asks why
        """Say so, once, and let go of everything."""
        self._stop()
        self._connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.on_closed(Close.ABNORMAL)

    def shutdown(self) -> None:
        """Told by uvicorn when the server stops; it waits until this socket has left its set."""
        if self._receiver is not None and not self._ending:
            self._receiver.on_shutdown()

    def _tell_paused(self) -> None:
        if self._receiver is not None and not self._ending and self.paused:
            self._receiver.on_paused()

    def _stop(self) -> None:
        """Nothing is written from here on, and the flush may not wait for ever on the peer."""
        if not self._ending:
            self._ending = True
            self.write = ignore
            self._timer = self._loop.call_later(self._limits.close_seconds, self._transport.abort)
