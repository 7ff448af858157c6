"""Native: messages as JSON objects with ids. REST answers with the same objects."""

from __future__ import annotations

import base64
from typing import Any

import orjson

from app.core.messages import Kind, Publication


def message(channel: str, publication: Publication) -> dict[str, Any]:
    """The native message object of a publication: `data` for text and JSON, `base64` for binary.

    JSON stays the text that was published (an `orjson.Fragment`): serialise with orjson.
    """
    attributes = publication.read_attributes()
    found: dict[str, Any] = {
        "type": "message",
        "channel": channel,
        "id": None if publication.position is None else str(publication.position),
    }
    match publication.kind:
        case Kind.JSON:
            found["data"] = orjson.Fragment(publication.payload)
        case Kind.BINARY:
            found["base64"] = base64.b64encode(publication.payload).decode()
        case _:
            found["data"] = publication.payload.decode()
    if found["id"] is None:
        del found["id"]
    found["from"] = attributes.get("c")
    found["user"] = attributes.get("u")
    found["at"] = attributes.get("t")
    return found
