"""Tocsin, the client: `connect` for asyncio, `Publisher` and `AsyncPublisher` for REST.

async with tocsin.connect("ws://127.0.0.1:8000/ws") as client:
    async with client.subscribe("room:42") as room:
        await room.publish({"text": "hi"})
        async for event in room:
            print(event)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tocsin.chances import Chances
from tocsin.client import Client
from tocsin.connecting import Connecting, connect
from tocsin.driver import Token
from tocsin.errors import (
    AlreadySubscribed,
    BadChannel,
    BadPosition,
    BadRequest,
    Closed,
    Conflict,
    Draining,
    Forbidden,
    Gone,
    NotFound,
    NotSubscribed,
    OutboxFull,
    PublishTimeout,
    RateLimited,
    Stopped,
    Timeout,
    TocsinError,
    TooLarge,
    TooManySubscriptions,
    Unauthorized,
    Unavailable,
    UnknownType,
    UnsupportedType,
)
from tocsin.events import Ack, Attendance, Change, Event, Gap, Member, Members, Message, Page, Presence, State
from tocsin.line import Backoff
from tocsin.plain import PlainClient
from tocsin.posting import Post
from tocsin.room import Room, Subscribing

if TYPE_CHECKING:
    from tocsin.publisher import AsyncPublisher, Publisher

__version__ = "0.1.0"
__all__ = [
    "Ack",
    "AlreadySubscribed",
    "AsyncPublisher",
    "Attendance",
    "Backoff",
    "BadChannel",
    "BadPosition",
    "BadRequest",
    "Chances",
    "Change",
    "Client",
    "Closed",
    "Conflict",
    "Connecting",
    "Draining",
    "Event",
    "Forbidden",
    "Gap",
    "Gone",
    "Member",
    "Members",
    "Message",
    "NotFound",
    "NotSubscribed",
    "OutboxFull",
    "Page",
    "PlainClient",
    "Post",
    "Presence",
    "PublishTimeout",
    "Publisher",
    "RateLimited",
    "Room",
    "State",
    "Stopped",
    "Subscribing",
    "Timeout",
    "TocsinError",
    "Token",
    "TooLarge",
    "TooManySubscriptions",
    "Unauthorized",
    "Unavailable",
    "UnknownType",
    "UnsupportedType",
    "connect",
]


def __getattr__(name: str) -> Any:
    """The publishers, whose httpx only those need who use them."""
    if name in {"AsyncPublisher", "Publisher"}:
        from tocsin import publisher  # noqa: PLC0415 - on demand

        return getattr(publisher, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
