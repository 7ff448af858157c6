"""REST: publish and read; one error model; bodies bounded while they stream."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json as stdlib_json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.responses import Response
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.brokers import Broker
from app.core.errors import BadRequest, Code, TocsinError, TooLarge
from app.core.identity import Identity, rule_of
from app.core.messages import ChannelRule, Draft, Kind, Position, Published, Verb
from app.edge.answers import json, refusal
from app.edge.gate import caller
from app.edge.models import (
    CHANNEL_FORM,
    CURSOR_FORM,
    Absent,
    Addressed,
    Batch,
    BatchResults,
    Body,
    ErrorModel,
    History,
    Id,
    Key,
    MembersModel,
    PublishedModel,
)
from app.engine.presence import Presence
from app.protocols import native

BODY_LIMIT = 1_048_576
PAGE_BYTES = 1_048_576
DEPTH = 32
_BODILESS = {"GET", "HEAD", "OPTIONS", "DELETE"}

SLICE = 64
"""Messages of a batch that are taken in one turn of the loop."""
Outcome = asyncio.Future[Published | TocsinError]
ChannelPath = Annotated[
    str,
    Path(description="1 to 128 of A-Z a-z 0-9 _ . : @ -", examples=["room:42"], json_schema_extra=CHANNEL_FORM),
]
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorModel, "description": description}
    for status, description in {
        400: "Malformed: channel, position, key.",
        401: "Credentials are needed, or not known.",
        403: "Known, and not allowed.",
        413: "A message or body over its limit.",
        415: "The body is not JSON.",
        429: "Too fast. Retry-After says when to try again.",
        422: "The body does not match its model.",
        503: "The store is away; without a key the outcome is unknown. Retry-After says when to try again.",
    }.items()
}


@dataclass(frozen=True, slots=True)
class Rest:
    """The handlers of REST.

    Attributes:
        max_message: bytes of a message at most; base64 counts as encoded.
        presence: who is where.
    """

    rules: Sequence[ChannelRule]
    broker: Broker
    max_message: int
    presence: Presence

    def router(self, connect: Callable[[Request], Awaitable[None]]) -> APIRouter:
        """The routes; `connect` checks a request as the upgrade of `/ws` would be."""
        router = APIRouter(prefix="/api/v1", responses=ERRORS)

        @router.post(
            "/channels/{channel}/messages",
            status_code=201,
            response_model=PublishedModel,
            responses={
                200: {"model": PublishedModel, "description": "The key was known: the first result."},
                409: {"model": ErrorModel, "description": "The key was used with another body."},
            },
            tags=["messages"],
        )
        async def publish(
            request: Request,
            channel: ChannelPath,
            body: Body,
            idempotency_key: Annotated[Key | Absent, Header()] = None,
        ) -> Response:
            """Publish one message. It is in the log before the answer, and on its way to every subscriber."""
            identity = caller(request).identity
            if idempotency_key is not None:
                if body.key not in {None, idempotency_key}:
                    raise BadRequest("`key` and Idempotency-Key differ")
                body.key = idempotency_key
            outcome = await self._store(self._draft(identity, channel, body))
            if isinstance(outcome, TocsinError):
                raise outcome
            return json(200 if outcome.duplicate else 201, _published(outcome))

        @router.post("/messages", response_model=BatchResults, tags=["messages"])
        async def publish_batch(request: Request, body: Batch) -> Response:
            """Publish up to 1,000 messages, in order. Each succeeds or fails by itself."""
            identity = caller(request).identity
            caller(request).charge(len(body.messages) - 1)  # one is charged at the gate
            under_way: list[Outcome] = []
            for item in body.messages:
                under_way.append(self._store_checked(identity, item))
                if len(under_way) % SLICE == 0:
                    await asyncio.sleep(0)  # others have their turn
            outcomes = await asyncio.gather(*under_way)
            results = [
                {"error": native.error_object(outcome)} if isinstance(outcome, TocsinError) else _published(outcome)
                for outcome in outcomes
            ]
            return json(200, {"results": results})

        @router.get(
            "/channels/{channel}/messages",
            response_model=History,
            responses={410: {"model": ErrorModel, "description": "The log no longer reaches back to `since`."}},
            tags=["messages"],
        )
        async def read(
            request: Request,
            channel: ChannelPath,
            since: Annotated[Id | Absent, Query(description="Only messages after this id.")] = None,
            before: Annotated[Id | Absent, Query(description="Only messages before this id.")] = None,
            limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        ) -> Response:
            """Read the log: with `since` the first messages after it, else the newest ones; ascending."""
            self._require(caller(request).identity, Verb.HISTORY, channel)
            extract = await self.broker.extract(
                channel,
                None if since is None else Position.parse(since),
                None if before is None else Position.parse(before),
                limit,
                PAGE_BYTES,
            )
            messages = [native.message(channel, item) for item in extract.publications]
            return json(200, {"messages": messages, "position": str(extract.position), "complete": extract.complete})

        @router.get("/channels/{channel}/members", response_model=MembersModel, tags=["presence"])
        async def members(
            request: Request,
            channel: ChannelPath,
            limit: Annotated[int, Query(ge=1, le=1000)] = 100,
            cursor: Annotated[
                str | Absent, Query(max_length=512, description="Of the page before.", json_schema_extra=CURSOR_FORM)
            ] = None,
        ) -> Response:
            """Who is in a channel. Members that come or go between two pages may be missed, or come twice."""
            self._require(caller(request).identity, Verb.PRESENCE, channel)
            return json(200, native.members_object(await self.presence.members(channel, limit, cursor)))

        @router.get("/connect", status_code=204, tags=["connections"])
        async def check_connect(request: Request) -> Response:
            """Answer as the upgrade of `/ws` with the same query would: 204, or its refusal, which browsers hide. What
            would stand in the upgrade's `Sec-WebSocket-Protocol` may come as the query `protocols`, but for a token:
            that is shown as `Authorization: Bearer`.
            """
            await connect(request)
            return Response(status_code=204)

        return router

    def _require(self, identity: Identity, verb: Verb, channel: str) -> ChannelRule:
        rule = rule_of(self.rules, channel)
        identity.require(verb, channel, rule)
        return rule

    def _draft(self, identity: Identity, channel: str, body: Body) -> Draft:
        rule = self._require(identity, Verb.PUBLISH, channel)
        kind, payload, size = _payload(body)
        if size > self.max_message:
            raise TooLarge(f"a message has at most {self.max_message} bytes")
        ephemeral = body.ephemeral or rule.history == 0
        return Draft(
            channel,
            kind,
            payload,
            user=identity.user,
            scope=identity.scope,
            key=None if ephemeral else body.key,
            ephemeral=ephemeral,
        )

    def _store(self, draft: Draft) -> Outcome:
        outcome: Outcome = asyncio.get_running_loop().create_future()

        def receive(result: Published | TocsinError) -> None:
            if not outcome.done():
                outcome.set_result(result)

        self.broker.publish(draft, receive)
        return outcome

    def _store_checked(self, identity: Identity, item: Any) -> Outcome:
        refused: TocsinError
        try:
            body = Addressed.model_validate(item)
            return self._store(self._draft(identity, body.channel, body))
        except ValidationError as error:
            refused = BadRequest(describe(error.errors(include_url=False, include_input=False)))
        except TocsinError as error:
            refused = error
        outcome: Outcome = asyncio.get_running_loop().create_future()
        outcome.set_result(refused)
        return outcome


def _published(outcome: Published) -> dict[str, Any]:
    return {"id": None if outcome.position is None else str(outcome.position), "duplicate": outcome.duplicate}


def _payload(body: Body) -> tuple[Kind, bytes, int]:
    """Kind, payload, and the size that counts against the limit."""
    if body.base64 is not None:
        try:
            return Kind.BINARY, base64.b64decode(body.base64, validate=True), len(body.base64)
        except (binascii.Error, ValueError):
            raise BadRequest("`base64` is not base64 (RFC 4648 section 4)") from None
    if _too_deep(body.data):
        raise BadRequest(f"`data` is nested deeper than {DEPTH} levels")
    try:
        text = stdlib_json.dumps(body.data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        payload = text.encode()
    except ValueError:
        raise BadRequest("`data` holds what JSON cannot: NaN, an infinite number or half a surrogate pair") from None
    return Kind.JSON, payload, len(payload)


def _too_deep(data: Any) -> bool:
    level: list[Any] = [data]
    for _ in range(DEPTH):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
    return any(isinstance(value, dict | list) for value in level)


def describe(errors: Sequence[Mapping[str, Any]]) -> str:
    """Validation errors in one sentence each, without the values."""
    return "; ".join(
        f"{'.'.join(str(part) for part in error['loc'] if part != 'body') or 'body'}: {error['msg']}"
        for error in errors
    )


class BodyLimit:
    """Refuses bodies that are not JSON (415) or grow over the limit while they stream (413)."""

    def __init__(self, app: ASGIApp, limit: int = BODY_LIMIT) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, counting."""
        if scope["type"] != "http" or scope["method"] in _BODILESS:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            await refusal(415, Code.UNSUPPORTED_TYPE, "send JSON with `Content-Type: application/json`")(
                scope, receive, send
            )
            return
        declared = headers.get("content-length", "0")
        sentence = f"a body has at most {self._limit} bytes"
        if declared.isdigit() and int(declared) > self._limit:
            await refusal(413, Code.TOO_LARGE, sentence, {"connection": "close"})(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._limit:
                raise HTTPException(413, sentence, {"connection": "close"})
            return message

        await self._app(scope, counted, send)
