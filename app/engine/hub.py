"""The hub: channels, their groups of sockets, and the fan-out.

A publication becomes one unit per kind of socket, the units due in one turn of the loop become one chunk, and the
chunk is written to every socket of the group. Nothing on that way awaits, encodes per socket or starts a task.
Who is slow leaves the group after the flush with the group's position; `catchup` brings it back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

import structlog

from app.brokers import Broker
from app.core.continuity import (
    ChannelState,
    Deliver,
    Effect,
    Follower,
    Gap,
    Mode,
    Reading,
    Reconnect,
    Scatter,
    Sync,
)
from app.core.errors import TocsinError, Unavailable
from app.core.messages import Cleared, Position, Publication
from app.protocols import Codec
from app.sockets import Chunk, Framing, Socket, Unit

log = structlog.get_logger("tocsin.hub")

SLICE = 2_000
"""Sockets written in one turn of the loop."""
PAGE = 128
"""Publications asked for in one read."""
RING = 262_144
"""Bytes of recent messages kept per channel with several subscribers."""
RINGS = 33_554_432
"""Bytes of recent messages kept per worker."""
LINGER_SECONDS = 5.0
CHECK_SECONDS = 15
OPEN_SECONDS = 5.0
TOPS = 512
"""Channels in one call of `Broker.read_tops`."""
RETRY_SECONDS = 0.5


def _settle_future(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Encoding:
    """A codec on a kind of socket: what one group shares."""

    __slots__ = ("codec", "framing")

    def __init__(self, codec: Codec, framing: Framing) -> None:
        self.codec = codec
        self.framing = framing

    def unit(self, channel: str, publication: Publication) -> Unit:
        """One publication, encoded and framed."""
        message = self.codec.encode(channel, publication)
        return self.framing.text(message.payload) if message.text else self.framing.binary(message.payload)


class Shared:
    """A publication and its units, made once and used by everyone."""

    __slots__ = ("_encoding", "_more", "_unit", "publication")

    def __init__(self, publication: Publication) -> None:
        self.publication = publication
        self._encoding: Encoding | None = None
        self._unit: Unit = None
        self._more: dict[Encoding, Unit] | None = None

    def unit(self, channel: str, encoding: Encoding) -> Unit:
        """The unit for an encoding."""
        if self._encoding is encoding:
            return self._unit
        if self._encoding is None:
            self._encoding, self._unit = encoding, encoding.unit(channel, self.publication)
            return self._unit
        if self._more is None:
            self._more = {}
        if encoding not in self._more:
            self._more[encoding] = encoding.unit(channel, self.publication)
        return self._more[encoding]

    def is_by(self, client: str) -> bool:
        """Whether this client published it."""
        needle = client.encode()
        return needle in self.publication.attributes and self.publication.read_attributes().get("c") == client


class Member(Protocol):
    """Who a subscription belongs to."""

    socket: Socket

    def on_gap(self, gap: Gap) -> None:
        """Continuity was lost for this member."""


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


class Ring:
    """The most recent messages of a live channel, consecutive."""

    __slots__ = ("before", "items", "size")

    def __init__(self, before: Position) -> None:
        self.before = before
        self.items: deque[Shared] = deque()
        self.size = 0

    def append(self, item: Shared) -> int:
        """Add one and forget the oldest beyond the bound. Returns by how many bytes the ring has grown."""
        grown = len(item.publication.payload) + 200
        self.items.append(item)
        while self.size + grown > RING and len(self.items) > 1:
            old = self.items.popleft().publication
            assert old.position is not None
            self.before = old.position
            grown -= len(old.payload) + 200
        self.size += grown
        return grown

    def after(self, position: Position, until: int) -> list[Shared] | None:
        """The messages after a position up to offset `until`, or None when the ring cannot prove the position."""
        skip = position.offset - self.before.offset
        if skip < 0 or skip > len(self.items):
            return None
        known = self.before if skip == 0 else self.items[skip - 1].publication.position
        if known != position:
            return None
        return [self.items[index] for index in range(skip, min(len(self.items), until - self.before.offset))]


class Flush:
    """A fan-out under way, as a value: chunks and the sockets that were in the group when it began."""

    __slots__ = ("index", "parts", "position")

    def __init__(self, parts: list[tuple[list[Chunk], tuple[Socket, ...]]], position: Position | None) -> None:
        self.parts = parts
        self.position = position
        self.index = 0

    def step(self, budget: int) -> bool:
        """Write to the next sockets. Returns whether all is written."""
        while self.parts:
            chunks, sockets = self.parts[-1]
            end = min(self.index + budget, len(sockets))
            batch = sockets if end - self.index == len(sockets) else sockets[self.index : end]
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
        self.waiters: list[Callable[[], None]] | None = None
        self._leaving: list[Subscription] | None = None

    @property
    def live(self) -> bool:
        """Whether whatever is published from now on will be delivered."""
        return self.state.mode is Mode.LIVE

    def wait(self, waiter: Callable[[], None]) -> None:
        """Call once when the channel is live and no flush is under way."""
        if self.waiters is None:
            self.waiters = []
        self.waiters.append(waiter)

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
        """The member is gone; its socket's `write` does nothing any more."""
        if not subscription.closed:
            subscription.closed = True
            if subscription.follower is None:
                self._remove(subscription)

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


