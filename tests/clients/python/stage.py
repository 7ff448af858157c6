"""What the tests of the client on real services share."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import jwt

import tocsin
from tests.stage.proxy import Proxy, proxied
from tests.stage.service import Service
from tocsin.line import Backoff

QUICK = Backoff(base=0.05, cap=0.2)
"""So that a test does not wait."""


SECRET = "s" * 40
KEY = "k" * 20


def token(seconds: float, secret: str = SECRET) -> str:
    """A JWT of ada's that allows everything."""
    allowed = {verb: ["*"] for verb in ("publish", "subscribe", "history", "presence")}
    return jwt.encode({"sub": "ada", "exp": time.time() + seconds, "tocsin": allowed}, secret, "HS256")


def url(service: Service, query: str = "") -> str:
    """Address of its WebSockets."""
    return f"ws://127.0.0.1:{service.port}/ws{query}"


def somewhere() -> str:
    """A channel that nobody else uses."""
    return f"room:{secrets.token_hex(6)}"


async def take(room: tocsin.Room, count: int) -> list[tocsin.Event]:
    """The next events."""
    found: list[tocsin.Event] = []
    async with asyncio.timeout(30):
        async for event in room:
            found.append(event)
            if len(found) == count:
                break
    return found


def data_of(events: list[tocsin.Event]) -> list[Any]:
    """What was published."""
    return [event.data for event in events if isinstance(event, tocsin.Message)]


@asynccontextmanager
async def through_proxy(
    service: Service, *, backoff: Backoff = QUICK, **options: Any
) -> AsyncIterator[tuple[Proxy, tocsin.Client]]:
    """A client, and what can cut it off."""
    async with (
        proxied(service.port) as proxy,
        tocsin.connect(f"ws://127.0.0.1:{proxy.port}/ws", backoff=backoff, **options) as client,
    ):
        yield proxy, client
