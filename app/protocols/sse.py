"""Server-sent events (HTML Living Standard section 9.2): the native objects, in an event stream.

An event that moves a channel's position begins with its `id:` line. In a stream of several channels that line, as it is
encoded here, names the one channel: whoever writes the stream puts all positions there (`Numbering`).
"""

from __future__ import annotations

from collections.abc import Sequence

from app.core.errors import BadPosition, UnsupportedType
from app.core.messages import Alive, ComeBack, Event, Lost, Malformed, Position, Publication, Subscribed
from app.protocols import Message
from app.protocols.native import Native

ID = b"id: "
"""How the first line of an event begins that moves a position."""
RETRY_MS = 1000
"""Milliseconds that a browser waits at least before it returns; it asks again as often while nobody answers."""

_NATIVE = Native()


class EventStream:
    """The codec of event streams.

    Args:
        several: for streams of several channels, whose ids name the channel.
    """

    __slots__ = ("_several",)

    subprotocol = ""
    """None: it is not negotiated."""

    def __init__(self, *, several: bool) -> None:
        self._several = several

    def encode(self, channel: str, publication: Publication) -> Message:
        """A publication as a `message` event, whose type need not be named; an ephemeral one has no id."""
        event = _data(_NATIVE.encode(channel, publication).payload)
        position = publication.position
        return Message(event if position is None else self._id(channel, position) + event, text=True)

    def say(self, event: Event) -> Message:
        """An event as a stream has it; one that it does not know is a comment."""
        match event:
            case Subscribed(channel, position, False, _, str(reason)):
                return self.say(Lost(channel, reason, position))
            case Subscribed(channel, position):
                found = self._id(channel, position) + b"\n"
            case Lost(channel, _, position):
                found = self._id(channel, position) + b"event: gap\n" + _data(_NATIVE.say(event).payload)
            case ComeBack(after):
                found = retry(after) + b"event: reconnect\n" + _data(_NATIVE.say(event).payload)
            case Alive():
                found = b": alive\n\n"
            case _:
                found = b":\n\n"
        return Message(found, text=True)

    def decode_text(self, payload: bytes) -> Malformed:  # noqa: ARG002 - whatever it holds
        """A stream goes one way."""
        return Malformed(UnsupportedType("an event stream takes no commands"))

    decode_binary = decode_text

    def _id(self, channel: str, position: Position) -> bytes:
        return f"id: {channel}={position}\n".encode() if self._several else f"id: {position}\n".encode()


def retry(seconds: float) -> bytes:
    """The line that tells a browser to return so many seconds later than it must."""
    return b"retry: %d\n" % (RETRY_MS + round(1000 * seconds))


def read_positions(text: str, channels: Sequence[str]) -> dict[str, Position]:
    """Where to resume, as a stream of these channels has said it: `<id>`, of several `a=<id>,b=<id>`. Not all need be
    named.

    Raises:
        BadPosition: it is something else, or names a channel twice or one that is not asked for.
    """
    if len(channels) == 1:
        return {channels[0]: Position.parse(text)}
    found: dict[str, Position] = {}
    for part in text.split(","):
        channel, _, position = part.partition("=")
        if channel in found or channel not in channels:
            raise BadPosition("where several channels are resumed, each is named once: `a=<id>,b=<id>`")
        found[channel] = Position.parse(position)
    return found


def _data(text: bytes) -> bytes:
    """The text as data: one line for each of its own. A line of JSON ends only between its tokens."""
    lines = text.splitlines() if b"\n" in text or b"\r" in text else (text,)
    return b"data: " + b"\ndata: ".join(lines) + b"\n\n"
