"""Tocsin, the client: `connect` for asyncio, `Publisher` and `AsyncPublisher` for REST.

async with tocsin.connect("ws://127.0.0.1:8000/ws") as client:
    async with client.subscribe("room:42") as room:
        await room.publish({"text": "hi"})
        async for event in room:
            print(event)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tocsin.client import Client
from tocsin.connecting import Chances, connect
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
from tocsin.events import Ack, Change, Event, Gap, Member, Members, Message, Page, Presence, State
from tocsin.line import Backoff
from tocsin.plain import PlainClient
from tocsin.room import Room

__version__ = "0.1.0"
