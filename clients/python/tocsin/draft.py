"""A message that is to be published, checked and encoded before anything is done with it, on the wire and over HTTP."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from tocsin import frames
from tocsin.errors import BadRequest


@dataclass(frozen=True, slots=True)
class Draft:
    """One message.

    Attributes:
        body: its data as members of a JSON object.
        size: of the data in bytes, as the service counts it.
        key: names it; None for an ephemeral one, which has none and is not repeated.
    """

    channel: str
    body: str
    size: int
    key: str | None


def draft(channel: str, data: Any, key: str | None, chance: random.Random, *, ephemeral: bool) -> Draft:
    """Check and encode a message, and name it where it has no key.

    Raises:
        TypeError, ValueError: `data` is no JSON.
        BadChannel, BadRequest: the name, the key.
    """
    frames.check_channel(channel)
    if ephemeral and key is not None:
        raise BadRequest("an ephemeral message has no key: it is not stored")
    if not ephemeral:
        key = f"{chance.getrandbits(128):032x}" if key is None else frames.check_key(key)
    return Draft(channel, *frames.body(data), key)
