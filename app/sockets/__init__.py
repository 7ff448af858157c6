"""The bytes to and from one client, in two ways that behave alike: on uvicorn's transport (fast) and over any ASGI
server (portable).

May import `app.core` only. What a message means is unknown here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

JOIN_LIMIT = 262_144
"""Bytes at most in one joined write."""
ALONE = 16_384
"""A frame above this many bytes is written by itself: joining would copy it."""

EXTENSION = "tocsin.socket"
"""Key in an ASGI scope's `extensions` under which a server offers a `Handover`."""
HANDSHAKE_SECONDS = "tocsin.handshake_seconds"
"""Key in the state of the lifespan scope under which an application says how long a request may take to arrive."""
BURST_SECONDS = 2.0
"""What a peer may send at once, in seconds of its frame rate."""
FLOOD_SECONDS = 0.1
"""A peer over its frame rate is not read from for at least so long, then may send what the rate allows for it."""

Unit = Any
"""One message framed for a kind of socket: shared by all of them, opaque to everyone else."""
Chunk = Any
"""What one `write` takes: several units joined."""


class Framing(Protocol):
    """How a kind of socket wants its messages; one instance serves all sockets of the kind."""

    def text(self, payload: bytes) -> Unit:
        """Frame a text message of UTF-8 bytes."""

    def binary(self, payload: bytes) -> Unit:
        """Frame a binary message."""

    def join(self, units: Sequence[Unit]) -> list[Chunk]:
        """As few chunks as `JOIN_LIMIT` and `ALONE` (bytes) allow, in order."""


class Receiver(Protocol):
    """Who is told what a socket hears. Called from the event loop; must not block and must not raise."""

    def on_text(self, payload: bytes) -> None:
        """A whole text message, valid UTF-8."""

    def on_binary(self, payload: bytes) -> None:
        """A whole binary message."""

    def on_paused(self) -> None:
        """The peer reads too slowly: more than the high mark is waiting. May be called inside `write`."""

    def on_resumed(self) -> None:
        """What was waiting has drained."""

    def on_flooded(self) -> None:
        """The peer sent more frames than its rate allows: for a moment nothing is read. Counted, nothing else."""

    def on_closed(self, code: int) -> None:
        """The connection is gone (RFC 6455 section 7.4: the code received, else 1006). The last call."""

    def on_shutdown(self) -> None:
        """The server is stopping: close when it suits, within the drain window."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a socket holds its peer to.

    Attributes:
        message: bytes of a message at most; a larger one closes with 1009.
        high_mark: bytes that may wait in the write buffer before the peer counts as slow.
        close_seconds: how long the peer may take to answer our close frame (or to read it) before the connection is
            aborted.
        frame_rate: frames a second that are read from the peer, whatever they carry, after a burst of `BURST_SECONDS`;
            the rest waits with the peer. 0: as many as come.
    """

    message: int = 65_536
    high_mark: int = 1_048_576
    close_seconds: float = 5.0
    frame_rate: float = 0


class Socket(Protocol):
    """One client's connection, open and upgraded.

    Attributes:
        write: takes one chunk of this socket's framing. Never raises, never blocks; after the end it does nothing.
        paused: whether more than the high mark is waiting.
        heard: loop time (seconds) of the last frame from the peer.
    """

    write: Callable[[Chunk], None]
    paused: bool
    heard: float

    @property
    def framing(self) -> Framing:
        """The framing of this kind of socket."""

    def ping(self, chunk: Chunk | None) -> None:
        """Send a ping frame (RFC 6455 section 5.5.2), with the given chunk in the same buffer, where the server lets us
        ping at all.
        """

    def pause_reading(self) -> None:
        """Leave what the peer sends in the kernel."""

    def resume_reading(self) -> None:
        """Read again."""

    def close(self, code: int, reason: str = "") -> None:
        """Send a close frame after what is waiting; the connection ends soon, also when the peer does not read."""

    def abort(self) -> None:
        """End the connection now, whatever is waiting."""


class Handover(Protocol):
    """How a server that offers `EXTENSION` gives a connection away.

    Call it once, after `websocket.accept` was sent; then return from the ASGI application. What the peer has sent
    meanwhile reaches the receiver in a later turn of the loop, in order.
    """

    def __call__(self, receiver: Receiver, limits: Limits) -> Socket:
        """Detach the connection from the ASGI application; `receiver` hears it from now on."""
