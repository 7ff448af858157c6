"""`/sse`: admit, open the channels, send the head, hand over.

The head goes out when every channel is live on this worker. On our own server the endpoint then returns and its task is
freed; elsewhere it drives the same connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from app.brokers import Broker
from app.core.continuity import Follower, Resumed
from app.core.errors import Close, TocsinError
from app.core.identity import Identity
from app.core.messages import ChannelRule, Position, Refused, Subscribe
from app.core.session import NativeSession, Say
from app.edge.access import Access
from app.edge.entrance import Entrance, address_of
from app.edge.http import ERRORS
from app.edge.models import CHANNEL_FORM, Absent, ErrorModel
from app.engine.admissions import Admissions
from app.engine.catchup import CatchUp
from app.engine.channel import Channel
from app.engine.hub import Hub
from app.engine.roster import Roster
from app.engine.stream import StreamConnection
from app.protocols.sse import EventStream, read_positions, retry
from app.sockets import EXTENSION, Handover, Limits
from app.sockets.asgi import AsgiStream

CHANNELS = 32
"""Channels of one stream at most."""
MEDIA_TYPE = "text/event-stream"
READY_SECONDS = 3.0
"""How long a stream waits for a worker that has just started, or for a store that is back in a moment."""
_LOOK_SECONDS = 0.05
REFUSALS = (400, 401, 403, 422, 429, 503)
SPREAD_SECONDS = 2.0
"""Over so many seconds more than they must wait the streams of a worker that has died return."""
_HEAD = (
    (b"content-type", MEDIA_TYPE.encode()),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
)
Drive = Callable[[], Awaitable[None]] | None
_Opened = tuple[Channel, Resumed, Follower]


@dataclass(frozen=True, slots=True)
class StreamEdge:
    """The endpoint.

    Attributes:
        entrance: whether there is room.
        one: the codec of a stream with one channel.
        many: the codec of a stream with several.
        rules: channel rules.
        limits: of each stream.
        new_client: an unguessable client id.
        chance: a random number in [0, 1).
    """

    access: Access
    entrance: Entrance
    one: EventStream
    many: EventStream
    rules: Sequence[ChannelRule]
    hub: Hub
    catchup: CatchUp
    broker: Broker
    roster: Roster
    admissions: Admissions
    limits: Limits
    new_client: Callable[[], str]
    chance: Callable[[], float]

    def router(self) -> APIRouter:
        """The route."""
        refusals: dict[int | str, dict[str, Any]] = {status: ERRORS[status] for status in REFUSALS}
        refusals[406] = {"model": ErrorModel, "description": "The client takes no event stream."}
        router = APIRouter(responses=refusals)

        @router.get(
            "/sse",
            response_class=Response,
            responses={200: {"content": {MEDIA_TYPE: {}}, "description": "Events, without end."}},
            tags=["connections"],
        )
        async def listen(
            request: Request,
            channel: Annotated[
                list[str],
                Query(
                    description=f"Channels to hear, at most {CHANNELS}; a repeated one counts once.",
                    json_schema_extra={"items": {"type": "string"} | CHANNEL_FORM, "minItems": 1, "maxItems": CHANNELS},
                ),
            ],
            since: Annotated[
                str | Absent, Query(description="Resume behind this id; of several channels `a=<id>,b=<id>`.")
            ] = None,
            last_event_id: Annotated[
                str | Absent, Header(description="Likewise; what a browser sends when it returns. It wins.")
            ] = None,
        ) -> Response:
            """Messages of some channels as server-sent events: what `EventSource` takes, which resumes by itself."""
            if not _takes_events(request):
                raise HTTPException(406, f"this is {MEDIA_TYPE}, which your request does not accept")
            return _Answer(self, request, list(dict.fromkeys(channel)), last_event_id or since or None)

        return router

    async def serve(
        self, request: Request, channels: Sequence[str], since: str | None, receive: Receive, send: Send
    ) -> None:
        """Serve one stream.

        Raises:
            TocsinError: it is refused.
        """
        address = address_of(request.scope)
        try:
            self.entrance.knock(address)
            await self._wait_until_ready()
            identity = await self.access.identify(request.scope)
            session, commands = self._ask(identity, channels, since)
            self.entrance.check(identity, address)
            with self.entrance.opening(identity, address):
                drive = await self._open(session, commands, request, receive, send)
        except TocsinError:
            self.admissions.refused += 1
            raise
        if drive is not None:
            await drive()

    async def _wait_until_ready(self) -> None:
        """What passes by itself is waited for: a browser's `EventSource` does not return from a 503."""
        for _ in range(round(READY_SECONDS / _LOOK_SECONDS)):
            if not self.entrance.problems() or self.roster.draining:
                break
            await asyncio.sleep(_LOOK_SECONDS)

    def _ask(
        self, identity: Identity, channels: Sequence[str], since: str | None
    ) -> tuple[NativeSession, list[Subscribe]]:
        """A session that has asked for its channels as one that speaks would, and was not refused."""
        session = NativeSession(self.new_client(), identity, self.rules, 0, CHANNELS)
        positions = {} if since is None else read_positions(since, channels)
        commands = [Subscribe(channel, None, positions.get(channel)) for channel in channels]
        for command in commands:
            effect = session.receive(command, 0.0)
            if isinstance(effect, Say) and isinstance(effect.event, Refused):
                raise effect.event.error
        return session, commands

    async def _open(
        self,
        session: NativeSession,
        commands: Sequence[Subscribe],
        request: Request,
        receive: Receive,
        send: Send,
    ) -> Drive:
        """Open the channels, all at once, and begin. Returns what drives the stream, where the server does not."""
        opened: dict[str, _Opened] = {}
        connection = StreamConnection(
            session=session,
            codec=self.one if len(commands) == 1 else self.many,
            hub=self.hub,
            catchup=self.catchup,
            broker=self.broker,
            roster=self.roster,
            admissions=self.admissions,
            address=self.entrance.counted(address_of(request.scope)),
        )
        try:
            for failed in await asyncio.gather(*(self._hold(opened, it) for it in commands), return_exceptions=True):
                if failed is not None:
                    raise failed
            greeting = retry(self.chance() * SPREAD_SECONDS) + b"\n"
            await send({"type": "http.response.start", "status": 200, "headers": list(_HEAD)})
            await send({"type": "http.response.body", "body": greeting, "more_body": True})
            handover: Handover | None = request.scope.get("extensions", {}).get(EXTENSION)
            drive = None
            if handover is not None:
                connection.begin(handover(connection, self.limits), _known(commands, opened))
            else:
                stream = AsgiStream(receive, send, self.limits)
                connection.begin(stream, _known(commands, opened))
                drive = partial(stream.run, connection)
            try:
                self.entrance.look_again(connection)
                for command in commands:
                    channel, resumed, follower = opened[command.channel]
                    if resumed.recovered is False or command is commands[-1]:  # one id says where it stands in all
                        connection.opened(command, resumed)
                    del opened[command.channel]
                    connection.hear(channel, follower)
            except BaseException:
                connection.socket.abort()
                connection.on_closed(Close.ABNORMAL)  # nobody drives a portable socket yet, so it cannot tell
                raise
        finally:
            for channel, _, _ in opened.values():
                self.hub.release(channel)
        return drive

    async def _hold(self, opened: dict[str, _Opened], command: Subscribe) -> None:
        """Open one channel, and say where the stream begins in it."""
        channel = await self.hub.open(command.channel)
        try:
            if command.since is None:
                resumed, follower = await self.catchup.begin(channel, 0)
            else:
                resumed, follower = await self.catchup.resume(channel, command.since)
        except BaseException:
            self.hub.release(channel)
            raise
        opened[command.channel] = channel, resumed, follower


def _known(commands: Sequence[Subscribe], opened: Mapping[str, _Opened]) -> dict[str, Position]:
    """What the client knows of each channel. Where that is of no use any more it stays until the gap is told: a stream
    that breaks before is told again.
    """
    known = {}
    for command in commands:
        _, resumed, _ = opened[command.channel]
        known[command.channel] = (resumed.recovered is False and command.since) or resumed.position
    return known


class _Answer(Response):
    """The response of a stream: its head is sent when the channels are live."""

    def __init__(self, edge: StreamEdge, request: Request, channels: Sequence[str], since: str | None) -> None:
        super().__init__()
        self._serve = partial(edge.serve, request, channels, since)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 the request has it
        """Serve it."""
        await self._serve(receive, send)


def _takes_events(request: Request) -> bool:
    """Whether the client takes an event stream (RFC 9110 section 12.5.1); weights are not looked at."""
    accepted = ",".join(request.headers.getlist("accept")).lower()
    return not accepted or any(kind in accepted for kind in (MEDIA_TYPE, "text/*", "*/*"))
