"""One client's session: commands and answers in, effects out. It performs nothing and knows no wire format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from app.core.continuity import Gap
from app.core.errors import Close, TocsinError
from app.core.identity import Identity
from app.core.messages import ChannelRule, Draft, Kind, Published, Verb


@dataclass(frozen=True, slots=True)
class Publish:
    """The client asks to publish in its channel."""

    kind: Kind
    payload: bytes


Command = Publish


@dataclass(frozen=True, slots=True)
class Store:
    """Hand this to the store; its outcome comes back to `on_outcome`."""

    draft: Draft


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close the socket: `code` says whether to come back, `reason` why (at most 123 bytes)."""

    code: int
    reason: str


Effect = Store | Disconnect


class PlainSession:
    """The session of a plain socket: one channel, and every refusal is a close.

    Args:
        client: this connection's unguessable id.
        identity: who it is.
        channel: the one channel.
        rule: the channel's rule.
    """

    __slots__ = ("channel", "client", "identity", "rule")

    def __init__(self, client: str, identity: Identity, channel: str, rule: ChannelRule) -> None:
        self.client = client
        self.identity = identity
        self.channel = channel
        self.rule = rule

    def receive(self, command: Command) -> Effect:
        """What a command leads to."""
        match command:
            case Publish(kind, payload):
                if not self.identity.may(Verb.PUBLISH, self.channel, self.rule):
                    return Disconnect(Close.FORBIDDEN, "you may not publish in this channel")
                draft = Draft(
                    self.channel,
                    kind,
                    payload,
                    client=self.client,
                    user=self.identity.user,
                    scope=self.identity.scope,
                    ephemeral=self.rule.history == 0,
                )
                return Store(draft)
            case _:
                assert_never(command)

    def on_outcome(self, outcome: Published | TocsinError) -> Effect | None:
        """How a publish ended. Plain has no answers: success is silent, a failure closes."""
        if isinstance(outcome, TocsinError):
            return Disconnect(outcome.rule.close, outcome.message)
        return None

    def on_gap(self, gap: Gap) -> Effect:
        """Plain cannot be told of a gap in a frame; the close says it."""
        return Disconnect(Close.GAP, f"gap: {gap.reason}; reload and connect without since")
