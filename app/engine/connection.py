"""A connection: drives one session over one socket and one codec, and is the receiver of what the socket hears."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import assert_never

import structlog

from app.brokers import Broker
from app.core.continuity import Follower, Gap, Resumed
from app.core.errors import Close, NotSubscribed, TocsinError
from app.core.messages import (
    Acknowledged,
    Alive,
    ComeBack,
    Event,
    Pong,
    Published,
    ReadHistory,
    Ref,
    Refused,
    Subscribe,
    Welcome,
)
from app.core.session import Disconnect, Effect, Extract, Leave, NativeSession, Open, Say, Session, Store
from app.engine.catchup import CatchUp
from app.engine.channel import Channel, Subscription
from app.engine.hub import Hub
from app.engine.roster import Roster
from app.protocols import Codec, Conversation
from app.sockets import Chunk, Socket, Unit

log = structlog.get_logger("tocsin.connection")

_CONGESTED, _SLOW, _BUSY = 1, 2, 4
"""Why nothing is read from a client: the store has too much to take, it reads too slowly, it has enough under way."""


class Connection:
    """One client, from the handover to the end. By itself it is what plain needs.

    Args:
        session: its state.
        codec: its wire format.
        hub: fan-out.
        catchup: for when it is behind.
        broker: the store.
        roster: keep-alive and the end.
    """

    __slots__ = (
        "_broker",
        "_catchup",
        "_holds",
        "_hub",
        "_roster",
        "_subscriptions",
        "closed",
        "codec",
        "session",
        "slot",
        "socket",
    )

    socket: Socket

    def __init__(
        self,
        *,
        session: Session,
        codec: Codec,
        hub: Hub,
        catchup: CatchUp,
        broker: Broker,
        roster: Roster,
    ) -> None:
        self.session = session
        self.codec = codec
        self._hub = hub
        self._catchup = catchup
        self._broker = broker
        self._roster = roster
        self._subscriptions: dict[str, Subscription] = {}
        self._holds = 0
        self.slot = 0
        self.closed = False

    @property
    def held(self) -> bool:
        """Whether nothing is read from the client, by our own decision."""
        return self._holds != 0

    @property
    def keepalive(self) -> Chunk | None:
        """What goes out with a ping; nothing on a plain socket."""
        return None

    def open(self, socket: Socket) -> None:
        """The connection begins."""
        self.socket = socket
        self._roster.add(self)

    def hear(self, channel: Channel, follower: Follower, *, echo: bool = True) -> None:
        """Begin to hear `channel`, which `Hub.open` holds for this connection, from the follower's position."""
        encoding = self._hub.encoding(self.codec, self.socket.framing)
        subscription = Subscription(channel, self, encoding, None if echo else self.session.client)
        subscription.follower = follower
        self._subscriptions[channel.name] = subscription
        self._catchup.step(subscription)

    def opened(self, command: Subscribe, resumed: Resumed) -> None:
        """Tell the session how the channel began."""
        self._perform(self.session.on_opened(command, resumed))

    # -- Receiver

    def on_text(self, payload: bytes) -> None:
        """A text message from the client."""
        try:
            self._perform(self.session.receive(self.codec.decode_text(payload)))
        except Exception as error:  # noqa: BLE001 - a client's message costs that client at most
            self._fault(error)

    def on_binary(self, payload: bytes) -> None:
        """A binary message from the client."""
        try:
            self._perform(self.session.receive(self.codec.decode_binary(payload)))
        except Exception as error:  # noqa: BLE001 - as above
            self._fault(error)

    def on_paused(self) -> None:
        """The client reads too slowly."""
        self._roster.slow(self)
        self._hub.lag(self._subscriptions.values())

    def on_resumed(self) -> None:
        """The client has read what was waiting."""
        self._roster.brisk(self)
        for subscription in list(self._subscriptions.values()):
            self._catchup.step(subscription)

    def on_closed(self, code: int) -> None:  # noqa: ARG002 - the contract's signature
        """The connection is gone: leave everything, cut every reference."""
        if self.closed:
            return
        self.closed = True
        for channel in list(self._subscriptions):
            self._leave(channel)
        self._roster.remove(self)

    def on_shutdown(self) -> None:
        """The server is stopping."""
        self._roster.retire(self)

    def end(self, after: float) -> None:  # noqa: ARG002 - plain cannot be told
        """Its moment within the drain window has come; the client may be back after so many seconds."""
        self.socket.close(Close.RESTART, "the service restarts")

    # -- Member

    def on_gap(self, channel: str, gap: Gap) -> None:
        """Continuity was lost in a channel."""
        self._perform(self.session.on_gap(channel, gap))

    # -- effects

    def _perform(self, effect: Effect | None) -> None:
        match effect:
            case Store(draft, ref):
                self._broker.publish(draft, self._stored if ref is None else partial(self._answered, ref))
                self._mind_congestion()
            case Disconnect(code, reason):
                self.socket.close(code, reason)
            case Leave(channel):
                self._leave(channel)
            case Open() | Extract() | Say() | None:  # no plain session has these effects
                pass
            case _:
                assert_never(effect)

    def _stored(self, outcome: Published | TocsinError) -> None:
        self._perform(self.session.on_outcome(outcome, None))

    def _answered(self, ref: Ref, outcome: Published | TocsinError) -> None:
        self._perform(self.session.on_outcome(outcome, ref))

    def _mind_congestion(self) -> None:
        if self._broker.congested and not self._holds & _CONGESTED:
            self._hold(_CONGESTED)
            self._broker.when_uncongested(partial(self._release, _CONGESTED))

    def _hold(self, why: int) -> None:
        """Read nothing more until `_release` has been called for each reason."""
        if not self._holds:
            self.socket.pause_reading()
        self._holds |= why

    def _release(self, why: int) -> None:
        if self._holds & why:
            self._holds &= ~why
            if not self._holds:
                self._roster.excuse(self)
                self.socket.resume_reading()

    def _fault(self, error: Exception) -> None:
        log.error("a client's command could not be handled", exc_info=error)
        self.socket.close(Close.INTERNAL, "the service failed; why is in its log")

    def _leave(self, channel: str) -> None:
        subscription = self._subscriptions.pop(channel, None)
        if subscription is not None:
            subscription.channel.drop(subscription)
            self._hub.release(subscription.channel)


