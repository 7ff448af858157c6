"""One connection as it lives after the handover: a slotted protocol on the server's transport, no task, no queue.

The usual frames are read inline. Everything else, one frame at a time, is judged by `websockets.protocol.Protocol`,
made on demand and kept only while a fragmented message is under way: what RFC 6455 says is decided there, never here.
Nothing here may wait, and nothing may call `transport.close()` without a deadline: it waits for a peer to read.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN as LIBRARY_OPEN
from websockets.protocol import SERVER
from websockets.protocol import Protocol as Library
from websockets.speedups import apply_mask

from app.core.errors import Close
from app.sockets import BURST_SECONDS, FLOOD_SECONDS, Limits, Receiver
from app.sockets.frames import PING, Frames, close_frame

SEND_BUFFER = 131_072
"""SO_SNDBUF in bytes (Linux doubles it for its own bookkeeping). Left to itself the kernel grows it to 4 MiB for a peer
that does not read, unseen by the high mark; this is enough for 1 MB/s over 100 ms.
"""
TURN = 256
"""Frames of one peer at most in one turn of the loop, so that a flood of tiny ones delays nobody for long."""

FRAMES = Frames()

# The library tells INFO of each opening and end.
QUIET = logging.getLogger("app.sockets.library")
QUIET.setLevel(logging.WARNING)

_TEXT, _BINARY, _CLOSE, _PONG = 0x81, 0x82, 0x88, 0x8A
_USUAL = frozenset((_TEXT, _BINARY, _PONG))
_OPEN, _CLOSING, _ENDING, _ENDED = range(4)


def dismiss(library: Library) -> None:
    """Cut the reference cycles of a library object, its generator and its errors' tracebacks: no collector needed."""
    error: BaseException | None = library.parser_exc or library.handshake_exc
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__
    library.parser.close()
    del library.parser, library.parser_exc, library.handshake_exc


def ignore(_chunk: Any) -> None:
    """Take the place of `write` once nothing can be written any more."""


def bound_buffers(transport: asyncio.Transport, limits: Limits) -> None:
    """Hold what may wait for the peer, in the kernel and here."""
    # Unix sockets and transports over something else have buffers of their own.
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    transport.set_write_buffer_limits(high=limits.high_mark)


class _Farewell:
    """Stands before a receiver once the end has begun: it hears nothing more but that it is over."""

    __slots__ = ("_receiver",)

    def __init__(self, receiver: Receiver | None = None) -> None:
        self._receiver = receiver

    def on_text(self, payload: bytes) -> None:
        pass

    def on_binary(self, payload: bytes) -> None:
        pass

    def on_paused(self) -> None:
        pass

    def on_resumed(self) -> None:
        pass

    def on_flooded(self) -> None:
        pass

    def on_shutdown(self) -> None:
        pass

    def on_closed(self, code: int) -> None:
        if self._receiver is not None:
            self._receiver.on_closed(code)


_NOBODY = _Farewell()


class _Fragments:
    """A fragmented message under way: what the library knows of it, and its bytes so far."""

    __slots__ = ("library", "payload", "text")

    def __init__(self, limit: int) -> None:
        self.library = Library(SERVER, state=LIBRARY_OPEN, max_size=limit, logger=QUIET)
        self.payload = bytearray()  # one object, however many fragments
        self.text = False


