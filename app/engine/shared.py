"""What a fan-out shares: a publication framed once per kind of socket, and the ring of the most recent ones."""

from __future__ import annotations

from collections import deque

from app.core.messages import Position, Publication
from app.protocols import Codec
from app.sockets import Chunk, Framing, Unit

RING = 262_144
"""Bytes of recent messages kept per channel with several subscribers."""


class Encoding:
    """A codec on a kind of socket: what one group shares.

    Attributes:
        keepalive: one buffer that goes out with every ping, made by the first who needs it.
    """

    __slots__ = ("codec", "framing", "keepalive")

    def __init__(self, codec: Codec, framing: Framing) -> None:
        self.codec = codec
        self.framing = framing
        self.keepalive: Chunk | None = None

    def unit(self, channel: str, publication: Publication) -> Unit:
        """One publication, encoded and framed."""
        message = self.codec.encode(channel, publication)
        return self.framing.text(message.payload) if message.text else self.framing.binary(message.payload)


class Shared:
    """A publication and its units, made once and used by everyone."""

    __slots__ = ("_encoding", "_more", "_unit", "publication")

    def __init__(self, publication: Publication) -> None:
        self.publication = publication
        self._encoding: Encoding | None = None
        self._unit: Unit = None
        self._more: dict[Encoding, Unit] | None = None

    def unit(self, channel: str, encoding: Encoding) -> Unit:
        """The unit for an encoding."""
        if self._encoding is encoding:
            return self._unit
        if self._encoding is None:
            self._encoding, self._unit = encoding, encoding.unit(channel, self.publication)
            return self._unit
        if self._more is None:
            self._more = {}
        if encoding not in self._more:
            self._more[encoding] = encoding.unit(channel, self.publication)
        return self._more[encoding]

    def writable(self, channel: str, encoding: Encoding) -> bool:
        """Whether it can be written at all: its kind is known, and its payload is what the kind says."""
        if self.publication.kind is None:
            return False
        try:
            self.unit(channel, encoding)
        except ValueError:
            return False
        return True

    def is_by(self, client: str) -> bool:
        """Whether this client published it."""
        needle = client.encode()
        return needle in self.publication.attributes and self.publication.read_attributes().get("c") == client


class Ring:
    """The most recent messages of a live channel, consecutive."""

    __slots__ = ("before", "items", "size")

    def __init__(self, before: Position) -> None:
        self.before = before
        self.items: deque[Shared] = deque()
        self.size = 0

    def append(self, item: Shared) -> int:
        """Add one and forget the oldest beyond the bound. Returns by how many bytes the ring has grown."""
        grown = len(item.publication.payload) + 200
        self.items.append(item)
        while self.size + grown > RING and len(self.items) > 1:
            old = self.items.popleft().publication
            assert old.position is not None
            self.before = old.position
            grown -= len(old.payload) + 200
        self.size += grown
        return grown

    def after(self, position: Position, until: int) -> list[Shared] | None:
        """The messages after a position up to offset `until`, or None when the ring cannot prove the position."""
        skip = position.offset - self.before.offset
        if skip < 0 or skip > len(self.items):
            return None
        known = self.before if skip == 0 else self.items[skip - 1].publication.position
        if known != position:
            return None
        return [self.items[index] for index in range(skip, min(len(self.items), until - self.before.offset))]
