"""The wire formats, pure, one file each; PROTOCOL (docs/protocol.md) is their contract.

May import `app.core` only. A codec turns publications into messages of its format and the client's messages into
commands; it knows neither sockets nor channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from app.core.errors import BadRequest
from app.core.messages import Command, Event, Publication


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a wire format: text (UTF-8 bytes) or binary."""

    payload: bytes
    text: bool


class Codec(Protocol):
    """One wire format. Stateless: one instance serves all connections, so that a publication is encoded once."""

    @property
    def subprotocol(self) -> str:
        """Its name in Sec-WebSocket-Protocol (RFC 6455 section 11.3.4)."""

    def encode(self, channel: str, publication: Publication) -> Message:
        """A publication as this format writes it. `publication.kind` is not None."""

    def decode_text(self, payload: bytes) -> Command:
        """What a text message asks for; `payload` is valid UTF-8."""

    def decode_binary(self, payload: bytes) -> Command:
        """What a binary message asks for."""


class Conversation(Codec, Protocol):
    """A wire format in which the server speaks too: answers, gaps, the end."""

    def say(self, event: Event) -> Message:
        """An event as this format writes it."""


BEARER = "tocsin.bearer."
"""Prefix of the subprotocol that carries a token from a browser; never echoed."""


def negotiate(offered: Sequence[str], codecs: Sequence[Codec]) -> tuple[Codec, str | None]:
    """Choose the codec for an offer; the first codec is the one for no offer at all.

    Returns:
        The codec, and the subprotocol to answer with (None when none was offered).

    Raises:
        BadRequest: something was offered, and none of it is a codec that we know, or something of it twice (RFC 6455
            section 4.1).
    """
    if not offered:
        return codecs[0], None
    if len(set(offered)) < len(offered):
        raise BadRequest("a subprotocol was offered twice")
    for name in offered:
        for codec in codecs:
            if name == codec.subprotocol:
                return codec, name
    known = ", ".join(codec.subprotocol for codec in codecs)
    raise BadRequest(f"no subprotocol that you offered is known here: offer one of {known}, or none at all for plain")
