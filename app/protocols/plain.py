"""Plain: one channel, payloads and nothing else. What `new WebSocket(url)` speaks.

It carries no ids and no answers, so whatever another format would say in a frame, plain says by closing.
"""

from __future__ import annotations

import contextlib

import orjson

from app.core.messages import Kind, Publication, Publish
from app.protocols import Message


class Plain:
    """The plain codec."""

    __slots__ = ()

    subprotocol = "tocsin.plain"

    def encode(self, channel: str, publication: Publication) -> Message:  # noqa: ARG002 - a plain socket has one channel
        """The payload verbatim with its type; JSON as its text, a JSON string as that string."""
        if publication.kind is Kind.JSON and publication.payload[:1] == b'"':
            with contextlib.suppress(orjson.JSONDecodeError):  # what is no JSON after all is shown as it stands
                return Message(str(orjson.loads(publication.payload)).encode(), text=True)
        return Message(publication.payload, text=publication.kind is not Kind.BINARY)

    def decode_text(self, payload: bytes) -> Publish:
        """Every text message is published as it is."""
        return Publish(Kind.TEXT, payload, len(payload))

    def decode_binary(self, payload: bytes) -> Publish:
        """Every binary message is published as it is."""
        return Publish(Kind.BINARY, payload, len(payload))
