"""The wiring: settings become objects, objects are given to each other. The only place that names a concrete broker.

`app` is what a server imports: `uvicorn app.main:app --workers 4` works as it stands, and
`--ws app.sockets.uvicorn:WebSocketProtocol` turns on the fast path, `--http app.sockets.handshake:HttpProtocol` the
deadline of handshakes. `tocsin serve` does it all.
"""

from __future__ import annotations

import random
import secrets
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Receive, Scope, Send

from app import __version__, logs
from app.brokers.presence import RedisPresence
from app.brokers.redis import RedisBroker
from app.core.errors import Code, TocsinError
from app.core.limits import Rate, Rates
from app.core.messages import Welcome
from app.edge import documents
from app.edge.access import Access
from app.edge.administration import Administration
from app.edge.answers import answer, refusal
from app.edge.entrance import Entrance
from app.edge.gate import Gate
from app.edge.http import BodyLimit, Rest, describe
from app.edge.keys import Tokens
from app.edge.ops import HEALTH, Ops
from app.edge.sse import StreamEdge
from app.edge.websocket import WebSocketEdge
from app.engine.admissions import Admissions
from app.engine.catchup import CatchUp
from app.engine.hub import Hub
from app.engine.metrics import snapshot_of
from app.engine.presence import Presence
from app.engine.reaper import Reaper
from app.engine.refusals import Refusals
from app.engine.roster import Roster
from app.engine.worker import Worker
from app.protocols import BEARER
from app.protocols.native import Native
from app.protocols.plain import Plain
from app.protocols.sse import EventStream
from app.settings import Settings, describe_problems
from app.sockets import HANDSHAKE_SECONDS, Limits

log = structlog.get_logger("tocsin")

DESCRIPTION = (
    "Publish to channels and read their logs. Sockets connect to `/ws`. Errors have the shape "
    '`{"error": {"code", "message"}}`; 503 carries Retry-After.'
)
STARTUP_FAILURE = 3
"""The exit status that tells uvicorn's supervisor not to try again."""


class Tocsin(FastAPI):
    """FastAPI with `/ws` in front: an upgrade does not pass through the middleware of the rest."""

    websocket_edge: WebSocketEdge
    refusal: str | None = None
    """Why the service cannot start, if it cannot."""
    handshake_seconds: float
    """How long a request may take to arrive."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, socket or lifespan."""
        if scope["type"] == "websocket" and scope["path"] == "/ws":
            await self.websocket_edge(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] not in HEALTH:
            try:
                self.websocket_edge.access.admit(scope)
            except TocsinError as error:
                await answer(error)(scope, receive, send)
            else:
                await super().__call__(scope, receive, send)
        elif scope["type"] == "lifespan" and self.refusal is not None:
            await receive()
            await send({"type": "lifespan.startup.failed", "message": self.refusal})
        else:
            if scope["type"] == "lifespan" and "state" in scope:  # what the server's protocols are made with
                scope["state"][HANDSHAKE_SECONDS] = self.handshake_seconds
            await super().__call__(scope, receive, send)


