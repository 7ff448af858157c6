"""`/ws`: negotiate, admit, open the channel, accept, hand over.

The 101 goes out only when the channel is live on this worker. On our own server the endpoint then returns and its task
is freed; elsewhere it drives the same connection from a receive loop.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from app.brokers import Broker
from app.core.errors import BadRequest, TocsinError
from app.core.identity import Identity, rule_of
from app.core.messages import ChannelRule, Position, Subscribe, Verb, Welcome
from app.core.session import NativeSession, PlainSession
from app.edge.access import Access
from app.edge.answers import answer
from app.edge.entrance import Entrance, address_of
from app.engine.admissions import Admissions
from app.engine.catchup import CatchUp
from app.engine.connection import Connection
from app.engine.conversation import NativeConnection
from app.engine.hub import Hub
from app.engine.presence import Presence
from app.engine.roster import Roster
from app.protocols import Codec, Conversation, negotiate
from app.sockets import EXTENSION, Handover, Limits
from app.sockets.asgi import AsgiSocket

FRAME_SLACK = 4096
"""Bytes of a native frame around its `data`."""
Drive = Callable[[], Awaitable[None]] | None
DEFAULT_CHANNEL = "lobby"
HISTORY = 1000


@dataclass(frozen=True, slots=True)
class Request:
    """What an upgrade asks for, checked.

    Attributes:
        subscribe: the one channel of a plain socket and where to begin; None for native, which asks in frames.
        address: from where it comes, as far as proxies are trusted.
    """

    identity: Identity
    codec: Codec
    subprotocol: str | None
    subscribe: Subscribe | None = None
    rule: ChannelRule | None = None
    echo: bool = True
    address: str = ""


@dataclass(frozen=True, slots=True)
class WebSocketEdge:
    """The endpoint; an ASGI application for WebSocket scopes.

    Attributes:
        plain: the codec for who offers none.
        native: the codec with answers.
        entrance: whether there is room.
        rules: channel rules.
        limits: of each plain socket; a native frame may have `FRAME_SLACK` bytes more.
        max_subscriptions: channels of a native socket at most.
        new_client: an unguessable client id.
        welcome: the first event of a native session, for a client id and a user.
    """

    access: Access
    entrance: Entrance
    plain: Codec
    native: Conversation
    rules: Sequence[ChannelRule]
    hub: Hub
    catchup: CatchUp
    broker: Broker
    roster: Roster
    admissions: Admissions
    presence: Presence
    limits: Limits
    max_subscriptions: int
    new_client: Callable[[], str]
    welcome: Callable[[str, str | None], Welcome]

    async def check(self, scope: Scope, query: Mapping[str, str], offered: Sequence[str]) -> Request:
        """Everything that can be refused before the upgrade without asking the store.

        Raises:
            TocsinError: with the HTTP status of the refusal.
        """
        self.access.admit(scope)
        codec, subprotocol = negotiate(offered, (self.plain, self.native))
        identity = await self.access.identify(scope, offered)
        request = Request(identity, codec, subprotocol, address=address_of(scope))
        if codec is self.plain:
            request = self._check_plain(request, query)
        self.entrance.check(identity, request.address)
        return request

    def _check_plain(self, request: Request, query: Mapping[str, str]) -> Request:
        channel = query.get("channel", DEFAULT_CHANNEL)
        rule = rule_of(self.rules, channel)
        history = _number(query.get("history", "0"), HISTORY)
        since = Position.parse(query["since"]) if query.get("since") else None
        request.identity.require(Verb.SUBSCRIBE, channel, rule)
        if history and since is None:
            request.identity.require(Verb.HISTORY, channel, rule)
        echo = _flag(query.get("echo", "true"))
        return replace(request, subscribe=Subscribe(channel, None, since, history), rule=rule, echo=echo)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one upgrade. What is under way counts against the capacity."""
        websocket = WebSocket(scope, receive, send)
        try:
            self.entrance.knock(address_of(scope))
            request = await self.check(scope, websocket.query_params, scope.get("subprotocols", ()))
            with self.entrance.opening(request.identity, request.address):
                start = self._start_native if request.subscribe is None else self._start_plain
                drive = await start(websocket, request, receive, send)
        except TocsinError as error:
            self.admissions.refused += 1
            await deny(websocket, error)
            return
        if drive is not None:
            await drive()

    async def _start_native(self, websocket: WebSocket, request: Request, receive: Receive, send: Send) -> Drive:
        await websocket.accept(request.subprotocol)
        client = self.new_client()
        session = NativeSession(
            client,
            request.identity,
            self.rules,
            self.limits.message,
            self.max_subscriptions,
            meter=self.admissions.meter(request.identity),
        )
        connection = NativeConnection(
            session=session,
            codec=self.native,
            hub=self.hub,
            catchup=self.catchup,
            broker=self.broker,
            roster=self.roster,
            admissions=self.admissions,
            presence=self.presence,
            verify=self.access.verify,
            welcome=replace(self.welcome(client, request.identity.user), expires_at=request.identity.expires_at),
            address=self.entrance.counted(request.address),
        )
        limits = replace(self.limits, message=self.limits.message + FRAME_SLACK)
        return self._hand_over(connection, limits, websocket.scope, receive, send)

    async def _start_plain(self, websocket: WebSocket, request: Request, receive: Receive, send: Send) -> Drive:
        """The 101 goes out when the channel is live; what is published from the position on follows it."""
        subscribe, rule = request.subscribe, request.rule
        assert subscribe is not None
        assert rule is not None
        channel = await self.hub.open(subscribe.channel)
        held = True
        try:
            if subscribe.since is not None:
                resumed, follower = await self.catchup.resume(channel, subscribe.since)
            else:
                resumed, follower = await self.catchup.begin(channel, subscribe.history)
            await websocket.accept(request.subprotocol)
            connection = Connection(
                session=PlainSession(
                    self.new_client(),
                    request.identity,
                    subscribe.channel,
                    rule,
                    self.admissions.meter(request.identity),
                ),
                codec=request.codec,
                hub=self.hub,
                catchup=self.catchup,
                broker=self.broker,
                roster=self.roster,
                admissions=self.admissions,
                address=self.entrance.counted(request.address),
            )
            drive = self._hand_over(connection, self.limits, websocket.scope, receive, send)
            connection.opened(subscribe, resumed)
            connection.hear(channel, follower, echo=request.echo)
            held = False
        finally:
            if held:
                self.hub.release(channel)
        return drive

    def _hand_over(self, connection: Connection, limits: Limits, scope: Scope, receive: Receive, send: Send) -> Drive:
        """Give the connection its socket. Returns what drives it, where the server does not."""
        handover: Handover | None = scope.get("extensions", {}).get(EXTENSION)
        if handover is not None:
            connection.open(handover(connection, limits))
            drive = None
        else:
            socket = AsgiSocket(receive, send, limits)
            connection.open(socket)
            drive = partial(socket.run, connection)
        self.entrance.look_again(connection)
        return drive


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