class DetachedSocket(asyncio.Protocol):
    """A `Socket` on a transport. Reading is paused until `attach`.

    Args:
        transport: open, upgraded, its reading paused.
        connections: the server's set of those it tells to shut down; this socket stays in it until it is gone.
        receiver: hears of the end, and of what comes, until `attach` gives it a successor.
        early: what the peer sent behind its handshake.
    """

    __slots__ = (
        "_code",
        "_connections",
        "_due",
        "_flood",
        "_flowing",
        "_fragments",
        "_limits",
        "_loop",
        "_need",
        "_receiver",
        "_rest",
        "_state",
        "_timer",
        "_transport",
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
        early: bytes = b"",
    ) -> None:
        self.write: Callable[[bytes], None] = transport.write
        self.paused = False
        self.heard = loop.time()
        self._transport = transport
        self._loop = loop
        self._connections = connections
        self._receiver: Receiver = receiver
        self._limits = limits
        self._state = _OPEN
        self._code = int(Close.ABNORMAL)
        # Nobody holds reading back: neither who is above nor the frame rate.
        self._flowing = False
        # Loop time at which what has been read is paid for at the frame rate, and the end of a pause because of it.
        self._due = 0.0
        self._flood: asyncio.TimerHandle | None = None
        # Bytes not yet delivered, and how many of them make it worth looking again.
        self._rest: bytearray | None = bytearray(early) if early else None
        self._need = 0
        self._fragments: _Fragments | None = None
        self._timer: asyncio.TimerHandle | None = None
        connections.add(self)
        transport.set_protocol(self)

    def attach(self, receiver: Receiver, limits: Limits) -> None:
        """Give the connection to `receiver`; what it has missed reaches it in later turns of the loop."""
        if self._state == _ENDED:
            self._loop.call_soon(receiver.on_closed, self._code)
            return
        self._receiver = receiver if self._state == _OPEN else _Farewell(receiver)
        self._limits = limits
        bound_buffers(self._transport, limits)
        self.resume_reading()

    @property
    def framing(self) -> Frames:
        """The framing of this kind of socket."""
        return FRAMES

    def ping(self, chunk: bytes | None) -> None:
        """Send a ping frame, with the chunk in the same buffer."""
        self.write(PING + chunk if chunk else PING)

    def pause_reading(self) -> None:
        """Leave what the peer sends in the kernel; what has been read already waits here, in order."""
        if self._state == _OPEN:
            self._flowing = False
            self._forgive()
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again. What waits here is delivered first, in a later turn of the loop."""
        if self._state > _CLOSING or self._flowing or self._flood is not None:
            return
        self._flowing = True
        if self._rest is None:
            self._transport.resume_reading()
        else:
            self._loop.call_soon(self._go_on)

    def close(self, code: int, reason: str = "") -> None:
        """Send a close frame after what is waiting (RFC 6455 section 7.1.2); the peer has `close_seconds` to answer.

        Raises:
            websockets.exceptions.ProtocolError: the code may not stand in a close frame.
        """
        if self._state != _OPEN:
            return
        frame = close_frame(code, reason)
        self._state = _CLOSING
        self._receiver = _Farewell(self._receiver)
        self.write = ignore
        self._transport.write(frame)
        self._set_deadline()
        self._forgive()
        # The answer stands behind whatever else the peer has sent.
        self.resume_reading()

    def abort(self) -> None:
        """End the connection now, whatever is waiting."""
        if self._state != _ENDED:
            self._stop()
            self._transport.abort()

    # What the transport tells.

    def data_received(self, data: bytes) -> None:
        """Deliver what is whole, keep what is not."""
        self.heard = now = self._loop.time()
        if self._rest is not None:
            self._rest += data
            if not self._flowing or len(self._rest) < self._need:
                return
            data, self._rest = bytes(self._rest), None
        if self._flowing and not self._deliver(data, now):
            self._transport.pause_reading()
            self._loop.call_soon(self._go_on)

    def eof_received(self) -> None:
        """The peer half-closed without a close frame: nothing more will come, and the transport closes itself."""
        self._stop()
        self._set_deadline()

    def pause_writing(self) -> None:
        """More than the high mark is waiting. May come from within `write`."""
        self.paused = True
        self._receiver.on_paused()

    def resume_writing(self) -> None:
        """What was waiting has drained."""
        self.paused = False
        self._receiver.on_resumed()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 why it ended is told by the code
        """Say so, once, and let go of everything."""
        self._stop()
        self._state = _ENDED
        self._connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        receiver, self._receiver = self._receiver, _NOBODY
        receiver.on_closed(self._code)

    def shutdown(self) -> None:
        """Told by uvicorn when the server stops; it waits until this socket has left its set."""
        self._receiver.on_shutdown()

    # Reading.

    def _go_on(self) -> None:
        """Deliver what waits here, then read again."""
        if not self._flowing or self._transport.is_closing():
            return
        rest, self._rest = self._rest, None
        if rest is not None:
            # What waited here is heard now: the peer is not silent because we are slow.
            self.heard = now = self._loop.time()
            if not self._deliver(bytes(rest), now):
                self._loop.call_soon(self._go_on)
                return
        if self._flowing:
            self._transport.resume_reading()

    def _deliver(self, data: bytes, now: float) -> bool:
        """Give whole frames to the receiver, as many as the rate allows at `now` (loop time), and keep the rest when it
        pauses. False: this turn has had enough.

        Inline: a whole masked text, binary or pong frame without extension bits (RFC 6455 section 5.2).
        """
        at, end, need = 0, len(data), 0
        limits = self._limits
        limit, rate = limits.message, limits.frame_rate
        turn, due = TURN, self._due
        if rate:
            if due < now:  # noqa: PLR1730 calls would cost more than all the rest of the rate
                due = now
            room = (now + BURST_SECONDS - due) * rate
            if room < TURN and self._state == _OPEN:
                if room < 1:
                    self._hold_back(data, due - now)
                    return True
                turn = int(room)
        for done in range(turn):  # noqa: B007 it is how many of them were whole
            if at == end or not self._flowing:
                break
            if end - at < 2:
                need = 2
                break
            first = data[at]
            size = data[at + 1] - 128
            if size < 0:  # not masked: the library says 1002
                self._judge(data[at:])
                return True
            body = at + (6 if size < 126 else 8 if size == 126 else 14)
            if size > 125:
                if body > end:
                    need = body - at
                    break
                size = int.from_bytes(data[at + 2 : body - 4], "big")
            if size > limit:  # refused at its header: the library says 1009
                self._judge(data[at:body])
                return True
            stop = body + size
            if stop > end:
                need = stop - at
                break
            if self._fragments is not None or first not in _USUAL or (first == _PONG and size > 125):
                self._judge(data[at:stop])
            elif first != _PONG:
                payload = apply_mask(data[body:stop], data[body - 4 : body])
                if first == _TEXT:
                    self._deliver_text(payload)
                else:
                    self._receiver.on_binary(payload)
            at = stop
        else:
            done = turn
        if rate:
            self._due = due + done / rate
        if at == end:
            return True
        self._keep(data, at, need)
        return done < turn or not self._flowing

    def _keep(self, data: bytes, at: int, need: int) -> None:
        """Keep what follows `at` until it has `need` bytes, unless nothing will be read any more."""
        if at < len(data) and self._state <= _CLOSING:
            self._rest = bytearray(data[at:])
            self._need = need

    def _hold_back(self, data: bytes, debt: float) -> None:
        """Read nothing until the peer is within its rate again, so that TCP lets it wait; `debt` in seconds of rate."""
        self._keep(data, 0, 0)
        self._flowing = False
        self._transport.pause_reading()
        rate = self._limits.frame_rate
        # The loop counts in milliseconds: one more, so that the room is there when the time is.
        pause = debt - BURST_SECONDS + max(FLOOD_SECONDS, 1 / rate) + 0.001
        self._flood = self._loop.call_later(pause, self._release)
        self._receiver.on_flooded()

    def _release(self) -> None:
        """The pause is over; a peer that has reset the connection meanwhile has nothing more to be heard."""
        self._flood = None
        sock = self._transport.get_extra_info("socket")
        if sock is not None and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.abort()
        else:
            self.resume_reading()

    def _forgive(self) -> None:
        """No pause is under way any more: somebody else decides, or it is the end."""
        if self._flood is not None:
            self._flood.cancel()
            self._flood = None

    def _deliver_text(self, payload: bytes) -> None:
        """Give a text message to the receiver, or fail with 1007 (RFC 6455 section 8.1)."""
        if not payload.isascii():
            try:
                payload.decode()
            except UnicodeDecodeError:
                self._fail(Close.BAD_UTF8, close_frame(Close.BAD_UTF8, "invalid UTF-8"))
                return
        self._receiver.on_text(payload)

    def _judge(self, frame: bytes) -> None:
        """Let the library say what an unusual frame means, and do it."""
        if self._fragments is not None and frame[0] == _CLOSE:
            # It may stand between fragments (RFC 6455 section 5.4), and is answered like any other. The library takes
            # the message that is under way for an error (1002), so it is forgotten first.
            dismiss(self._fragments.library)
            self._fragments = None
        fragments, self._fragments = self._fragments or _Fragments(self._limits.message), None
        library = fragments.library
        library.receive_data(frame)
        reply = b"".join(library.data_to_send())
        if library.parser_exc is not None:
            self._fail(library.close_sent.code if library.close_sent else Close.PROTOCOL_ERROR, reply)
        else:
            for event in library.events_received():
                if isinstance(event, Frame):
                    self._take(fragments, event, reply)
        if library.current_size is None or self._state > _CLOSING:
            dismiss(library)
        else:
            self._fragments = fragments

    def _take(self, fragments: _Fragments, frame: Frame, reply: bytes) -> None:
        """One frame that the library has found good."""
        opcode = frame.opcode
        if opcode is Opcode.PING:
            if not self.paused:  # a peer that pings and does not read must not fill our memory
                self.write(reply)
        elif opcode is Opcode.CLOSE:
            received = fragments.library.close_rcvd
            self._code = int(received.code) if received is not None else self._code
            if self._state == _OPEN:
                self._transport.write(reply)
            self._stop()
            self._set_deadline()
            self._transport.close()
        elif opcode is not Opcode.PONG:
            if opcode is not Opcode.CONT:
                fragments.text = opcode is Opcode.TEXT
            fragments.payload += frame.data
            if frame.fin:
                whole = bytes(fragments.payload)
                fragments.payload = bytearray()
                if fragments.text:
                    self._deliver_text(whole)
                else:
                    self._receiver.on_binary(whole)

    # Ending.

    def _fail(self, code: int, frame: bytes) -> None:
        """Fail the connection (RFC 6455 section 7.1.7): our close frame, our end of the stream, and nothing of what
        still comes is read. Closing at once would reset the connection and take our close frame with it.
        """
        if self._state == _OPEN:
            self._code = code
            self._transport.write(frame)
        self._stop()
        self._set_deadline()
        if self._transport.can_write_eof():
            self._transport.write_eof()
            self._transport.resume_reading()
        else:
            self._transport.close()

    def _stop(self) -> None:
        """Nothing is delivered and nothing written from here on."""
        if self._state <= _CLOSING:
            self._state = _ENDING
            self._flowing = False
            self._rest = None
            self._forgive()
            self.write = ignore
            self._receiver = _Farewell(self._receiver)
        if self._fragments is not None:
            dismiss(self._fragments.library)
            self._fragments = None

    def _set_deadline(self) -> None:
        """Abort after `close_seconds`: neither a close frame nor a flush may wait for ever on the peer."""
        if self._timer is None:
            self._timer = self._loop.call_later(self._limits.close_seconds, self._transport.abort)
