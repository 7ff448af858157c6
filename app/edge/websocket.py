"""`/ws`: negotiate, admit, open the channel, accept, hand over.

The 101 goes out only when the channel is live on this worker. On our own server the endpoint then returns and its task
is freed; elsewhere it drives the same connection from a receive loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from app.brokers import Broker
from app.core.continuity import Gap, Reason
from app.core.errors import BadRequest, Draining, Forbidden, TocsinError, Unavailable
from app.core.identity import Identity, rule_for
from app.core.messages import ChannelRule, Position, Verb, check_channel
from app.core.session import PlainSession
from app.edge.access import Access
from app.edge.answers import answer
from app.engine.catchup import CatchUp
from app.engine.connection import Connection
from app.engine.hub import Hub
from app.engine.roster import Roster
from app.protocols import Codec, negotiate
from app.sockets import EXTENSION, Handover, Limits
from app.sockets.asgi import AsgiSocket

DEFAULT_CHANNEL = "lobby"
HISTORY = 1000


@dataclass(frozen=True, slots=True)
class Request:
    """What an upgrade asks for, checked."""

    identity: Identity
    codec: Codec
    subprotocol: str | None
    channel: str
    rule: ChannelRule
    echo: bool
    history: int
    since: Position | None


@dataclass(frozen=True, slots=True)
class WebSocketEdge:
    """The endpoint; an ASGI application for WebSocket scopes.

    Attributes:
        codecs: the wire formats, the default one first.
        rules: channel rules.
        capacity: sockets this worker holds at most.
        limits: of each socket.
        problems: why upgrades are refused right now.
        new_client: an unguessable client id.
    """

    access: Access
    codecs: Sequence[Codec]
    rules: Sequence[ChannelRule]
    hub: Hub
    catchup: CatchUp
    broker: Broker
    roster: Roster
    capacity: int
    limits: Limits
    problems: Callable[[], list[str]]
    new_client: Callable[[], str]

    def check(self, scope: Scope, query: Mapping[str, str], offered: Sequence[str]) -> Request:
        """Everything that can be refused before the upgrade without asking the store.

        Raises:
            TocsinError: with the HTTP status of the refusal.
        """
        self.access.admit(scope)
        identity = self.access.identify(scope)
        codec, subprotocol = negotiate(offered, self.codecs)
        channel = check_channel(query.get("channel", DEFAULT_CHANNEL))
        rule = rule_for(self.rules, channel)
        if rule is None:
            raise Forbidden("no rule of this service covers this channel")
        history = _number(query.get("history", "0"), HISTORY)
        since = Position.parse(query["since"]) if query.get("since") else None
        identity.require(Verb.SUBSCRIBE, channel, rule)
        if history and since is None:
            identity.require(Verb.HISTORY, channel, rule)
        if self.roster.draining:
            raise Draining("this worker is going away", retry_after=1.0)
        if self.roster.count + self.roster.opening >= self.capacity:
            raise Unavailable("this worker is full", retry_after=5.0)
        if self.problems():
            raise Unavailable("the service is not ready", retry_after=1.0)
        return Request(identity, codec, subprotocol, channel, rule, _flag(query.get("echo", "true")), history, since)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one upgrade."""
        websocket = WebSocket(scope, receive, send)
        try:
            request = self.check(scope, websocket.query_params, scope.get("subprotocols", ()))
        except TocsinError as error:
            await deny(websocket, error)
            return
        opening, held = True, None
        self.roster.opening += 1
        try:
            held = channel = await self.hub.open(request.channel)
            if request.since is not None:
                resumed, follower = await self.catchup.resume(channel, request.since)
            else:
                resumed, follower = await self.catchup.begin(channel, request.history)
            await websocket.accept(request.subprotocol)
            session = PlainSession(self.new_client(), request.identity, request.channel, request.rule)
            connection = Connection(
                session=session,
                codec=request.codec,
                hub=self.hub,
                catchup=self.catchup,
                broker=self.broker,
                roster=self.roster,
            )
            handover: Handover | None = scope.get("extensions", {}).get(EXTENSION)
            if handover is not None:
                socket = handover(connection, self.limits)
                run = None
            else:
                socket = portable = AsgiSocket(receive, send, self.limits)
                run = portable.run
            opening, held = False, None
            self.roster.opening -= 1
            lost = resumed.recovered is False
            gap = Gap(resumed.reason or Reason.DIVERGED, resumed.position) if lost else None
            connection.open(socket, channel, follower, echo=request.echo, gap=gap)
            if run is not None:
                await run(connection)
        except TocsinError as error:
            await deny(websocket, error)
        finally:
            if opening:
                self.roster.opening -= 1
            if held is not None:
                self.hub.release(held)


async def deny(websocket: WebSocket, error: TocsinError) -> None:
    """Refuse the upgrade with an HTTP answer in the error model (ASGI extension websocket.http.response)."""
    response: Response = answer(error)
    if "websocket.http.response" in websocket.scope.get("extensions", {}):
        await websocket.send_denial_response(response)
    else:
        await websocket.close()


def _number(text: str, most: int) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > int(math.log10(most)) + 1 or int(text) > most:
        raise BadRequest(f"`history` is a number from 0 to {most}")
    return int(text)


def _flag(text: str) -> bool:
    if text not in {"true", "false"}:
        raise BadRequest("`echo` is true or false")
    return text == "true"
