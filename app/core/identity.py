"""Who somebody is to us, and what they may do. How they proved it is the edge's business."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from app.core.errors import Forbidden
from app.core.messages import ChannelRule, Verb, matches


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A backend's key: its SHA-256 digest (32 bytes; the key itself is not kept) and what it may do.

    Attributes:
        allows: channel patterns per verb.
        admin: may list, clear, disconnect and revoke.
    """

    name: str
    digest: bytes
    allows: Mapping[Verb, tuple[str, ...]] = field(default_factory=dict)
    admin: bool = False


@dataclass(frozen=True, slots=True)
class Identity:
    """One who connects or calls.

    Attributes:
        user: user id, or None when anonymous or a backend.
        scope: who shares idempotency keys with it; empty: all anonymous.
        allows: channel patterns per verb; None: the channel rules' `anonymous` decide.
        admin: may list, clear, disconnect and revoke.
    """

    user: str | None = None
    scope: str = ""
    allows: Mapping[Verb, tuple[str, ...]] | None = None
    admin: bool = False

    @classmethod
    def of_key(cls, key: ApiKey) -> Identity:
        """A backend that showed an API key. Its idempotency keys are its own."""
        return cls(user=None, scope=f"key/{key.name}", allows=key.allows, admin=key.admin)

    def may(self, verb: Verb, channel: str, rule: ChannelRule) -> bool:
        """Whether this identity may do `verb` in `channel`, whose rule is `rule`."""
        if verb is Verb.PRESENCE and not rule.presence:
            return False
        if self.allows is None:
            return verb in rule.anonymous
        return any(matches(pattern, channel, self.user) for pattern in self.allows.get(verb, ()))

    def require(self, verb: Verb, channel: str, rule: ChannelRule) -> None:
        """Refuse what is not allowed.

        Raises:
            Forbidden: `verb` is not allowed in `channel`.
        """
        if not self.may(verb, channel, rule):
            raise Forbidden(f"you may not {verb} in this channel")


def rule_for(rules: Sequence[ChannelRule], channel: str) -> ChannelRule | None:
    """The first rule that matches, or None: the channel does not exist here. `{user}` in a rule's own pattern matches
    nothing, since a rule is not about anyone.
    """
    return next((rule for rule in rules if matches(rule.pattern, channel)), None)
