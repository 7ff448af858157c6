"""REST for those who run the service: list and clear channels, disconnect users, revoke tokens. Needs `admin`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response

from app.brokers import Broker
from app.core.errors import Forbidden
from app.core.identity import rule_of
from app.core.messages import ChannelRule
from app.edge.answers import json
from app.edge.gate import caller
from app.edge.http import ERRORS, ChannelPath
from app.edge.models import USER_FORM, Channels, Disconnect, ErrorModel, Revoke
from app.engine.admissions import LEEWAY_SECONDS
from app.engine.refusals import Refusals
from app.engine.worker import Worker

REVOKED_SECONDS = 30 * 86_400
"""For how long a token is refused whose end is not given."""
_NOBODY: dict[int | str, dict[str, Any]] = {
    404: {"model": ErrorModel, "description": "No user or token can have such a name."}
}
UserPath = Annotated[
    str,
    Path(
        min_length=1, max_length=256, description="`sub` of its tokens.", examples=["ada"], json_schema_extra=USER_FORM
    ),
]
TokenPath = Annotated[
    str,
    Path(
        min_length=1, max_length=256, description="`jti` of the token.", examples=["5f0c"], json_schema_extra=USER_FORM
    ),
]


@dataclass(frozen=True, slots=True)
class Administration:
    """The handlers.

    Attributes:
        worker: knows the channels of all workers.
        refusals: revocations.
    """

    rules: Sequence[ChannelRule]
    broker: Broker
    worker: Worker
    refusals: Refusals

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(prefix="/api/v1", responses=ERRORS, tags=["administration"])

        @router.delete("/channels/{channel}/messages", status_code=204)
        async def clear(request: Request, channel: ChannelPath) -> Response:
            """Forget the log of a channel. Its subscribers are told. Needs an API key with `admin`."""
            _require_admin(request)
            rule_of(self.rules, channel)
            await self.broker.clear(channel)
            return Response(status_code=204)

        @router.get("/channels", response_model=Channels)
        async def channels(
            request: Request,
            prefix: Annotated[str, Query(max_length=128)] = "",
            cursor: Annotated[str, Query(max_length=128)] = "",
        ) -> Response:
            """Channels with a subscriber on any worker. Needs an API key with `admin`."""
            _require_admin(request)
            found, following = await self.worker.channels(prefix, cursor)
            listed = [{"channel": name, "subscribers": count} for name, count in found]
            return json(200, {"channels": listed, "cursor": following})

        @router.post("/users/{user:path}/disconnect", status_code=202, responses=_NOBODY)
        async def disconnect(request: Request, user: UserPath, body: Disconnect) -> Response:
            """Close all sockets of a user, on every worker, with 4403, and refuse it for `refuse_seconds`. Needs an API
            key with `admin`.
            """
            _require_admin(request)
            await self.refusals.refuse_user(user, body.refuse_seconds)
            return json(202, {})

        @router.post("/tokens/{jti:path}/revoke", status_code=202, responses=_NOBODY)
        async def revoke(request: Request, jti: TokenPath, body: Revoke) -> Response:
            """Refuse one token, and close its sockets with 4403 on every worker. Needs an API key with `admin`."""
            _require_admin(request)
            until = time.time() + REVOKED_SECONDS if body.expires_at is None else body.expires_at + LEEWAY_SECONDS
            await self.refusals.refuse_token(jti, until)
            return json(202, {})

        return router


def _require_admin(request: Request) -> None:
    if not caller(request).identity.admin:
        raise Forbidden("administration needs an API key with `admin`")
