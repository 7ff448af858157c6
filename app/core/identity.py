"""Who somebody is to us, and what they may do. How they proved it is the edge's business: claims come verified."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.core.errors import Forbidden, Unauthorized
from app.core.messages import ChannelRule, Verb, check_channel, matches

CLAIM = "tocsin"
"""The claim of a token that says what its bearer may do."""
LONGEST = 256
"""Characters of a user, a token's id or a pattern at most, and patterns a verb at most."""
LATEST = 253_402_300_799
"""The last second of the year 9999: an `exp` beyond it is a mistake, often milliseconds."""
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters, and halves of surrogate pairs, which JSON can write and UTF-8 cannot."""
_KEY_SCOPE = "key/"
_VERBS = tuple((verb, verb.value) for verb in Verb)


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
        user: user id (a token's `sub`), or None when anonymous or a backend.
        scope: who shares idempotency keys with it: `user/<sub>` (its `%` and `:` as `%25` and
            `%3A`), `key/<name>`; empty: all anonymous.
        allows: channel patterns per verb; None: the channel rules' `anonymous` decide.
        admin: may list, clear, disconnect and revoke.
        token: id of the token (`jti`) by which it can be revoked, or None.
        expires_at: when its token ends, Unix seconds, or None: never.
    """

    user: str | None = None
    scope: str = ""
    allows: Mapping[Verb, tuple[str, ...]] | None = None
    admin: bool = False
    token: str | None = None
    expires_at: float | None = None

    @classmethod
    def of_key(cls, key: ApiKey) -> Identity:
        """A backend that showed an API key. Its idempotency keys are its own."""
        return cls(user=None, scope=f"{_KEY_SCOPE}{key.name}", allows=key.allows, admin=key.admin)

    @property
    def rated(self) -> bool:
        """Whether limits of rate are for this one: not for backends with an API key."""
        return not self.scope.startswith(_KEY_SCOPE)

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


def identity_of(claims: Mapping[str, Any]) -> Identity:
    """The user whom verified claims are about (RFC 7519 section 4.1) and what the claim `tocsin` allows. Never `admin`.

    Raises:
        Unauthorized: a claim is missing or of the wrong kind; the sentence repeats no value.
    """
    user = claims.get("sub")
    if not isinstance(user, str) or not 1 <= len(user) <= LONGEST or _UNFIT.search(user):
        raise Unauthorized(
            f"the token's `sub` must be a string of 1 to {LONGEST} characters without control characters"
        )
    expires_at = claims.get("exp")
    if (
        isinstance(expires_at, bool)
        or not isinstance(expires_at, (int, float))
        or not 0 <= expires_at <= LATEST  # NaN is not
    ):
        raise Unauthorized("the token's `exp` must be a number of seconds since 1970, before the year 10000")
    token = claims.get("jti")
    if token is not None and (not isinstance(token, str) or not 1 <= len(token) <= LONGEST or _UNFIT.search(token)):
        raise Unauthorized(
            f"the token's `jti` must be a string of 1 to {LONGEST} characters without control characters"
        )
    return Identity(
        user=user,
        # The store writes a colon behind the scope: without one inside, `a:b` with key `c` is not `a` with key `b:c`.
        scope="user/" + user.replace("%", "%25").replace(":", "%3A"),
        allows=_read_allows(claims.get(CLAIM, {})),
        token=token,
        expires_at=float(expires_at),
    )


def _read_allows(claim: Any) -> dict[Verb, tuple[str, ...]]:
    if not isinstance(claim, dict):
        raise Unauthorized(f'the token\'s `{CLAIM}` must be an object such as {{"subscribe": ["room:*"]}}')
    allows: dict[Verb, tuple[str, ...]] = {}
    for verb, name in _VERBS:
        patterns = claim.get(name)
        if patterns is None and name not in claim:
            continue
        if not isinstance(patterns, list) or len(patterns) > LONGEST:
            raise _unreadable(name)
        for pattern in patterns:
            if not isinstance(pattern, str) or len(pattern) > LONGEST:
                raise _unreadable(name)
        allows[verb] = tuple(patterns)
    return allows


def _unreadable(verb: str) -> Unauthorized:
    return Unauthorized(
        f"the token's `{CLAIM}.{verb}` must be a list of at most {LONGEST} channel patterns, "
        f"each a string of at most {LONGEST} characters"
    )


def rule_of(rules: Sequence[ChannelRule], channel: str) -> ChannelRule:
    """The rule of a channel that somebody names.

    Raises:
        BadChannel: the name is none.
        Forbidden: no rule covers it: it does not exist here.
    """
    rule = rule_for(rules, check_channel(channel))
    if rule is None:
        raise Forbidden("no rule of this service covers this channel")
    return rule


def rule_for(rules: Sequence[ChannelRule], channel: str) -> ChannelRule | None:
    """The first rule that matches, or None: the channel does not exist here. `{user}` in a rule's own pattern matches
    nothing, since a rule is not about anyone.
    """
    return next((rule for rule in rules if matches(rule.pattern, channel)), None)
