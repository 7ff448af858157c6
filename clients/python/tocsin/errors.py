"""What can go wrong, as one tree. Every error has a `code`; those of the service carry the code of the wire.

TocsinError
├── BadRequest            malformed input
│   ├── BadChannel        a name outside `[A-Za-z0-9_.:@-]{1,128}`
│   ├── BadPosition       not a position
│   └── UnknownType       a command that the service does not know
├── Unauthorized          no token, or one that is not good
├── Forbidden             known, and not allowed
├── NotFound
├── NotSubscribed
├── AlreadySubscribed     this client hears the channel already
├── TooManySubscriptions
├── Conflict              the same key with another body
├── Gone                  the log does not reach back; `position` says from where to go on
├── TooLarge
├── UnsupportedType
├── RateLimited           too fast; `retry_after` says when to try again
├── Unavailable           the service or its store is away
│   └── Draining
├── Closed                this client has been closed
├── Stopped               the service ended the connection for good; `close_code` says why
├── OutboxFull            more waits to be published than may wait
└── Timeout               no answer in time (also a `TimeoutError`)
    └── PublishTimeout    whether the message was published is not known, but for `sent == False`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class TocsinError(Exception):
    """What everything that this package raises by itself has in common.

    Args:
        message: one sentence for people.
        code: the stable name; without it that of the class.
        retry_after: seconds after which trying the same again may help, or None.
        position: with `gone`, the position from which to go on.
    """

    default: ClassVar[str] = "internal"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        retry_after: float | None = None,
        position: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default
        self.retry_after = retry_after
        self.position = position


class BadRequest(TocsinError):
    """Malformed input."""

    default = "bad_request"


class BadChannel(BadRequest):
    """A channel name outside `[A-Za-z0-9_.:@-]{1,128}`."""

    default = "bad_channel"


class BadPosition(BadRequest):
    """A `since` or `before` that is no position."""

    default = "bad_position"


class UnknownType(BadRequest):
    """A command that the service does not know."""

    default = "unknown_type"


class Unauthorized(TocsinError):
    """No token where one is needed, or one that is not good."""

    default = "unauthorized"


class Forbidden(TocsinError):
    """Known, and not allowed."""

    default = "forbidden"


class NotFound(TocsinError):
    """Nothing is there."""

    default = "not_found"


class NotSubscribed(TocsinError):
    """The connection does not hear the channel."""

    default = "not_subscribed"


class AlreadySubscribed(TocsinError):
    """This client hears the channel already."""

    default = "already_subscribed"


class TooManySubscriptions(TocsinError):
    """The connection has as many channels as it may have."""

    default = "too_many_subscriptions"


class Conflict(TocsinError):
    """The key was used with another body."""

    default = "conflict"


class Gone(TocsinError):
    """The log no longer reaches back to the position; `position` says from where to go on."""

    default = "gone"


class TooLarge(TocsinError):
    """A message beyond the service's limit."""

    default = "too_large"


class UnsupportedType(TocsinError):
    """A body of a type that is not taken."""

    default = "unsupported_type"


class RateLimited(TocsinError):
    """Too fast."""

    default = "rate_limited"


class Unavailable(TocsinError):
    """The service or its store is away."""

    default = "unavailable"


class Draining(Unavailable):
    """The worker is going away; another one will do."""

    default = "draining"


class Closed(TocsinError):
    """This client has been closed."""

    default = "closed"


class Stopped(TocsinError):
    """The connection was ended in a way that coming back would not change.

    Attributes:
        close_code: of the WebSocket (RFC 6455 section 7.4), or None.
    """

    default = "stopped"

    def __init__(self, message: str, *, close_code: int | None = None) -> None:
        super().__init__(message)
        self.close_code = close_code


class OutboxFull(TocsinError):
    """More waits to be published than may wait."""

    default = "outbox_full"


class Timeout(TocsinError, TimeoutError):
    """No answer came in time."""

    default = "timeout"


class PublishTimeout(Timeout):
    """No acknowledgement came in time, or a message that may have been published could not be asked for again.

    Attributes:
        sent: whether the message had been sent at least once: then its outcome is unknown; else it was not published.
    """

    default = "publish_timeout"

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


def in_doubt(refusal: TocsinError) -> PublishTimeout:
    """The outcome of a message that may have been published by an earlier try, and whose repetition was refused for a
    reason that says nothing of the message: it is the cause of this error.
    """
    error = PublishTimeout(f"whether it was published is not known; its repetition: {refusal.message}", sent=True)
    error.__cause__ = refusal
    return error


_BY_CODE: dict[str, type[TocsinError]] = {
    kind.default: kind
    for kind in (
        BadRequest,
        BadChannel,
        BadPosition,
        UnknownType,
        Unauthorized,
        Forbidden,
        NotFound,
        NotSubscribed,
        AlreadySubscribed,
        TooManySubscriptions,
        Conflict,
        Gone,
        TooLarge,
        UnsupportedType,
        RateLimited,
        Unavailable,
        Draining,
    )
}
TRANSIENT = frozenset({"rate_limited", "unavailable", "draining", "internal"})
"""Codes after which the same may be tried again."""
OF_THE_SENDER = (Unauthorized, Forbidden)
"""Refusals that say nothing of what was sent: who sent it may be allowed less than before."""


def from_wire(given: Mapping[str, Any]) -> TocsinError:
    """The error that an `error` frame or the `error` object of an HTTP answer tells of. A code that this version does
    not know is a plain `TocsinError`.
    """
    code = str(given.get("code", "internal"))
    retry_after, position = given.get("retry_after"), given.get("position")
    return _BY_CODE.get(code, TocsinError)(
        str(given.get("message", code)),
        code=code,
        retry_after=float(retry_after) if isinstance(retry_after, int | float) else None,
        position=position if isinstance(position, str) else None,
    )