def create_app(settings: Settings) -> Tocsin:
    """The whole service on one set of settings; connects to Redis when the server starts its lifespan."""
    url = None if settings.redis_url is None else settings.redis_url.get_secret_value()
    broker = RedisBroker(
        url or "redis://127.0.0.1:6379/0",
        settings.redis_prefix,
        settings.channels,
        settings.key_seconds,
        ack=settings.ack,
        ack_timeout=settings.ack_timeout,
    )
    hub = Hub(broker)
    catchup = CatchUp(broker, hub)
    roster = Roster(
        ping_seconds=settings.ping_seconds,
        stall_seconds=settings.stall_seconds,
        drain_seconds=settings.drain_seconds,
        chance=random.random,
    )
    incarnation = f"{settings.node}-{secrets.token_hex(8)}"
    refusals = Refusals(broker, settings.redis_prefix, roster.disconnect, time.monotonic)
    admissions = Admissions(
        broker,
        settings.redis_prefix,
        clock=time.time,
        per_address=settings.max_connections_per_address,
        per_user=settings.max_connections_per_user,
        connects=Rate(settings.connect_rate, max(1.0, settings.connect_rate)),
        rates=Rates(
            publish=Rate(settings.publish_rate, settings.publish_burst),
            command=Rate(settings.command_rate, max(1.0, 2 * settings.command_rate)),
        ),
    )
    rooms = RedisPresence(broker.script, settings.redis_prefix)
    presence = Presence(rooms, hub, incarnation)

    def snapshot() -> dict[str, Any]:
        return snapshot_of(
            hub=hub,
            catchup=catchup,
            roster=roster,
            admissions=admissions,
            refusals=refusals,
            presence=presence,
            lag=worker.lag,
            store=_store_counts(broker),
            problems=worker.problems,
        )

    worker = Worker(
        store=broker,
        hub=hub,
        roster=roster,
        admissions=admissions,
        refusals=refusals,
        presence=presence,
        reaper=Reaper(rooms, hub.spawn, presence.add_reaped),
        prefix=settings.redis_prefix,
        node=settings.node,
        slots=settings.workers,
        incarnation=incarnation,
        snapshot=snapshot,
    )
    access = Access(
        keys=settings.api_keys,
        origins=frozenset(settings.origins),
        anonymous=settings.allow_anonymous,
        configured=settings.auth_configured,
        tokens=None if settings.token_rules is None else Tokens(settings.token_rules),
        cookie=settings.cookie,
        refuse=refusals.check,
    )
    entrance = Entrance(roster, admissions, settings.max_connections, worker.problems, refusals.refuses)
    limits = Limits(message=settings.max_message, high_mark=settings.high_mark, frame_rate=settings.frame_rate)
    websocket_edge = WebSocketEdge(
        access=access,
        entrance=entrance,
        plain=Plain(),
        native=Native(),
        rules=settings.channels,
        hub=hub,
        catchup=catchup,
        broker=broker,
        roster=roster,
        admissions=admissions,
        presence=presence,
        limits=limits,
        max_subscriptions=settings.max_subscriptions,
        welcome=lambda client, user: Welcome(
            client,
            user,
            f"{settings.node}/{worker.slot if worker.slot >= 0 else '-'}",
            settings.ping_seconds,
            settings.max_message,
            settings.key_seconds,
        ),
        new_client=_new_client,
    )
    streams = StreamEdge(
        access=access,
        entrance=entrance,
        one=EventStream(several=False),
        many=EventStream(several=True),
        rules=settings.channels,
        hub=hub,
        catchup=catchup,
        broker=broker,
        roster=roster,
        admissions=admissions,
        limits=limits,
        new_client=_new_client,
        chance=random.random,
    )
    rest = Rest(settings.channels, broker, settings.max_message, presence)
    administration = Administration(settings.channels, broker, worker, refusals)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        logs.configure(settings.log_format, settings.log_level)
        hub.start(catchup.scattered, worker.on_control, worker.on_lost, presence.received)
        broker.start(hub, incarnation)
        worker.start()
        yield
        await worker.stop()
        await hub.close()
        await broker.close()
        if access.tokens is not None:
            await access.tokens.close()

    app = Tocsin(
        title="Tocsin",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url="/docs" if settings.docs else None,
        redoc_url=None,
        openapi_url="/openapi.json" if settings.docs else None,
    )
    app.websocket_edge = websocket_edge
    app.handshake_seconds = settings.handshake_seconds
    if url is None:
        app.refusal = "no Redis is named: set TOCSIN_REDIS_URL, or run `tocsin serve`, which brings its own"
    app.add_middleware(BodyLimit)
    app.add_middleware(Gate, access=access, admissions=admissions)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type", "idempotency-key", "last-event-id", "x-api-key"],
            allow_credentials=settings.cookie is not None,
            expose_headers=["retry-after"],
            max_age=600,
        )
    app.include_router(rest.router(_connect_check(websocket_edge)))
    app.include_router(administration.router())
    app.include_router(streams.router())
    metrics_token = None if settings.metrics_token is None else settings.metrics_token.get_secret_value()
    app.include_router(Ops(worker, metrics_token).router())
    if settings.docs:
        documents.describe_security(app)
        app.include_router(documents.router(__version__))
    _answer_errors(app)
    return app


def _new_client() -> str:
    """A client id that nobody guesses."""
    return secrets.token_urlsafe(12)


def _store_counts(broker: RedisBroker) -> dict[str, float]:
    counters = broker.counters()
    return {
        "published": counters.published,
        "publish_batches": counters.batches,
        "received": counters.received,
        "store_errors": counters.errors,
        "reconnects": counters.reconnects,
        "probe_seconds": counters.probe_seconds,
    }


def _connect_check(edge: WebSocketEdge) -> Callable[[Request], Awaitable[None]]:
    async def check(request: Request) -> None:
        offered = [
            name.strip() for header in request.headers.getlist("sec-websocket-protocol") for name in header.split(",")
        ]
        # A page cannot set that header; a token does not come in a URL, though.
        asked = request.query_params.get("protocols", "")
        offered += [name.strip() for name in asked.split(",") if name and not name.strip().startswith(BEARER)]
        await edge.check(request.scope, request.query_params, offered)

    return check


def _answer_errors(app: FastAPI) -> None:
    """Every refusal in the error model, also those of the framework."""

    @app.exception_handler(TocsinError)
    async def refuse(_: Request, error: TocsinError) -> Response:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def mismatch(_: Request, error: RequestValidationError) -> Response:
        return refusal(422, Code.BAD_REQUEST, describe(error.errors()))

    @app.exception_handler(HTTPException)
    async def framework(_: Request, error: HTTPException) -> Response:
        code = {404: Code.NOT_FOUND, 413: Code.TOO_LARGE}.get(error.status_code, Code.BAD_REQUEST)
        return refusal(error.status_code, code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def fault(_: Request, error: Exception) -> Response:
        log.error("a request failed", exc_info=error)
        return refusal(500, Code.INTERNAL, "the service failed to answer this request; it is in its log")


def _settings() -> Settings:
    """The settings of this process, or its end with one line a problem."""
    try:
        return Settings()
    except ValidationError as error:
        print("\n".join(describe_problems(error)), file=sys.stderr)  # noqa: T201 - before there is a log
        raise SystemExit(STARTUP_FAILURE) from None


app = create_app(_settings())
