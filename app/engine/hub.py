"""The hub: channels and the fan-out.

A publication becomes one unit per kind of socket, the units due in one turn of the loop become one chunk, and the
chunk is written to every socket of the group. Nothing on that way awaits, encodes per socket or starts a task.
Who is slow leaves the group after the flush with the group's position; `catchup` brings it back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any

import structlog

from app.brokers import Broker
from app.core.continuity import Deliver, Effect, Mode, Reading, Reconnect, Scatter, Sync
from app.core.errors import Unavailable
from app.core.messages import Attendance, Cleared, Publication
from app.engine.channel import Channel, Flush, Group, Subscription
from app.engine.collector import Settled
from app.engine.inquiry import Inquiry
from app.engine.shared import Encoding, Ring, Shared
from app.protocols import Codec
from app.sockets import Chunk, Framing, Socket

log = structlog.get_logger("tocsin.hub")

SLICE = 2_000
"""Sockets written in one turn of the loop."""
LARGE = 100
"""Subscribers from which on a fan-out may be held for more messages: below it a write costs less than the wait."""
HOLDS = 2
RINGS = 33_554_432
"""Bytes of recent messages kept per worker."""
LINGER_SECONDS = 5.0
OPEN_SECONDS = 5.0


def _settle_future(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Counters:
    """What has happened in this hub; plain integers."""

    __slots__ = ("deliveries", "gaps", "lagged", "reconnects", "writes")

    def __init__(self) -> None:
        self.deliveries = 0
        self.writes = 0
        self.lagged = 0
        self.gaps = 0
        self.reconnects = 0


class Hub:
    """All channels of one worker, and the `Listener` of its broker.

    Args:
        broker: the store.
    """

    _loop: asyncio.AbstractEventLoop
    _scattered: Callable[[list[Subscription]], None]
    _control: Callable[[bytes], None]
    _lost: Callable[[], None]
    _attended: Callable[[str, Attendance], None]

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._dirty: list[Channel] = []
        self._scheduled = False
        self._held = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._slow: list[Subscription] = []
        self._encodings: dict[tuple[Codec, Framing], Encoding] = {}
        self._settled = Settled()
        self.channels: dict[str, Channel] = {}
        self.counters = Counters()
        self.ring_bytes = 0
        self.inquiry = Inquiry(
            broker,
            self.channels,
            spawn=self.spawn,
            answer=self._on_reading,
            differ=self.resync,
            idle=self._drop_ring,
        )

    def start(
        self,
        scattered: Callable[[list[Subscription]], None],
        control: Callable[[bytes], None],
        lost: Callable[[], None],
        attended: Callable[[str, Attendance], None],
    ) -> None:
        """Begin, on the running loop.

        Args:
            scattered: called with members that have to catch up on their own.
            control: called with a message of the workers' control channel.
            lost: called when the reader is lost: messages of the control channel may be missed.
            attended: called with who has joined or left a channel.
        """
        self._loop = asyncio.get_running_loop()
        self._scattered = scattered
        self._control = control
        self._lost = lost
        self._attended = attended

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
            self._settled.grown_to(len(self.channels))
            channel.state.mode = Mode.SYNC
            self._broker.subscribe(name)
        elif channel.linger is not None:
            channel.linger.cancel()
            channel.linger = None
        channel.users += 1
        if not channel.live:
            live: asyncio.Future[None] = self._loop.create_future()
            channel.wait(live, partial(_settle_future, live))
            try:
                async with asyncio.timeout(OPEN_SECONDS):
                    await live
            except BaseException as error:
                channel.give_up(live)
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
            self.inquiry.expect()
            sync = found.state.connection_replaced()
            if sync is not None:
                self._perform(found, (sync,))

    def received(self, channel: str, item: Publication | Cleared | Attendance) -> None:
        """A live message."""
        if isinstance(item, Attendance):
            self._attended(channel, item)
            return
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
        """The burst is over: write, or hold a large fan-out for what this worker has on its way."""
        if self._dirty and not self._hold():
            self._flush()

    def settled(self) -> None:
        """What was on its way has been answered: nothing of it will come any more, unless another batch follows."""
        if self._held and not self._hold():
            self._flush()

    def _hold(self) -> bool:
        """Whether to wait for more messages to join. No timer: held are only large fan-outs, only while publishes of
        this worker are on their way, and for `HOLDS` answers of the store at most.
        """
        if self._held >= HOLDS or not self._broker.busy or not any(channel.users >= LARGE for channel in self._dirty):
            return False
        self._held += 1
        return True

    def told(self, message: bytes) -> None:
        """For the worker."""
        self._control(message)

    def lost(self) -> None:
        """Nothing more comes until `confirmed`: what had arrived is complete and is written."""
        self.counters.reconnects += 1
        self._flush()
        for channel in self.channels.values():
            if channel.live:
                channel.state.start_sync()
        self.inquiry.forget()
        self._lost()

    # -- continuity

    def _on_reading(self, channel: Channel, reading: Reading, generation: int) -> None:
        self._perform(channel, channel.state.on_reading(reading, generation))
        if channel.out:
            self._schedule()

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
                    self.inquiry.ask(channel, effect)
                case Scatter():
                    self._scatter(channel, "")
                case Reconnect():
                    log.warning("reader and commands disagree about a channel: replacing both connections")
                    self._broker.reconnect()
        if channel.live and not channel.out:
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
        """A message that cannot be written, as one of a newer version: each member meets it on its own way through the
        log, and is told. What is due before it is read from there too: a flush now would take the channel's position,
        which is already beyond it.
        """
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

    # -- fan-out

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        self._held = 0
        dirty, self._dirty = self._dirty, []
        for channel in dirty:
            if channel.out and channel.flush is None:
                self._flush_channel(channel)

    def _flush_channel(self, channel: Channel) -> None:
        """Write what is due to the group, to at most `SLICE` sockets now and to the rest in the next turns."""
        items, channel.out = channel.out, []
        position = next((item.publication.position for item in reversed(items) if item.publication.position), None)
        groups = list(channel.groups.items())
        try:
            framed = [[item.unit(channel.name, encoding) for item in items] for encoding, _ in groups]
        except ValueError:
            log.exception("a message cannot be written: it is not what its kind says", channel=channel.name)
            self._unreadable(channel)
            self._settle(channel)
            return
        parts: list[tuple[list[Chunk], tuple[Socket, ...]]] = []
        for (encoding, group), units in zip(groups, framed, strict=True):
            sockets = group.sockets()
            if group.muted is not None:
                sockets = self._write_apart(group, items, sockets)
            chunks = encoding.framing.join(units)
            parts.append((chunks, sockets))
            self.counters.deliveries += len(units) * len(sockets)
            self.counters.writes += len(chunks) * len(sockets)
        channel.flush = Flush(parts, position)
        self._go_on(channel)

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

    def _go_on(self, channel: Channel) -> None:
        flush = channel.flush
        assert flush is not None
        if not flush.step(SLICE):
            self._loop.call_soon(self._go_on, channel)
            return
        channel.flush = None
        if flush.position is not None:
            channel.written = flush.position
        if channel.scattering:
            channel.scattering = False
            members = channel.scatter("")
            if members:
                self._loop.call_soon(self._scattered, members)
        channel.settle_leaving()
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
        if waiters is not None:
            for waiter in waiters.values():
                waiter()

    def _leave_slow(self) -> None:
        slow, self._slow = self._slow, []
        for subscription in slow:
            if subscription.member.socket.paused and not subscription.closed and subscription.follower is None:
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