class Counters:
    """What has happened in this hub; plain integers."""

    __slots__ = ("deliveries", "gaps", "lagged", "reconnects", "resyncs", "writes")

    def __init__(self) -> None:
        self.deliveries = 0
        self.writes = 0
        self.lagged = 0
        self.gaps = 0
        self.resyncs = 0
        self.reconnects = 0


class Hub:
    """All channels of one worker, and the `Listener` of its broker.

    Args:
        broker: the store.
    """

    _loop: asyncio.AbstractEventLoop
    _scattered: Callable[[list[Subscription]], None]
    _control: Callable[[bytes], None]

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._dirty: list[Channel] = []
        self._scheduled = False
        self._due: dict[str, Sync] = {}
        self._again: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._checks: list[Channel] = []
        self._slow: list[Subscription] = []
        self._encodings: dict[tuple[Codec, Framing], Encoding] = {}
        self.channels: dict[str, Channel] = {}
        self.counters = Counters()
        self.ring_bytes = 0

    def start(self, scattered: Callable[[list[Subscription]], None], control: Callable[[bytes], None]) -> None:
        """Begin, on the running loop.

        Args:
            scattered: called with members that have to catch up on their own.
            control: called with a message of the workers' control channel.
        """
        self._loop = asyncio.get_running_loop()
        self._scattered = scattered
        self._control = control

    # -- members

    def encoding(self, codec: Codec, framing: Framing) -> Encoding:
        """The one encoding of this pair."""
        found = self._encodings.get((codec, framing))
        if found is None:
            found = self._encodings[codec, framing] = Encoding(codec, framing)
        return found

    async def open(self, name: str) -> Channel:
        """A live channel, held for the caller until `release`.

        Raises:
            Unavailable: it did not become live in time; nothing is held then.
        """
        channel = self.channels.get(name)
        if channel is None:
            channel = self.channels[name] = Channel(name)
            channel.state.mode = Mode.SYNC
            self._broker.subscribe(name)
        elif channel.linger is not None:
            channel.linger.cancel()
            channel.linger = None
        channel.users += 1
        if not channel.live:
            live: asyncio.Future[None] = self._loop.create_future()
            channel.wait(partial(_settle_future, live))
            try:
                async with asyncio.timeout(OPEN_SECONDS):
                    await live
            except BaseException as error:
                self.release(channel)
                if isinstance(error, TimeoutError):
                    raise Unavailable("the channel could not be opened in time", retry_after=1.0) from None
                raise
        return channel

    def release(self, channel: Channel) -> None:
        """Give back what `open` gave. The last one out lingers, so that a quick return costs nothing."""
        channel.users -= 1
        if channel.users == 0 and self.channels.get(channel.name) is channel:
            channel.linger = self._loop.call_later(LINGER_SECONDS, self._forget, channel)

    def lag(self, subscriptions: Iterable[Subscription]) -> None:
        """These members read too slowly: out of their groups at the end of the turn, if they are still paused."""
        if not self._slow:
            self._loop.call_soon(self._leave_slow)
        self._slow.extend(subscriptions)

    def resync(self, channel: Channel) -> None:
        """A follower knows more than the channel: ask the log."""
        if channel.live:
            self._perform(channel, (channel.state.start_sync(),))

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine under supervision: it is kept, and its failure is logged."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    async def close(self) -> None:
        """Stop all work of the hub."""
        for channel in self.channels.values():
            if channel.linger is not None:
                channel.linger.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- Listener

    def confirmed(self, channel: str) -> None:
        """The subscription is in force: now the log may be read."""
        found = self.channels.get(channel)
        if found is not None:
            sync = found.state.connection_replaced()
            if sync is not None:
                self._perform(found, (sync,))

    def received(self, channel: str, item: Publication | Cleared) -> None:
        """A live message."""
        found = self.channels.get(channel)
        if found is None:
            return
        if isinstance(item, Publication) and item.position is None:
            if found.live and item.kind is not None:
                self._queue(found, Shared(item))
            return
        effects = found.state.on_publication(item)
        if effects:
            self._perform(found, effects)

    def drained(self) -> None:
        """The burst is over: write."""
        if self._dirty:
            self._flush()

    def told(self, message: bytes) -> None:
        """For the worker."""
        self._control(message)

    def lost(self) -> None:
        """Nothing more comes until `confirmed`: what had arrived is complete and is written."""
        self.counters.reconnects += 1
        for channel in self.channels.values():
            if channel.live:
                channel.state.start_sync()
        self._due.clear()
        self._again.clear()

    # -- checks

    def check(self) -> None:
        """Once a second: ask where a fifteenth of the channels stand. A lost live message in an idle channel is found
        by this within `CHECK_SECONDS`.
        """
        if not self._checks:
            self._checks = list(self.channels.values())
        count = -(-len(self.channels) // CHECK_SECONDS)
        turn, self._checks = self._checks[:count], self._checks[count:]
        batch = [channel for channel in turn if channel.live]
        for start in range(0, len(batch), TOPS):
            self.spawn(self._check(batch[start : start + TOPS]))

    async def _check(self, channels: Sequence[Channel]) -> None:
        sent = [(channel, channel.state.epoch, channel.state.position) for channel in channels]
        try:
            readings = await self._broker.read_tops([(channel.name, position) for channel, _, position in sent])
        except TocsinError:
            return
        for (channel, epoch, position), reading in zip(sent, readings, strict=True):
            if isinstance(reading, Reading) and position is not None:
                if channel.state.differs(reading, epoch, position):
                    self.resync(channel)
                elif channel.checked == position:
                    self._drop_ring(channel)
                channel.checked = position

    # -- continuity

    def _perform(self, channel: Channel, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Deliver(publications):
                    for publication in publications:
                        if publication.kind is None:
                            self._unreadable(channel)
                        else:
                            self._deliver(channel, Shared(publication))
                case Sync():
                    self.counters.resyncs += 1
                    if not self._due:
                        self._loop.call_soon(self._start_syncs)
                    self._due[channel.name] = effect
                case Scatter():
                    self._scatter(channel, "")
                case Reconnect():
                    log.warning("reader and commands disagree about a channel: replacing both connections")
                    self._broker.reconnect()
        if channel.live:
            if channel.out:
                self._schedule()
            else:
                self._settle(channel)

    def _deliver(self, channel: Channel, item: Shared) -> None:
        if channel.ring is not None:
            self.ring_bytes += channel.ring.append(item)
            if self.ring_bytes > RINGS:
                self._drop_ring(channel)
        elif channel.users > 1 and self.ring_bytes < RINGS:
            ring = self._new_ring(channel, item)
            if ring is not None:
                channel.ring = ring
                self.ring_bytes += ring.append(item)
        self._queue(channel, item)

    @staticmethod
    def _new_ring(channel: Channel, item: Shared) -> Ring | None:
        """A ring can begin where everything delivered is written, so that `written` is the message before this one."""
        before, position = channel.written, item.publication.position
        if before is None or position is None or channel.out or channel.flush is not None:
            return None
        return Ring(before) if before.offset == position.offset - 1 else None

    def _queue(self, channel: Channel, item: Shared) -> None:
        if not channel.out:
            self._dirty.append(channel)
        channel.out.append(item)

    def _unreadable(self, channel: Channel) -> None:
        """A message of a newer version: each member meets it on its own way through the log, and is told."""
        self._flush_channel(channel, SLICE * 1000)
        self._scatter(channel, channel.state.epoch)

    def _scatter(self, channel: Channel, epoch: str) -> None:
        """What was delivered but not written is dropped: the members' own positions stand before it."""
        channel.out = []
        self._drop_ring(channel)
        if channel.flush is not None:
            channel.scattering = True
            return
        members = channel.scatter(epoch)
        if members:
            self._loop.call_soon(self._scattered, members)

    def _drop_ring(self, channel: Channel) -> None:
        if channel.ring is not None:
            self.ring_bytes -= channel.ring.size
            channel.ring = None

    def _start_syncs(self) -> None:
        """The first questions of a turn share one call, which brings no messages; who is behind asks on alone."""
        due, self._due = self._due, {}
        first: list[tuple[str, Sync]] = []
        for name, sync in due.items():
            channel = self.channels.get(name)
            if channel is None:
                continue
            if channel.asked == sync.generation or len(due) == 1:
                self.spawn(self._sync(name, sync))
            else:
                first.append((name, sync))
            channel.asked = sync.generation
        for start in range(0, len(first), TOPS):
            self.spawn(self._sync_tops(first[start : start + TOPS]))

    async def _sync(self, name: str, sync: Sync) -> None:
        try:
            reading = await self._broker.read(name, sync.position, PAGE)
        except TocsinError:
            self._retry([name])
            return
        self._answer(name, reading, sync)

    async def _sync_tops(self, asked: Sequence[tuple[str, Sync]]) -> None:
        try:
            readings = await self._broker.read_tops([(name, sync.position) for name, sync in asked])
        except TocsinError:
            self._retry([name for name, _ in asked])
            return
        for (name, sync), reading in zip(asked, readings, strict=True):
            if isinstance(reading, Reading):
                self._answer(name, reading, sync)
            else:
                self._retry([name])

    def _answer(self, name: str, reading: Reading, sync: Sync) -> None:
        channel = self.channels.get(name)
        if channel is not None:
            self._perform(channel, channel.state.on_reading(reading, sync.generation))

    def _retry(self, names: Sequence[str]) -> None:
        """Ask again a little later, all that failed together."""
        if not self._again:
            self._loop.call_later(RETRY_SECONDS, self._ask_again)
        self._again.update(names)
        for name in names:
            if name in self.channels:
                self.channels[name].asked = -1

    def _ask_again(self) -> None:
        names, self._again = self._again, set()
        for name in names:
            channel = self.channels.get(name)
            if channel is not None and channel.state.mode is Mode.SYNC and name not in self._due:
                self._perform(channel, (Sync(channel.state.position, channel.state.generation),))

    # -- fan-out

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        dirty, self._dirty = self._dirty, []
        for channel in dirty:
            if channel.out and channel.flush is None:
                self._flush_channel(channel, SLICE)

    def _flush_channel(self, channel: Channel, budget: int) -> None:
        """Write what is due to the group, at most `budget` sockets now and the rest in the next turns."""
        if not channel.out or channel.flush is not None:
            return
        items, channel.out = channel.out, []
        position = next((item.publication.position for item in reversed(items) if item.publication.position), None)
        parts: list[tuple[list[Chunk], tuple[Socket, ...]]] = []
        for encoding, group in channel.groups.items():
            sockets = group.sockets()
            if group.muted is not None:
                sockets = self._write_apart(group, items, sockets)
            units = [item.unit(channel.name, encoding) for item in items]
            chunks = encoding.framing.join(units)
            parts.append((chunks, sockets))
            self.counters.deliveries += len(units) * len(sockets)
            self.counters.writes += len(chunks) * len(sockets)
        channel.flush = Flush(parts, position)
        self._go_on(channel, budget)

    def _write_apart(self, group: Group, items: list[Shared], sockets: tuple[Socket, ...]) -> tuple[Socket, ...]:
        """Who does not want its own messages and has sent one of these gets the others alone."""
        assert group.muted is not None
        senders = {item.publication.read_attributes().get("c") for item in items}
        apart = [group.muted[client] for client in senders if client in group.muted]
        if not apart:
            return sockets
        for subscription in apart:
            self.counters.deliveries += subscription.write(items)
        alone = {subscription.member.socket for subscription in apart}
        return tuple(socket for socket in sockets if socket not in alone)

    def _go_on(self, channel: Channel, budget: int = SLICE) -> None:
        flush = channel.flush
        assert flush is not None
        if not flush.step(budget):
            self._loop.call_soon(self._go_on, channel)
            return
        channel.flush = None
        if flush.position is not None:
            channel.written = flush.position
        channel.settle_leaving()
        if channel.scattering:
            channel.scattering = False
            members = channel.scatter("")
            if members:
                self._loop.call_soon(self._scattered, members)
        if channel.out:
            self._dirty.append(channel)
            self._schedule()
        self._settle(channel)

    def _settle(self, channel: Channel) -> None:
        """Nothing is being written: those who wait may look again."""
        if channel.flush is not None or not channel.live:
            return
        if not channel.out:
            channel.written = channel.state.position
        waiters, channel.waiters = channel.waiters, None
        for waiter in waiters or ():
            waiter()

    def _leave_slow(self) -> None:
        slow, self._slow = self._slow, []
        for subscription in slow:
            if subscription.member.socket.paused and not subscription.closed:
                self.counters.lagged += 1
                subscription.channel.lag(subscription)

    # -- ends

    def _forget(self, channel: Channel) -> None:
        channel.linger = None
        if channel.users == 0 and self.channels.get(channel.name) is channel:
            del self.channels[channel.name]
            self._drop_ring(channel)
            channel.state.close()
            self._broker.unsubscribe(channel.name)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of the hub failed", exc_info=task.exception())
