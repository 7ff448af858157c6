"""One channel of one worker: its groups of sockets, who follows on their own, and the flush that may be under way.

Joining and leaving act between flushes: a flush is a value, and the group's position holds for everybody in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

from app.core.continuity import ChannelState, Follower, Gap, Mode
from app.core.messages import Position
from app.engine.shared import Encoding, Ring, Shared
from app.sockets import Chunk, Socket


class Member(Protocol):
    """Who a subscription belongs to."""

    socket: Socket

    def on_gap(self, channel: str, gap: Gap) -> None:
        """Continuity was lost for this member in a channel."""


class Subscription:
    """One member of one channel: in the group (`follower` is None) or following on its own.

    Attributes:
        muted: the member's client id when it does not want its own messages, else None.
        busy: a page is being read for it.
        joined: the position with which it entered the group.
    """

    __slots__ = ("busy", "channel", "closed", "encoding", "follower", "joined", "member", "muted")

    def __init__(self, channel: Channel, member: Member, encoding: Encoding, muted: str | None = None) -> None:
        self.channel = channel
        self.member = member
        self.encoding = encoding
        self.muted = muted
        self.follower: Follower | None = None
        self.joined: Position | None = None
        self.busy = False
        self.closed = False

    def write(self, items: Iterable[Shared]) -> int:
        """Write messages to this member alone. Returns how many."""
        units = [
            item.unit(self.channel.name, self.encoding)
            for item in items
            if self.muted is None or not item.is_by(self.muted)
        ]
        if units:
            write = self.member.socket.write
            for chunk in self.encoding.framing.join(units):
                write(chunk)
        return len(units)


class Group:
    """The sockets of one channel that share an encoding and a position."""

    __slots__ = ("_sockets", "members", "muted")

    def __init__(self) -> None:
        self.members: dict[Socket, Subscription] = {}
        self.muted: dict[str, Subscription] | None = None
        self._sockets: tuple[Socket, ...] | None = None

    def add(self, subscription: Subscription) -> None:
        """A member joins."""
        self.members[subscription.member.socket] = subscription
        if subscription.muted is not None:
            self.muted = self.muted or {}
            self.muted[subscription.muted] = subscription
        self._sockets = None

    def remove(self, subscription: Subscription) -> None:
        """A member leaves."""
        del self.members[subscription.member.socket]
        if subscription.muted is not None and self.muted is not None:
            del self.muted[subscription.muted]
        self._sockets = None

    def sockets(self) -> tuple[Socket, ...]:
        """Everybody, as a value that joining and leaving do not touch."""
        if self._sockets is None:
            self._sockets = tuple(self.members)
        return self._sockets


class Flush:
    """A fan-out under way, as a value: chunks and the sockets that were in the group when it began."""

    __slots__ = ("_gone", "index", "parts", "position")

    def __init__(self, parts: list[tuple[list[Chunk], tuple[Socket, ...]]], position: Position | None) -> None:
        self.parts = parts
        self.position = position
        self.index = 0
        self._gone: set[Socket] | None = None

    def skip(self, socket: Socket) -> None:
        """Write nothing more to this one: it has left the channel, and been told so."""
        if self._gone is None:
            self._gone = set()
        self._gone.add(socket)

    def step(self, budget: int) -> bool:
        """Write to the next sockets. Returns whether all is written."""
        while self.parts:
            chunks, sockets = self.parts[-1]
            end = min(self.index + budget, len(sockets))
            batch = sockets if end - self.index == len(sockets) else sockets[self.index : end]
            if self._gone is not None:
                batch = tuple(socket for socket in batch if socket not in self._gone)
            if len(chunks) == 1:
                chunk = chunks[0]
                for socket in batch:
                    socket.write(chunk)
            else:
                for socket in batch:
                    for chunk in chunks:
                        socket.write(chunk)
            budget -= end - self.index
            if end < len(sockets):
                self.index = end
                return False
            self.parts.pop()
            self.index = 0
        return True


class Channel:
    """One channel of this worker.

    Attributes:
        state: what continuity knows.
        written: up to where the group has been given everything.
        out: delivered, not yet written.
        asked: generation of the newest sync that was sent; another one of it reads on from there.
        checked: where it stood at the last periodic check; a channel that stands still needs no ring.
        users: subscriptions, in the group or not, and those being opened.
    """

    __slots__ = (
        "_leaving",
        "asked",
        "checked",
        "flush",
        "groups",
        "linger",
        "name",
        "out",
        "ring",
        "scattering",
        "state",
        "users",
        "waiters",
        "written",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = ChannelState()
        self.written: Position | None = None
        self.groups: dict[Encoding, Group] = {}
        self.out: list[Shared] = []
        self.flush: Flush | None = None
        self.ring: Ring | None = None
        self.users = 0
        self.asked = -1
        self.checked: Position | None = None
        self.scattering = False
        self.linger: asyncio.TimerHandle | None = None
        self.waiters: dict[object, Callable[[], None]] | None = None
        self._leaving: list[Subscription] | None = None

    @property
    def live(self) -> bool:
        """Whether whatever is published from now on will be delivered."""
        return self.state.mode is Mode.LIVE

    def wait(self, who: object, waiter: Callable[[], None]) -> None:
        """Call once when the channel is live and no flush is under way; whoever waits already keeps its place."""
        if self.waiters is None:
            self.waiters = {}
        self.waiters[who] = waiter

    def give_up(self, who: object) -> None:
        """It waits no longer."""
        if self.waiters is not None:
            self.waiters.pop(who, None)

    def join(self, subscription: Subscription) -> None:
        """Enter the group; only at exactly its position (`Follower.joins` said NOW) and with no flush under way."""
        assert subscription.follower is not None
        subscription.joined = subscription.follower.position
        subscription.follower = None
        group = self.groups.get(subscription.encoding)
        if group is None:
            group = self.groups[subscription.encoding] = Group()
        group.add(subscription)

    def lag(self, subscription: Subscription) -> None:
        """Leave the group with its position, after the flush that may be under way."""
        if subscription.follower is not None or subscription.closed:
            return
        if self.flush is not None:
            self._leaving = self._leaving or []
            self._leaving.append(subscription)
            return
        self._remove(subscription)
        subscription.follower = Follower(self._position_of(subscription), self.state.epoch)

    def drop(self, subscription: Subscription) -> None:
        """The member has left: nothing of this channel is written to it any more, also by a flush under way."""
        if not subscription.closed:
            subscription.closed = True
            self.give_up(subscription)
            if subscription.follower is None:
                self._remove(subscription)
                if self.flush is not None:
                    self.flush.skip(subscription.member.socket)

    def settle_leaving(self) -> None:
        """After a flush: let those go who became slow in it."""
        leaving, self._leaving = self._leaving, None
        for subscription in leaving or ():
            if subscription.member.socket.paused:
                self.lag(subscription)

    def scatter(self, epoch: str) -> list[Subscription]:
        """Turn every member into a follower at the group's position."""
        members = [member for group in self.groups.values() for member in group.members.values()]
        self.groups = {}
        for member in members:
            member.follower = Follower(self._position_of(member), epoch)
        self.written = None  # nobody may join before the group's new position is known
        return members

    def _position_of(self, subscription: Subscription) -> Position:
        """Where a member stands: the group's position, or, if nothing was written since it joined, the one it brought.
        The two can differ in their epoch, and only its own is proof of what it has seen.
        """
        assert self.written is not None
        joined = subscription.joined
        return joined if joined is not None and joined.offset == self.written.offset else self.written

    def _remove(self, subscription: Subscription) -> None:
        group = self.groups.get(subscription.encoding)
        if group is not None and subscription.member.socket in group.members:
            group.remove(subscription)
            if not group.members:
                del self.groups[subscription.encoding]