PAGE_BYTES = 1_048_576
"""Bytes of messages in one page of history at most."""
UNDER_WAY = 128
"""Subscribes of one client that may wait for the store, abandoned ones included; or one page of history."""


class NativeConnection(Connection):
    """A connection whose format has answers. Those of one turn of the loop leave in one write.

    Args:
        welcome: the first event.
    """

    __slots__ = ("_answers", "_opening", "_under_way", "_welcome")

    session: NativeSession
    codec: Conversation

    def __init__(
        self,
        *,
        session: NativeSession,
        codec: Conversation,
        hub: Hub,
        catchup: CatchUp,
        broker: Broker,
        roster: Roster,
        welcome: Welcome,
    ) -> None:
        super().__init__(session=session, codec=codec, hub=hub, catchup=catchup, broker=broker, roster=roster)
        self._welcome: Welcome | None = welcome
        self._answers: list[Unit] | None = None
        self._opening: dict[str, Subscribe] | None = None
        self._under_way = 0

    @property
    def keepalive(self) -> Chunk | None:
        """An `alive` event: browsers do not see ping frames."""
        encoding = self._hub.encoding(self.codec, self.socket.framing)
        if encoding.keepalive is None:
            unit = self.socket.framing.text(self.codec.say(Alive()).payload)
            encoding.keepalive = self.socket.framing.join([unit])[0]
        return encoding.keepalive

    def open(self, socket: Socket) -> None:
        """The connection begins with `welcome`."""
        super().open(socket)
        welcome, self._welcome = self._welcome, None
        if welcome is not None:
            self._say(welcome)

    def on_paused(self) -> None:
        """The client reads too slowly: nothing more is read from it, since that would make answers."""
        super().on_paused()
        self._hold(_SLOW)

    def on_resumed(self) -> None:
        """The client has read what was waiting."""
        self._release(_SLOW)
        super().on_resumed()

    def end(self, after: float) -> None:
        """Tell when to come back, and close."""
        self._say(ComeBack(after, "draining"))
        super().end(after)

    def _perform(self, effect: Effect | None) -> None:
        match effect:
            case Say(event):
                self._say(event)
            case Open(command):
                if self._opening is None:
                    self._opening = {}
                self._opening[command.channel] = command
                self._ask(command, 1)
            case Leave(channel, event):
                opening = self._opening.pop(channel, None) if self._opening else None
                if opening is not None:
                    self._say(Refused(NotSubscribed("left before the channel was open"), opening.ref))
                super()._perform(effect)
                self._say(event)
            case Extract(command):
                self._ask(command, UNDER_WAY)
            case Disconnect():
                self._write_answers()
                super()._perform(effect)
            case _:
                super()._perform(effect)

    def _ask(self, command: Subscribe | ReadHistory, share: int) -> None:
        """Begin what needs an answer of the store. A client with enough of that under way is not read from: neither
        tasks nor pages pile up.
        """
        self._under_way += share
        if self._under_way >= UNDER_WAY:
            self._hold(_BUSY)
        self._hub.spawn(self._await(command, share))

    async def _await(self, command: Subscribe | ReadHistory, share: int) -> None:
        try:
            if isinstance(command, Subscribe):
                await self._open(command)
            else:
                await self._extract(command)
        except Exception as error:  # noqa: BLE001 - as in `on_text`
            self._fault(error)
        finally:
            self._under_way -= share
            if self._under_way < UNDER_WAY:
                self._release(_BUSY)

    async def _open(self, command: Subscribe) -> None:
        """Open a channel for this client and begin to hear it, unless it has left meanwhile."""
        try:
            channel = await self._hub.open(command.channel)
        except TocsinError as error:
            self._fail(command, error)
            return
        held = True
        try:
            if command.since is not None:
                resumed, follower = await self._catchup.resume(channel, command.since)
            else:
                resumed, follower = await self._catchup.begin(channel, command.history)
            if self._is_opening(command):
                held = False
                self.opened(command, resumed)
                self.hear(channel, follower)
        except TocsinError as error:
            self._fail(command, error)
        finally:
            if held:
                self._hub.release(channel)

    def _is_opening(self, command: Subscribe) -> bool:
        """Whether this is still wanted; forgets that it is under way."""
        if self._opening is None or self._opening.get(command.channel) is not command:
            return False
        del self._opening[command.channel]
        if not self._opening:
            self._opening = None
        return not self.closed

    def _fail(self, command: Subscribe, error: TocsinError) -> None:
        if self._is_opening(command):
            self._perform(self.session.on_failed(command, error))

    async def _extract(self, command: ReadHistory) -> None:
        try:
            found = await self._broker.extract(
                command.channel, command.since, command.before, command.limit, PAGE_BYTES
            )
        except TocsinError as error:
            self._perform(self.session.on_failed(command, error))
            return
        self._perform(self.session.on_extract(command, found.publications, found.position, found.complete))

    def _say(self, event: Event) -> None:
        """Write an event. Answers to commands wait for the end of the turn; whatever has its place among the messages
        of a channel, or may be large, is written at once, after them.
        """
        if self.closed:
            return
        unit = self.socket.framing.text(self.codec.say(event).payload)
        if self._answers is None:
            self._answers = []
            asyncio.get_running_loop().call_soon(self._write_answers)
        self._answers.append(unit)
        if not isinstance(event, Acknowledged | Refused | Pong):
            self._write_answers()

    def _write_answers(self) -> None:
        answers, self._answers = self._answers, None
        for chunk in self.socket.framing.join(answers) if answers else ():
            self.socket.write(chunk)
