"""The client of `tocsin.v1` without I/O: calls, frames, closes and time in, effects out.

Nothing here waits, knows a clock or a socket. Whoever drives it calls its methods with the time (seconds, of a clock
that only goes forward), performs `effects()` after each, and calls `tick` when `deadline` has come.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any, assert_never

from tocsin import frames
from tocsin.draft import Draft, draft
from tocsin.effects import Deliver, Drop, Effect, Ended, Opened, Renew, Send, Settle
from tocsin.errors import (
    TRANSIENT,
    AlreadySubscribed,
    Closed,
    Forbidden,
    OutboxFull,
    TocsinError,
    Unavailable,
)
from tocsin.events import Attendance, Gap, Message, Presence, State
from tocsin.line import Backoff, Line, Refusal
from tocsin.outbox import Entry, Outbox
from tocsin.renewal import Renewal
from tocsin.subscription import Mode, Subscription


class Session:
    """One client over all its connections.

    Args:
        backoff: how long to wait between connections.
        chance: for jitter and keys.
        outbox: commands that may wait for their answers.
        wall: seconds since 1970, for the end of tokens; None where no new token can be asked for.

    Attributes:
        welcome: how the present connection began, or the last one.
    """

    def __init__(
        self,
        *,
        backoff: Backoff | None = None,
        chance: random.Random | None = None,
        outbox: int = 1000,
        wall: Callable[[], float] | None = None,
    ) -> None:
        self._backoff = backoff or Backoff()
        self._chance = chance or random.SystemRandom()
        self._line = Line(self._backoff, self._chance, renewable=wall is not None)
        self._outbox = Outbox(outbox, self._backoff, self._chance)
        self._subscriptions: dict[str, Subscription] = {}
        self._effects: list[Effect] = []
        self._renewal = Renewal(wall, self._backoff, self._chance)
        self._refs = 0
        self._heard = 0.0
        self._retry_at: float | None = None
        self.welcome: frames.Welcome | None = None

    # What is seen from outside

    @property
    def state(self) -> State:
        """Where the connection stands."""
        return self._line.state

    @property
    def error(self) -> TocsinError | None:
        """Why it has stopped."""
        return self._line.error

    @property
    def full(self) -> bool:
        """Whether the outbox takes nothing more."""
        return self._outbox.full

    @property
    def pending(self) -> int:
        """Commands that wait for their answers."""
        return len(self._outbox)

    @property
    def expecting(self) -> bool:
        """Whether an answer is on its way, so that it would not do to stop reading."""
        return (
            self._outbox.expecting
            or self._renewal.ref is not None
            or any(subscription.mode is Mode.ASKED for subscription in self._subscriptions.values())
        )

    @property
    def deadline(self) -> float | None:
        """When to call `tick`, at the latest."""
        is_open = self._line.state is State.OPEN
        found = [self._line.return_at, self._outbox.deadline(flowing=is_open)]
        if is_open:
            found += [self._renewal.at, self._retry_at, self._silent_at]
        return min((time for time in found if time is not None), default=None)

    def subscription(self, channel: str) -> Subscription | None:
        """What is known of a channel."""
        return self._subscriptions.get(channel)

    def effects(self) -> list[Effect]:
        """What is to be done, in order. Each is given once."""
        effects, self._effects = self._effects, []
        return effects

    # What the user wants

    def start(self, now: float) -> None:
        """Connect for the first time."""
        self._do(self._line.connect(now))

    def close(self) -> None:
        """Connect no more. What was not answered ends with `Closed`: its outcome is unknown if it was sent."""
        self._stop(None)

    def subscribe(
        self, channel: str, *, since: str | None = None, history: int = 0, presence: Attendance = None
    ) -> None:
        """Hear a channel, from now on over all connections. `Opened` or `Ended` follows.

        Raises:
            TypeError, ValueError: `since` or `presence` is no JSON.
            BadChannel: the name.
            AlreadySubscribed: it is heard.
        """
        self._require_going()
        if frames.check_channel(channel) in self._subscriptions:
            raise AlreadySubscribed(f"this client hears {channel} already")
        presence = copy.deepcopy(presence)  # it is sent again and again: whoever gave it must not change it
        frames.subscribe(channel, None, since=since, history=history, presence=presence)
        subscription = Subscription(channel, since=since, history=history, presence=presence)
        self._subscriptions[channel] = subscription
        if self.state is State.OPEN:
            self._ask(subscription)

    def unsubscribe(self, channel: str) -> None:
        """Hear it no more. `Ended` follows at once."""
        subscription = self._subscriptions.pop(channel, None)
        if subscription is not None:
            self._leave(subscription)
            self._effects.append(Ended(channel, None))

    def lag(self, channel: str) -> None:
        """The reader of a channel has no room: leave it where it stands, for its messages are in the log."""
        subscription = self._subscriptions.get(channel)
        if subscription is not None:
            self._leave(subscription)
            subscription.mode = Mode.BEHIND

    def catch_up(self, channel: str) -> None:
        """The reader of a channel has room again."""
        subscription = self._subscriptions.get(channel)
        if subscription is not None and subscription.mode is Mode.BEHIND:
            subscription.mode = Mode.AWAY
            if self.state is State.OPEN:
                self._ask(subscription)

    def draft(self, channel: str, data: Any, *, key: str | None = None, ephemeral: bool = False) -> Draft:
        """A message for `publish`.

        Raises:
            TypeError, ValueError: `data` is no JSON.
            BadChannel, BadRequest: the name, the key.
        """
        return draft(channel, data, key, self._chance, ephemeral=ephemeral)

    def publish(self, message: Draft, now: float, *, timeout: float | None = None) -> int:
        """Publish, over this connection or a later one. Returns the ref with which `Settle` follows.

        Raises:
            OutboxFull: too much waits already.
            Unavailable: an ephemeral message, and there is no connection.
        """
        self._require_going()
        if message.key is None and self.state is not State.OPEN:
            raise Unavailable("there is no connection, and an ephemeral message is not kept")
        ref = self._next_ref()
        text = frames.publish(message.channel, ref, message.body, key=message.key, ephemeral=message.key is None)
        self._enter(Entry(ref, text, message.size, publish=True, keyed=message.key is not None), timeout, now)
        return ref

    def ask_history(
        self,
        channel: str,
        now: float,
        *,
        since: str | None = None,
        before: str | None = None,
        limit: int = 100,
        timeout: float | None = None,
    ) -> int:
        """Read the log. Returns the ref with which `Settle` follows."""
        return self._read("history", channel, now, timeout, since=since, before=before, limit=limit)

    def ask_members(
        self, channel: str, now: float, *, limit: int = 100, cursor: str | None = None, timeout: float | None = None
    ) -> int:
        """Read who is in a channel. Returns the ref with which `Settle` follows."""
        return self._read("presence", channel, now, timeout, limit=limit, cursor=cursor)

    def withdraw(self, ref: int) -> None:
        """Nobody waits for this answer any more; it is not sent (again)."""
        self._outbox.remove(ref)

    # What the driver reports

    def receive(self, text: str | bytes, now: float) -> None:
        """A frame has come."""
        self._heard = now
        try:
            if isinstance(text, bytes):
                raise frames.BadFrame("a binary frame")  # noqa: TRY301 - it is one of the ways to be bad
            frame = frames.read(text)
        except frames.BadFrame as error:
            self._give_up(f"the service sent what this client cannot read: {error}", now)
            return
        if frame is not None:
            self._take(frame, now)

    def connected(self, now: float) -> None:
        """The upgrade was accepted; `welcome` is to follow."""
        self._heard = now

    def closed(self, code: int, reason: str, now: float) -> None:
        """The WebSocket has ended; 1006 without a close frame."""
        self._lose()
        self._do(self._line.closed(code, reason, now))

    def refused(self, refusal: Refusal, now: float) -> None:
        """The upgrade was refused."""
        self._do(self._line.refused(refusal, now))

    def failed(self, reason: str, now: float) -> None:
        """No WebSocket came about, or what there was had to be let go."""
        self._lose()
        self._do(self._line.failed(reason, now))

    def stop(self, error: TocsinError) -> None:
        """Coming back would not help."""
        self._stop(error)

    def renewed(self, token: str | None, now: float) -> None:
        """A new token is here, or there is none, and it is asked for again; in the end the service closes. Without a
        connection it is of no use: the next one asks for its own.
        """
        if self.state is not State.OPEN:
            return
        if token is None:
            self._renewal.later(None, now)
        else:
            self._renewal.ref = self._next_ref()
            self._effects.append(Send(frames.command("authenticate", self._renewal.ref, token=token)))

    def tick(self, now: float) -> None:
        """Time has passed."""
        if self._line.late(now):
            self._give_up("the service did not answer in time", now)
        self._do(self._line.due(now))
        if self.state is State.OPEN:
            if now >= self._silent_at:
                self._give_up("nothing was heard for two intervals", now)
            elif self._renewal.due(now):
                self._effects.append(Renew())
        for ref, error in self._outbox.expire(now):
            self._effects.append(Settle(ref, error))
        if self.state is State.OPEN:
            if self._retry_at is not None and now >= self._retry_at:
                self._ask_due(now)
            self._flush(now)

    # Frames

    def _take(self, frame: frames.Frame, now: float) -> None:
        match frame:
            case Message():
                subscription = self._subscriptions.get(frame.channel)
                if subscription is not None and subscription.on_message(frame):
                    self._effects.append(Deliver(frame.channel, frame))
            case Gap():
                subscription = self._subscriptions.get(frame.channel)
                if subscription is not None and subscription.on_gap(frame):
                    self._effects.append(Deliver(frame.channel, frame))
            case Presence():
                subscription = self._subscriptions.get(frame.channel)
                if subscription is not None and subscription.on_presence(frame):
                    self._effects.append(Deliver(frame.channel, frame))
            case frames.Answer(ref, outcome):
                if isinstance(ref, int) and self._outbox.remove(ref) is not None:
                    self._effects.append(Settle(ref, outcome))
                self._flush(now)
            case frames.Refused(ref, error):
                self._on_refused(ref, error, now)
            case frames.Subscribed():
                self._on_subscribed(frame)
            case frames.Unsubscribed():
                if frame.ref is None:
                    self._end(frame.channel, Forbidden(f"the channel is not allowed any more: {frame.reason}"))
            case frames.Welcome():
                self._on_welcome(frame, now)
            case frames.Authenticated():
                self._renewal.expect_end(frame.expires_at, now)
            case frames.Reconnect():
                self._line.announced(frame.after, now)
            case frames.Alive() | frames.Pong():
                pass
            case _:
                assert_never(frame)

    def _on_welcome(self, frame: frames.Welcome, now: float) -> None:
        if self.welcome is not None and self.welcome.user != frame.user:
            self._effects += [Settle(ref, error) for ref, error in self._outbox.disown()]
        self.welcome = frame
        self._outbox.key_seconds = frame.key_seconds
        self._outbox.max_data = frame.max_data
        self._do(self._line.opened(now))
        self._renewal.expect_end(frame.expires_at, now)
        for subscription in list(self._subscriptions.values()):
            if subscription.mode is Mode.AWAY:
                self._ask(subscription)
        self._flush(now)

    def _on_subscribed(self, frame: frames.Subscribed) -> None:
        subscription = self._subscriptions.get(frame.channel)
        if subscription is None or subscription.ref is None or subscription.ref != frame.ref:
            return  # left meanwhile
        first = not subscription.opened
        events = subscription.on_subscribed(frame)
        if first:
            self._effects.append(Opened(frame.channel))
        self._effects += [Deliver(frame.channel, event) for event in events]

    def _on_refused(self, ref: frames.Ref, error: TocsinError, now: float) -> None:
        if not isinstance(ref, int):
            return
        if ref == self._renewal.ref:
            if error.code in TRANSIENT:
                self._renewal.later(error.retry_after, now)
            else:  # the service closes with 4401 when the old token ends
                self._renewal.ref = None
            return
        for subscription in self._subscriptions.values():
            if subscription.ref == ref:
                self._on_not_subscribed(subscription, error, now)
                return
        outcome = self._outbox.refused(ref, error, now)
        if outcome is not None:
            self._effects.append(Settle(ref, outcome))
        self._flush(now)

    def _on_not_subscribed(self, subscription: Subscription, error: TocsinError, now: float) -> None:
        if error.code not in TRANSIENT:
            self._end(subscription.channel, error)
            return
        subscription.lost()
        wait = (error.retry_after or 0.0) + self._backoff.delay(subscription.failures, self._chance)
        subscription.failures += 1
        subscription.retry_at = now + wait
        self._retry_at = min(subscription.retry_at, self._retry_at or subscription.retry_at)

    # Parts

    def _do(self, effects: list[Effect]) -> None:
        """Take over what the line wants. When it stops, all that waits comes to its end."""
        self._effects += effects
        if self.state is State.STOPPED:
            error = self.error or Closed("the client is closed")
            for entry in self._outbox.clear():
                self._effects.append(Settle(entry.ref, error))
            for channel in self._subscriptions:
                self._effects.append(Ended(channel, self.error))
            self._subscriptions.clear()

    def _stop(self, error: TocsinError | None) -> None:
        if self.state is not State.STOPPED:
            self._effects.append(Drop(1000))
            self._do(self._line.stop(error, "closed" if error is None else ""))

    def _give_up(self, reason: str, now: float) -> None:
        """Let go of the connection, and return."""
        self._effects.append(Drop())
        self._lose()
        self._do(self._line.failed(reason, now))

    def _lose(self) -> None:
        for subscription in self._subscriptions.values():
            subscription.lost()
        self._effects += [Settle(ref, error) for ref, error in self._outbox.lost()]
        self._renewal.lost()
        self._retry_at = None

    def _end(self, channel: str, error: TocsinError) -> None:
        if self._subscriptions.pop(channel, None) is not None:
            self._effects.append(Ended(channel, error))

    def _ask(self, subscription: Subscription) -> None:
        self._effects.append(Send(subscription.ask(self._next_ref())))

    def _ask_due(self, now: float) -> None:
        self._retry_at = None
        for subscription in self._subscriptions.values():
            if subscription.retry_at is None:
                continue
            if now >= subscription.retry_at:
                self._ask(subscription)
            else:
                self._retry_at = min(subscription.retry_at, self._retry_at or subscription.retry_at)

    def _leave(self, subscription: Subscription) -> None:
        if subscription.mode in {Mode.LIVE, Mode.ASKED}:
            self._effects.append(Send(frames.command("unsubscribe", self._next_ref(), channel=subscription.channel)))
        subscription.lost()

    def _read(self, kind: str, channel: str, now: float, timeout: float | None, **fields: Any) -> int:
        self._require_going()
        ref = self._next_ref()
        text = frames.command(kind, ref, channel=frames.check_channel(channel), **fields)
        self._enter(Entry(ref, text), timeout, now)
        return ref

    def _enter(self, entry: Entry, timeout: float | None, now: float) -> None:
        if self._outbox.full:
            raise OutboxFull("too much waits for its answer already")
        entry.deadline = None if timeout is None else now + timeout
        self._outbox.add(entry)
        if self.state is State.OPEN:
            self._flush(now)

    def _flush(self, now: float) -> None:
        for item in self._outbox.flush(now):
            self._effects.append(Send(item) if isinstance(item, str) else Settle(*item))

    def _require_going(self) -> None:
        if self.state is State.STOPPED:
            raise self.error or Closed("the client is closed")

    def _next_ref(self) -> int:
        self._refs += 1
        return self._refs

    @property
    def _silent_at(self) -> float:
        return self._heard + 2.0 * (self.welcome.ping if self.welcome else 25.0)
