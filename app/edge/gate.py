"""Who calls REST, and how often it may: known before a byte of the body is read or parsed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.errors import RateLimited, TocsinError
from app.core.identity import Identity
from app.core.limits import Meter
from app.edge.access import Access
from app.edge.answers import answer
from app.edge.loopback import network_of
from app.engine.admissions import Admissions

PREFIX = "/api/v1/"
_CONNECT = PREFIX + "connect"
_SIZE = 65_536
"""Bytes of a body that cost as much to read as a message."""
_READS = frozenset({"GET", "HEAD"})


@dataclass(frozen=True, slots=True)
class Caller:
    """One who calls.

    Attributes:
        meter: counts what it does; None: it has no limits.
    """

    identity: Identity
    meter: Meter | None

    def charge(self, messages: int) -> None:
        """Count messages.

        Raises:
            RateLimited: too many; none was counted.
        """
        if self.meter is not None and messages > 0:
            now = asyncio.get_running_loop().time()
            _refuse_for(self.meter, self.meter.publish(now, messages), now)


def caller(request: Request) -> Caller:
    """Whom the gate has let through."""
    found: Caller = request.scope["tocsin.caller"]
    return found


class Gate:
    """ASGI middleware. What a user does by REST counts with what its sockets do; an anonymous caller is known by its
    address. One that may administer has no limits.
    """

    def __init__(self, app: ASGIApp, access: Access, admissions: Admissions) -> None:
        self._app = app
        self._access = access
        self._admissions = admissions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] == "http" and scope["path"].startswith(PREFIX) and scope["path"] != _CONNECT:
            try:
                scope["tocsin.caller"] = await self._admit(scope)
            except TocsinError as error:
                await answer(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _admit(self, scope: Scope) -> Caller:
        reads = scope["method"] in _READS
        identity = await self._access.identify(scope, cookie=reads)
        client = scope.get("client")
        meter = None
        if not identity.admin:
            meter = self._admissions.meter(identity, network_of(client[0]) if client else "")
        if meter is not None:
            now = asyncio.get_running_loop().time()
            wait = meter.command(now) if reads else meter.publish(now, 1 + _declared(scope) // _SIZE)
            _refuse_for(meter, wait, now)
        return Caller(identity, meter)


def _declared(scope: Scope) -> int:
    """Bytes of the body as the request says; one that comes in chunks counts as a large one."""
    headers = dict(scope["headers"])
    if b"transfer-encoding" in headers:
        return 16 * _SIZE
    declared = headers.get(b"content-length", b"0")
    return int(declared) if declared.isdigit() and len(declared) < 16 else 0


def _refuse_for(meter: Meter, wait: float, now: float) -> None:
    if wait:
        meter.refuse(now)
        raise RateLimited("too fast: slow down", retry_after=round(wait, 3))
