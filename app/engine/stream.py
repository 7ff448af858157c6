"""An event stream: a connection that only listens, and is numbered where it has several channels.

A stream of several channels says in each id where it stands in all of them. Only that line is made for each stream; the
event behind it is framed once and shared by all (decision 0018).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.core.messages import Position
from app.engine.connection import EventConnection
from app.protocols.sse import ID
from app.sockets import Framing, Socket, Unit

_Numbered = tuple[bytes | None, Unit]
"""The channel's new position, `<channel>=<id>`, where there is one; and the rest of the event, framed."""


@dataclass(frozen=True, slots=True)
class Numbered:
    """The framing of numbered streams, over the framing of their sockets: a value, the same for all of them."""

    inner: Framing

    def text(self, payload: bytes) -> _Numbered:
        """Frame an event without its id."""
        if not payload.startswith(ID):
            return None, self.inner.text(payload)
        line, _, rest = payload.partition(b"\n")
        return line[len(ID) :], self.inner.text(rest)

    binary = text

    def join(self, units: Sequence[_Numbered]) -> list[tuple[_Numbered, ...]]:
        """One chunk: how large it is, each stream finds out."""
        return [tuple(units)] if units else []


class Numbering:
    """Where one stream stands, and the `write` that says so.

    Args:
        socket: the stream's; its `write` is replaced.
        positions: of all its channels.
    """

    __slots__ = ("_join", "_marks", "_text", "_write")

    def __init__(self, socket: Socket, positions: Mapping[str, Position]) -> None:
        self._marks = {channel.encode(): f"{channel}={position}".encode() for channel, position in positions.items()}
        self._text = socket.framing.text
        self._join = socket.framing.join
        self._write = socket.write
        socket.write = self.write

    def write(self, chunk: Sequence[_Numbered]) -> None:
        """Write events, each with its id."""
        units: list[Unit] = []
        marks = self._marks
        for mark, rest in chunk:
            if mark is not None:
                marks[mark[: mark.index(b"=")]] = mark
                units.append(self._text(b"%b%b\n" % (ID, b",".join(marks.values()))))
            units.append(rest)
        for joined in self._join(units):
            self._write(joined)


class StreamConnection(EventConnection):
    """One event stream, from the handover to the end."""

    __slots__ = ("_framing",)

    one_way = True

    @property
    def framing(self) -> Framing:
        """How its socket wants its events."""
        return self._framing

    def begin(self, socket: Socket, positions: Mapping[str, Position]) -> None:
        """The stream begins: the client knows these positions, or will be told of a gap."""
        self._framing: Framing = socket.framing
        if len(positions) > 1:
            self._framing = Numbered(socket.framing)
            Numbering(socket, positions)
        self.open(socket)
