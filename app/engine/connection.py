"""A connection: drives one session over one socket and one codec, and is the receiver of what the socket hears."""

from __future__ import annotations

from app.brokers import Broker
from app.core.continuity import Follower, Gap
from app.core.errors import TocsinError
from app.core.messages import Published
from app.core.session import Command, Disconnect, Effect, PlainSession, Store
from app.engine.catchup import CatchUp
from app.engine.channel import Channel, Subscription
from app.engine.hub import Hub
from app.engine.roster import Roster
from app.protocols import Codec
from app.sockets import Socket


class Connection:
    """One client, from the handover to the end.

    Args:
        session: its state.
        codec: its wire format.
        hub: fan-out.
        catchup: for when it is behind.
        broker: the store.
        roster: keep-alive and the end.
    """

    __slots__ = ("_broker", "_catchup", "_hub", "_roster", "codec", "held", "session", "slot", "socket", "subscription")

    socket: Socket

    def __init__(
        self,
        *,
        session: PlainSession,
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
        self.subscription: Subscription | None = None
        self.slot = 0
        self.held = False

    def open(self, socket: Socket, channel: Channel, follower: Follower, *, echo: bool, gap: Gap | None = None) -> None:
        """Begin to hear `channel`, which `Hub.open` holds for this connection, from the follower's position; a gap
        before that position is told before anything else.
        """
        self.socket = socket
        self._roster.add(self)
        encoding = self._hub.encoding(self.codec, socket.framing)
        subscription = Subscription(channel, self, encoding, None if echo else self.session.client)
        subscription.follower = follower
        self.subscription = subscription
        if gap is not None:
            self.on_gap(gap)
        self._catchup.step(subscription)

    # -- Receiver

    def on_text(self, payload: bytes) -> None:
        """A text message from the client."""
        self._receive(self.codec.decode_text(payload))

    def on_binary(self, payload: bytes) -> None:
        """A binary message from the client."""
        self._receive(self.codec.decode_binary(payload))

    def on_paused(self) -> None:
        """The client reads too slowly."""
        self._roster.slow(self)
        if self.subscription is not None:
            self._hub.lag((self.subscription,))

    def on_resumed(self) -> None:
        """The client has read what was waiting."""
        self._roster.brisk(self)
        if self.subscription is not None:
            self._catchup.step(self.subscription)

    def on_closed(self, code: int) -> None:  # noqa: ARG002 - the contract's signature
        """The connection is gone: leave everything, cut every reference."""
        subscription, self.subscription = self.subscription, None
        if subscription is not None:
            subscription.channel.drop(subscription)
            self._hub.release(subscription.channel)
            self._roster.remove(self)

    def on_shutdown(self) -> None:
        """The server is stopping."""
        self._roster.retire(self)

    # -- Member

    def on_gap(self, gap: Gap) -> None:
        """Continuity was lost."""
        self._perform(self.session.on_gap(gap))

    # -- effects

    def _receive(self, command: Command) -> None:
        self._perform(self.session.receive(command))

    def _stored(self, outcome: Published | TocsinError) -> None:
        effect = self.session.on_outcome(outcome)
        if effect is not None:
            self._perform(effect)

    def _go_on(self) -> None:
        self.held = False
        self.socket.resume_reading()

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Store(draft):
                self._broker.publish(draft, self._stored)
                if self._broker.congested and not self.held:
                    self.held = True
                    self.socket.pause_reading()
                    self._broker.when_uncongested(self._go_on)
            case Disconnect(code, reason):
                self.socket.close(code, reason)
