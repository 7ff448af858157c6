"""What can go wrong, once: the exception tree and the table code -> HTTP status -> close code -> come back?

TocsinError
├── BadRequest            malformed input
│   ├── BadChannel        a name outside the channel grammar
│   ├── BadPosition       not `<epoch>-<digits>`
│   └── UnknownType       a command that this version does not know
├── Unauthorized          no credentials, or bad ones
├── Forbidden             known, and not allowed
├── NotFound
├── NotSubscribed         this socket does not hear the channel
├── AlreadySubscribed     this socket hears the channel already
├── TooManySubscriptions  this socket has as many channels as it may have
├── Conflict              the same key with another body
├── Gone                  the log does not reach back to `since`
├── TooLarge
├── UnsupportedType
├── RateLimited
├── Unavailable           the store is away, or did not answer in time
└── Draining              this worker is going away
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar


class Code(StrEnum):
    """The stable name of an error on the wire (PROTOCOL: errors)."""

    BAD_REQUEST = "bad_request"
    UNKNOWN_TYPE = "unknown_type"
    BAD_CHANNEL = "bad_channel"
    BAD_POSITION = "bad_position"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    NOT_SUBSCRIBED = "not_subscribed"
    ALREADY_SUBSCRIBED = "already_subscribed"
    CONFLICT = "conflict"
    GONE = "gone"
    TOO_LARGE = "too_large"
    UNSUPPORTED_TYPE = "unsupported_type"
    RATE_LIMITED = "rate_limited"
    TOO_MANY_SUBSCRIPTIONS = "too_many_subscriptions"
    UNAVAILABLE = "unavailable"
    DRAINING = "draining"
    INTERNAL = "internal"


class Close(int):
    """A WebSocket close code; 44xx tell the client to stop, every other one to come back."""

    DONE: ClassVar[int] = 1000
    AWAY: ClassVar[int] = 1001
    PROTOCOL_ERROR: ClassVar[int] = 1002
    WRONG_TYPE: ClassVar[int] = 1003
    ABNORMAL: ClassVar[int] = 1006
    BAD_UTF8: ClassVar[int] = 1007
    POLICY: ClassVar[int] = 1008
    TOO_BIG: ClassVar[int] = 1009
    INTERNAL: ClassVar[int] = 1011
    RESTART: ClassVar[int] = 1012
    TRY_LATER: ClassVar[int] = 1013
    MALFORMED: ClassVar[int] = 4400
    UNAUTHORIZED: ClassVar[int] = 4401
    FORBIDDEN: ClassVar[int] = 4403
    NO_PONG: ClassVar[int] = 4508
    GAP: ClassVar[int] = 4510
    ABUSE: ClassVar[int] = 4529


@dataclass(frozen=True, slots=True)
class Rule:
    """What one error code means elsewhere.

    Attributes:
        http: status of the HTTP answer.
        close: code with which a socket that cannot be answered in-band (plain) is closed.
        retry: whether trying the same again can help.
    """

    http: int
    close: int
    retry: bool


RULES: dict[Code, Rule] = {
    Code.BAD_REQUEST: Rule(400, Close.MALFORMED, False),
    Code.UNKNOWN_TYPE: Rule(400, Close.MALFORMED, False),
    Code.BAD_CHANNEL: Rule(400, Close.MALFORMED, False),
    Code.BAD_POSITION: Rule(400, Close.MALFORMED, False),
    Code.UNAUTHORIZED: Rule(401, Close.UNAUTHORIZED, False),
    Code.FORBIDDEN: Rule(403, Close.FORBIDDEN, False),
    Code.NOT_FOUND: Rule(404, Close.MALFORMED, False),
    Code.NOT_SUBSCRIBED: Rule(404, Close.MALFORMED, False),
    Code.ALREADY_SUBSCRIBED: Rule(409, Close.MALFORMED, False),
    Code.CONFLICT: Rule(409, Close.MALFORMED, False),
    Code.GONE: Rule(410, Close.GAP, False),
    Code.TOO_LARGE: Rule(413, Close.TOO_BIG, False),
    Code.UNSUPPORTED_TYPE: Rule(415, Close.WRONG_TYPE, False),
    Code.RATE_LIMITED: Rule(429, Close.ABUSE, True),
    Code.TOO_MANY_SUBSCRIPTIONS: Rule(429, Close.POLICY, False),
    Code.UNAVAILABLE: Rule(503, Close.TRY_LATER, True),
    Code.DRAINING: Rule(503, Close.RESTART, True),
    Code.INTERNAL: Rule(500, Close.INTERNAL, True),
}


class TocsinError(Exception):
    """An error with a code that every entrance knows how to answer.

    Args:
        message: one sentence for the one who called; names no secret and no host.
        retry_after: seconds after which trying again may help, or None.
        position: with `gone`, the id from which to go on.
    """

    code: ClassVar[Code] = Code.INTERNAL

    def __init__(self, message: str, *, retry_after: float | None = None, position: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        self.position = position

    @property
    def rule(self) -> Rule:
        """The row of the table for this error's code."""
        return RULES[self.code]


class BadRequest(TocsinError):
    """Malformed input."""

    code = Code.BAD_REQUEST


class BadChannel(BadRequest):
    """A channel name outside `[A-Za-z0-9_.:@-]{1,128}`."""

    code = Code.BAD_CHANNEL


class BadPosition(BadRequest):
    """A position that is not `<epoch>-<digits>`."""

    code = Code.BAD_POSITION


class Unauthorized(TocsinError):
    """No credentials, or bad ones."""

    code = Code.UNAUTHORIZED


class Forbidden(TocsinError):
    """Known, and not allowed."""

    code = Code.FORBIDDEN


class NotFound(TocsinError):
    """Nothing is here."""

    code = Code.NOT_FOUND


class NotSubscribed(TocsinError):
    """This socket does not hear the channel."""

    code = Code.NOT_SUBSCRIBED


class AlreadySubscribed(TocsinError):
    """This socket hears the channel already."""

    code = Code.ALREADY_SUBSCRIBED


class TooManySubscriptions(TocsinError):
    """This socket has as many channels as it may have."""

    code = Code.TOO_MANY_SUBSCRIPTIONS


class UnknownType(BadRequest):
    """A command of a type that this version does not know."""

    code = Code.UNKNOWN_TYPE


class Conflict(TocsinError):
    """The same idempotency key came with another body."""

    code = Code.CONFLICT


class Gone(TocsinError):
    """The log does not reach back to the position asked for; `position` says where to go on."""

    code = Code.GONE


class TooLarge(TocsinError):
    """A message or body over its limit."""

    code = Code.TOO_LARGE


class UnsupportedType(TocsinError):
    """A body of a type that this entrance does not take."""

    code = Code.UNSUPPORTED_TYPE


class RateLimited(TocsinError):
    """Too much, too fast."""

    code = Code.RATE_LIMITED


class Unavailable(TocsinError):
    """The store is away or did not answer in time. For a publish without a key the outcome is unknown."""

    code = Code.UNAVAILABLE


class Draining(TocsinError):
    """This worker is going away; another one will do."""

    code = Code.DRAINING
