"""One client's session: commands and answers in, effects out. It performs nothing and knows no wire format.

Two sessions share the effects: plain, whose refusals are closes, and native, which answers every command.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from app.core.continuity import Gap, Resumed
from app.core.errors import (
    AlreadySubscribed,
    BadRequest,
    Close,
    Forbidden,
    NotSubscribed,
    RateLimited,
    TocsinError,
    TooLarge,
    TooManySubscriptions,
    UnsupportedType,
)
from app.core.identity import Identity, rule_for, rule_of
from app.core.limits import Meter
from app.core.messages import (
    Acknowledged,
    Authenticate,
    Authenticated,
    ChannelRule,
    Command,
    Draft,
    Event,
    HistoryPage,
    Lost,
    Malformed,
    Members,
    Ping,
    Pong,
    Position,
    PresencePage,
    Publication,
    Publish,
    Published,
    ReadHistory,
    ReadMembers,
    Ref,
    Refused,
    Subscribe,
    Subscribed,
    Unsubscribe,
    Unsubscribed,
    Verb,
)

PATIENCE = 20
"""Malformed commands without a good one between them after which a native client is sent away for good."""


@dataclass(frozen=True, slots=True)
class Store:
    """Hand this to the store; its outcome comes back to `on_outcome` with the same `ref`.

    Attributes:
        wait: seconds for which nothing more is read from this client.
    """

    draft: Draft
    ref: Ref = None
    wait: float = 0.0


@dataclass(frozen=True, slots=True)
class Open:
    """Open the channel and bring the beginning to `on_opened`, or the failure to `on_failed`."""

    command: Subscribe


@dataclass(frozen=True, slots=True)
class Leave:
    """Stop hearing the channel, and say so."""

    channel: str
    event: Unsubscribed


@dataclass(frozen=True, slots=True)
class Absent:
    """Go on hearing the channel, but be no member of it any more and watch nobody."""

    channel: str


@dataclass(frozen=True, slots=True)
class Extract:
    """Read from the log; the page comes back to `on_extract`, a failure to `on_failed`."""

    command: ReadHistory


@dataclass(frozen=True, slots=True)
class Survey:
    """Read who is in a channel; the page comes back to `on_survey`, a failure to `on_failed`."""

    command: ReadMembers


@dataclass(frozen=True, slots=True)
class Verify:
    """Verify this token; who it is comes back to `on_verified`, a failure to `on_failed`."""

    command: Authenticate


@dataclass(frozen=True, slots=True)
class Say:
    """Write this event to the client."""

    event: Event


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close the socket: `code` says whether to come back, `reason` why (at most 123 bytes)."""

    code: int
    reason: str


Effect = Store | Open | Leave | Absent | Extract | Survey | Verify | Say | Disconnect


class PlainSession:
    """The session of a plain socket: one channel, and every refusal is a close.

    Args:
        client: this connection's unguessable id.
        identity: who it is.
        channel: the one channel.
        rule: the channel's rule.
        meter: counts what it does; None where nothing is limited.
    """

    __slots__ = ("channel", "client", "identity", "meter", "rule")

    def __init__(
        self, client: str, identity: Identity, channel: str, rule: ChannelRule, meter: Meter | None = None
    ) -> None:
        self.client = client
        self.identity = identity
        self.channel = channel
        self.rule = rule
        self.meter = meter

    def receive(self, command: Command, now: float) -> Effect:
        """What a command leads to at `now` (seconds, monotonic). A plain codec reads nothing but `Publish`. Beyond
        its rate a client is not refused: it is read from more slowly.
        """
        assert isinstance(command, Publish)
        if not self.identity.may(Verb.PUBLISH, self.channel, self.rule):
            return Disconnect(Close.FORBIDDEN, "you may not publish in this channel")
        return Store(
            Draft(
                self.channel,
                command.kind,
                command.payload,
                client=self.client,
                user=self.identity.user,
                scope=self.identity.scope,
                ephemeral=self.rule.history == 0,
            ),
            wait=0.0 if self.meter is None else self.meter.owe(now),
        )

    def on_outcome(self, outcome: Published | TocsinError, ref: Ref) -> Effect | None:  # noqa: ARG002 - plain has none
        """How a publish ended. Plain has no answers: success is silent, a failure closes."""
        if isinstance(outcome, TocsinError):
            return Disconnect(outcome.rule.close, outcome.message)
        return None

    def on_opened(self, command: Subscribe, resumed: Resumed) -> Effect | None:
        """The channel is open. A `since` that cannot be made whole closes."""
        if resumed.recovered is False and resumed.reason is not None:
            return self.on_gap(command.channel, Gap(resumed.reason, resumed.position))
        return None

    def on_gap(self, channel: str, gap: Gap) -> Effect:  # noqa: ARG002 - it has one
        """Plain cannot be told of a gap in a frame; the close says it."""
        return Disconnect(Close.GAP, f"gap: {gap.reason}; reload and connect without since")


