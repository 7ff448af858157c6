"""A connection: drives one session over one socket and one codec, and is the receiver of what the socket hears."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import ClassVar, assert_never

import structlog

from app.brokers import Broker
from app.core.continuity import Follower, Gap, Resumed
from app.core.errors import Close, TocsinError
from app.core.identity import Identity
from app.core.messages import Alive, ComeBack, Event, Published, Ref, Subscribe
from app.core.session import (
    Absent,
    Disconnect,
    Effect,
    Extract,
    Leave,
    Open,
    Say,
    Session,
    Store,
    Survey,
    Verify,
)
from app.engine.admissions import Admissions
from app.engine.catchup import CatchUp
from app.engine.channel import Channel, Subscription
from app.engine.hub import Hub
from app.engine.roster import Roster
from app.protocols import Codec, Conversation
from app.sockets import Chunk, Framing, Socket, Unit

log = structlog.get_logger("tocsin.connection")

CONGESTED, SLOW, BUSY, RATED = 1, 2, 4, 8
"""Why nothing is read from a client: the store has too much to take, it reads too slowly, it has enough under way, it
has published more than its rate.
"""


class Connection:
    """One client, from the handover to the end. By itself it is what plain needs.

    Args:
        session: its state.
        codec: its wire format.
        hub: fan-out.
        catchup: for when it is behind.
        broker: the store.
        roster: keep-alive and the end.
        admissions: its limits and the end of its token.
        address: from where it comes, where that is counted.
    """

    __slots__ = (
        "_admissions",
        "_broker",
        "_catchup",
        "_holds",
        "_hub",
        "_roster",
        "_subscriptions",
        "address",
        "closed",
        "closes_at",
        "codec",
        "session",
        "slot",
        "socket",
    )

    socket: Socket
    one_way: ClassVar[bool] = False

    def __init__(
        self,
        *,
        session: Session,
        codec: Codec,
        hub: Hub,
        catchup: CatchUp,
        broker: Broker,
        roster: Roster,
        admissions: Admissions,
        address: str | None = None,
    ) -> None:
        self.session = session
        self.codec = codec
        self.address = address
        self._hub = hub
        self._catchup = catchup
        self._broker = broker
        self._roster = roster
        self._admissions = admissions
        self._subscriptions: dict[str, Subscription] = {}
        self._holds = 0
        self.slot = 0
        self.closes_at = 0
        self.closed = False

    @property
    def identity(self) -> Identity:
        """Who it is."""
        return self.session.identity

    @property
    def held(self) -> bool:
        """Whether nothing is read from the client, by our own decision."""
        return self._holds != 0

    @property
    def keepalive(self) -> Chunk | None:
        """What goes out with a ping; nothing on a plain socket."""
        return None

    @property
    def framing(self) -> Framing:
        """How its socket wants its messages."""
        return self.socket.framing

    def open(self, socket: Socket) -> None:
        """The connection begins."""
        self.socket = socket
        self._roster.add(self)
        self._admissions.enter(self)

    def hear(self, channel: Channel, follower: Follower, *, echo: bool = True) -> None:
        """Begin to hear `channel`, which `Hub.open` holds for this connection, from the follower's position."""
        encoding = self._hub.encoding(self.codec, self.framing)
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
        now = self._roster.awake()
        if now is None:
            self.socket.abort()
            return
        try:
            self._perform(self.session.receive(self.codec.decode_text(payload), now))
        except Exception as error:  # noqa: BLE001 - a client's message costs that client at most
            self._fault(error)

    def on_binary(self, payload: bytes) -> None:
        """A binary message from the client."""
        now = self._roster.awake()
        if now is None:
            self.socket.abort()
            return
        try:
            self._perform(self.session.receive(self.codec.decode_binary(payload), now))
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

    def on_flooded(self) -> None:
        """The client sent more frames than its rate allows."""
        self._roster.floods += 1

    def on_closed(self, code: int) -> None:  # noqa: ARG002 - the contract's signature
        """The connection is gone: leave everything, cut every reference."""
        if self.closed:
            return
        self.closed = True
        for channel in list(self._subscriptions):
            self._leave(channel)
        self._roster.remove(self)
        self._admissions.leave(self)

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
            case Store(draft, ref, wait):
                self._broker.publish(draft, self._stored if ref is None else partial(self._answered, ref))
                self._mind_congestion()
                if wait and not self._holds & RATED:
                    self._hold(RATED)
                    asyncio.get_running_loop().call_later(wait, self._release, RATED)
            case Disconnect(code, reason):
                self.socket.close(code, reason)
            case Leave(channel):
                self._leave(channel)
            case (
                Open() | Absent() | Extract() | Survey() | Verify() | Say() | None
            ):  # no plain session has these effects
                pass
            case _:
                assert_never(effect)

    def _stored(self, outcome: Published | TocsinError) -> None:
        self._perform(self.session.on_outcome(outcome, None))

    def _answered(self, ref: Ref, outcome: Published | TocsinError) -> None:
        self._perform(self.session.on_outcome(outcome, ref))

    def _mind_congestion(self) -> None:
        if self._broker.congested and not self._holds & CONGESTED:
            self._hold(CONGESTED)
            self._broker.when_uncongested(partial(self._release, CONGESTED))

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


class EventConnection(Connection):
    """A connection whose format has events: gaps, the end, and that the server is there. By itself it is what an event
    stream needs.
    """

    __slots__ = ()

    codec: Conversation

    @property
    def keepalive(self) -> Chunk | None:
        """An `alive` event: browsers do not see ping frames."""
        encoding = self._hub.encoding(self.codec, self.framing)
        if encoding.keepalive is None:
            encoding.keepalive = self.framing.join([self._unit(Alive())])[0]
        return encoding.keepalive

    def end(self, after: float) -> None:
        """Tell when to come back, and close."""
        self._say(ComeBack(after, "draining"))
        super().end(after)

    def _perform(self, effect: Effect | None) -> None:
        match effect:
            case Say(event):
                self._say(event)
            case _:
                super()._perform(effect)

    def _say(self, event: Event) -> None:
        """Write an event."""
        if not self.closed:
            self._write([self._unit(event)])

    def _unit(self, event: Event) -> Unit:
        return self.framing.text(self.codec.say(event).payload)

    def _write(self, units: Sequence[Unit]) -> None:
        for chunk in self.framing.join(units):
            self.socket.write(chunk)
