"""One channel over all connections: where it stands, what may be handed on, who is there. Pure."""

from __future__ import annotations

from enum import Enum, auto

from tocsin import frames
from tocsin.events import Attendance, Event, Gap, Member, Message, Presence


class Mode(Enum):
    """What the service does for us in this channel."""

    AWAY = auto()
    """Nothing: there is no connection, or it has to be asked (again)."""
    ASKED = auto()
    LIVE = auto()
    BEHIND = auto()
    """Nothing: the reader is too slow, and goes on from the log when it has room."""


class Subscription:
    """What is known of one channel.

    Args:
        since: the position after which to begin, or None.
        history: messages to begin with, where there is no `since`.
        presence: what is asked of presence.

    Attributes:
        position: of the last message handed on, or where the channel stood before it: what to resume from.
        mode: what the service does.
        ref: of the `subscribe` under way.
        opened: whether it has ever been live.
        retry_at: when to ask again (seconds, monotonic), while `AWAY` after a refusal; None: with the next connection.
        failures: refusals in a row.
        members: by name, as far as they were told.
        count: of all members; None where presence was not asked for.
    """

    def __init__(
        self, channel: str, *, since: str | None = None, history: int = 0, presence: Attendance = None
    ) -> None:
        self.channel = channel
        self.position = since
        self.history = history
        self.presence = presence
        self.mode = Mode.AWAY
        self.ref: int | None = None
        self.opened = False
        self.retry_at: float | None = None
        self.failures = 0
        self.members: dict[str, Member] = {}
        self.count: int | None = None

    def ask(self, ref: int) -> str:
        """The command that brings the channel back to where it stood."""
        self.mode, self.ref, self.retry_at = Mode.ASKED, ref, None
        history = self.history if self.position is None else 0
        return frames.subscribe(self.channel, ref, since=self.position, history=history, presence=self.presence)

    def lost(self) -> None:
        """The connection is gone."""
        if self.mode is not Mode.BEHIND:
            self.mode = Mode.AWAY
        self.ref = self.retry_at = None

    def on_subscribed(self, frame: frames.Subscribed) -> list[Event]:
        """The channel is live: what there is to tell before its messages."""
        events: list[Event] = []
        self.mode, self.ref, self.failures = Mode.LIVE, None, 0
        if frame.recovered is False:
            events.append(Gap(self.channel, frame.reason or "expired", frame.position))
        self.position = frame.position
        if frame.members is not None:
            events += self._replace(frame.members, frame.count)
        self.opened = True
        return events

    def on_message(self, message: Message) -> bool:
        """Whether to hand it on: not while nothing is live here, and not twice."""
        if self.mode is not Mode.LIVE:
            return False
        if message.id is not None:
            if self.position is not None and not _follows(message.id, self.position):
                return False
            self.position = message.id
        return True

    def on_gap(self, gap: Gap) -> bool:
        """Whether to hand it on."""
        if self.mode is not Mode.LIVE:
            return False
        self.position = gap.position
        return True

    def on_presence(self, change: Presence) -> bool:
        """Keep the list; whether to hand the change on."""
        if self.mode is not Mode.LIVE:
            return False
        for member in change.left:
            self.members.pop(member.member, None)
        for member in change.joined:
            self.members[member.member] = member
        self.count = change.count
        return True

    def _replace(self, members: tuple[Member, ...], count: int) -> list[Event]:
        """Take a new list. What has changed since the last one is told as one change, if both are whole."""
        before, known = self.members, self.count
        self.members = {member.member: member for member in members}
        self.count = count
        if not self.opened:
            return []
        joined: tuple[Member, ...] = ()
        left: tuple[Member, ...] = ()
        if len(before) == known and len(members) == count:
            joined = tuple(member for member in members if member.member not in before)
            left = tuple(member for name, member in before.items() if name not in self.members)
        if joined or left or known != count:
            return [Presence(self.channel, joined, left, count)]
        return []


def _follows(later: str, earlier: str) -> bool:
    """Whether a message may come after a position. Positions of one epoch are numbers; those of two say nothing."""
    epoch, _, offset = later.rpartition("-")
    known, _, least = earlier.rpartition("-")
    return epoch != known or not (offset.isdecimal() and least.isdecimal()) or int(offset) > int(least)