class NativeSession:
    """The session of `tocsin.v1`: many channels, and every command has an answer.

    Args:
        client: this connection's unguessable id.
        identity: who it is.
        rules: channel rules; the first match wins.
        max_message: bytes of a message's data at most.
        max_subscriptions: channels at most.
        meter: counts what it does; None where nothing is limited.
    """

    __slots__ = (
        "_malformed",
        "_subscribed",
        "client",
        "identity",
        "max_message",
        "max_subscriptions",
        "meter",
        "rules",
    )

    def __init__(
        self,
        client: str,
        identity: Identity,
        rules: Sequence[ChannelRule],
        max_message: int,
        max_subscriptions: int,
        *,
        meter: Meter | None = None,
    ) -> None:
        self.client = client
        self.identity = identity
        self.rules = rules
        self.max_message = max_message
        self.max_subscriptions = max_subscriptions
        self.meter = meter
        self._subscribed: dict[str, bool] = {}
        """Channel to whether it asked for presence there."""
        self._malformed = 0

    def receive(self, command: Command, now: float) -> Effect:
        """What a command leads to at `now` (seconds, monotonic)."""
        if self.meter is not None:
            wait = self.meter.publish(now) if isinstance(command, Publish) else self.meter.command(now)
            if wait:
                return self._slow_down(self.meter, command.ref, wait, now)
        if isinstance(command, Malformed):
            return self._on_malformed(command)
        self._malformed = 0
        try:
            return self._take(command)
        except TocsinError as error:
            return Say(Refused(error, command.ref))

    @staticmethod
    def _slow_down(meter: Meter, ref: Ref, wait: float, now: float) -> Effect:
        if meter.refuse(now):
            return Disconnect(Close.ABUSE, "far beyond the rate that is allowed here, again and again")
        return Say(Refused(RateLimited("too fast: slow down", retry_after=round(wait, 3)), ref))

    def attends(self, channel: str) -> bool:
        """Whether it asked for presence in a channel, and may have it."""
        return self._subscribed.get(channel, False)

    def on_outcome(self, outcome: Published | TocsinError, ref: Ref) -> Effect:
        """How a publish ended."""
        if isinstance(outcome, TocsinError):
            return Say(Refused(outcome, ref))
        return Say(Acknowledged(outcome.position, outcome.duplicate, ref))

    def on_opened(self, command: Subscribe, resumed: Resumed, presence: PresencePage | None = None) -> Effect:
        """The channel is open; its messages follow this answer."""
        reason = None if resumed.reason is None else resumed.reason.value
        return Say(
            Subscribed(
                command.channel,
                resumed.position,
                resumed.recovered,
                resumed.replayed,
                reason,
                command.ref,
                presence,
            )
        )

    def on_extract(
        self, command: ReadHistory, publications: tuple[Publication, ...], position: Position, complete: bool
    ) -> Effect:
        """A page of the log."""
        return Say(HistoryPage(command.channel, publications, position, complete, command.ref))

    def on_survey(self, command: ReadMembers, page: PresencePage) -> Effect:
        """A page of members."""
        return Say(Members(command.channel, page, command.ref))

    def on_verified(self, command: Authenticate, identity: Identity) -> list[Effect]:
        """A new token of the same user takes the place of the old one. What it does not allow any more ends."""
        if self.identity.user is None or identity.user != self.identity.user:
            return [Say(Refused(Forbidden("this token is of somebody else: open a new connection"), command.ref))]
        self.identity = identity
        effects: list[Effect] = [Say(Authenticated(identity.user, identity.expires_at, command.ref))]
        for channel, attended in list(self._subscribed.items()):
            if not self._may(Verb.SUBSCRIBE, channel):
                del self._subscribed[channel]
                effects.append(Leave(channel, Unsubscribed(channel, reason="forbidden")))
            elif attended and not self._may(Verb.PRESENCE, channel):
                self._subscribed[channel] = False
                effects.append(Absent(channel))
        return effects

    def on_failed(self, command: Subscribe | ReadHistory | ReadMembers | Authenticate, error: TocsinError) -> Effect:
        """The store could not answer, or the token is not good."""
        if isinstance(command, Subscribe):
            self._subscribed.pop(command.channel, None)
        return Say(Refused(error, command.ref))

    def on_gap(self, channel: str, gap: Gap) -> Effect:
        """Continuity was lost in one channel."""
        return Say(Lost(channel, gap.reason.value, gap.position))

    def _take(
        self, command: Publish | Subscribe | Unsubscribe | ReadHistory | ReadMembers | Authenticate | Ping
    ) -> Effect:
        match command:
            case Publish():
                return self._publish(command)
            case Subscribe(channel):
                self._require(Verb.SUBSCRIBE, channel)
                if command.history and command.since is None:
                    self._require(Verb.HISTORY, channel)
                if command.watch:
                    self._require(Verb.PRESENCE, channel)
                if channel in self._subscribed:
                    raise AlreadySubscribed("this socket hears the channel already")
                if len(self._subscribed) >= self.max_subscriptions:
                    raise TooManySubscriptions(f"a socket has at most {self.max_subscriptions} channels")
                self._subscribed[channel] = command.watch
                return Open(command)
            case Unsubscribe(channel):
                if channel not in self._subscribed:
                    raise NotSubscribed("this socket does not hear the channel")
                del self._subscribed[channel]
                return Leave(channel, Unsubscribed(channel, command.ref))
            case ReadHistory(channel):
                self._require(Verb.HISTORY, channel)
                return Extract(command)
            case ReadMembers(channel):
                self._require(Verb.PRESENCE, channel)
                return Survey(command)
            case Authenticate():
                return Verify(command)
            case Ping(ref):
                return Say(Pong(ref))
            case _:
                assert_never(command)

    def _publish(self, command: Publish) -> Effect:
        channel = command.channel or ""
        rule = self._require(Verb.PUBLISH, channel)
        if command.size > self.max_message:
            raise TooLarge(f"`data` has at most {self.max_message} bytes")
        ephemeral = command.ephemeral or rule.history == 0
        if command.ephemeral and command.key is not None:
            raise BadRequest("an ephemeral message has no key: it is not stored")
        draft = Draft(
            channel,
            command.kind,
            command.payload,
            client=self.client,
            user=self.identity.user,
            scope=self.identity.scope,
            key=None if ephemeral else command.key,
            ephemeral=ephemeral,
        )
        return Store(draft, command.ref)

    def _require(self, verb: Verb, channel: str) -> ChannelRule:
        rule = rule_of(self.rules, channel)
        self.identity.require(verb, channel, rule)
        return rule

    def _may(self, verb: Verb, channel: str) -> bool:
        rule = rule_for(self.rules, channel)
        return rule is not None and self.identity.may(verb, channel, rule)

    def _on_malformed(self, command: Malformed) -> Effect:
        if isinstance(command.error, UnsupportedType):
            return Disconnect(Close.WRONG_TYPE, command.error.message)
        self._malformed += 1
        if self._malformed > PATIENCE:
            return Disconnect(Close.MALFORMED, "too many malformed commands")
        return Say(Refused(command.error, command.ref))


Session = PlainSession | NativeSession
