"""Catching up: everyone who is not in a channel's group is brought to the group's position, page by page.

Resuming clients and slow readers come here. Pages come from the channel's ring when it can prove the position, else
from the log, one read for all who stand at the same position. A negative verdict is only given by a read that began
after the follower asked.
"""

from __future__ import annotations

import asyncio
from functools import partial

from app.brokers import Broker
from app.core.continuity import Follower, Gap, Join, Reading, Reason, Resumed, Verdict, resume, subscribe
from app.core.errors import TocsinError
from app.core.messages import Position
from app.engine.channel import Channel, Subscription
from app.engine.hub import Hub
from app.engine.inquiry import PAGE
from app.engine.shared import Shared

TURN = 131_072
"""Bytes from a ring to one follower in one turn of the loop."""
BATCH = 200
"""Followers served from one shared read in one turn."""
RETRY_SECONDS = 0.5


class Read:
    """One page being read for several followers at the same position."""

    __slots__ = ("first", "late")

    def __init__(self, subscription: Subscription) -> None:
        self.first = [subscription]
        self.late: list[Subscription] = []


class CatchUp:
    """Brings followers into their groups.

    Args:
        broker: the store.
        hub: gives `resync`, `spawn` and the channels.
    """

    def __init__(self, broker: Broker, hub: Hub) -> None:
        self._broker = broker
        self._hub = hub
        self._reads: dict[tuple[str, Position], Read] = {}
        self.pages = 0
        self.replayed = 0

    async def resume(self, channel: Channel, since: Position) -> tuple[Resumed, Follower]:
        """Judge a `since`: from the ring when that proves it, else by a read that begins now.

        Raises:
            Unavailable: the store is away.
        """
        state = channel.state
        if channel.live and channel.ring is not None and state.position is not None:
            missed = channel.ring.after(since, state.position.offset)
            if missed is not None:
                return Resumed(since, True, len(missed)), Follower(since, state.epoch)
        return resume(await self._broker.read(channel.name, since, 0), since)

    async def begin(self, channel: Channel, history: int) -> tuple[Resumed, Follower]:
        """Start at the top, or just before the newest `history` messages.

        Raises:
            Unavailable: the store is away.
        """
        if history == 0:
            state = channel.state
            if channel.live and state.position is not None:
                return Resumed(state.position, None), Follower(state.position, state.epoch)
            return subscribe(await self._broker.read(channel.name, None, 0))
        extract = await self._broker.extract(channel.name, None, None, history, 2**20)
        return Resumed(extract.before, None, len(extract.publications)), Follower(extract.before)

    def scattered(self, subscriptions: list[Subscription]) -> None:
        """These have just left their group and must look after themselves."""
        for subscription in subscriptions:
            self.step(subscription)

    def step(self, subscription: Subscription) -> None:
        """Do what can be done for a follower now; it is called again whenever that may have changed."""
        follower, channel = subscription.follower, subscription.channel
        if follower is None or subscription.closed or subscription.busy or subscription.member.socket.paused:
            return
        match follower.joins(channel.state, channel.written):
            case Join.WAIT:
                channel.wait(subscription, partial(self.step, subscription))
            case Join.RESYNC:
                follower.doubt()
                self._hub.resync(channel)
                channel.wait(subscription, partial(self.step, subscription))
            case Join.NOW if channel.flush is not None:
                channel.wait(subscription, partial(self.step, subscription))
            case Join.NOW:
                channel.join(subscription)
            case Join.BEHIND:
                if not self._from_ring(subscription, follower):
                    self._read(subscription, follower)

    def _from_ring(self, subscription: Subscription, follower: Follower) -> bool:
        channel = subscription.channel
        if channel.ring is None or channel.written is None or follower.epoch != channel.state.epoch:
            return False
        missed = channel.ring.after(follower.position, channel.written.offset)
        if not missed:
            return False
        size = count = 0
        for item in missed:
            size += len(item.publication.payload)
            count += 1
            if size > TURN:
                break
        page = missed[:count]
        position = page[-1].publication.position
        assert position is not None
        follower.position = position
        self.replayed += subscription.write(page)
        asyncio.get_running_loop().call_soon(self.step, subscription)
        return True

    def _read(self, subscription: Subscription, follower: Follower) -> None:
        subscription.busy = True
        key = (subscription.channel.name, follower.position)
        read = self._reads.get(key)
        if read is not None:
            read.late.append(subscription)
            return
        read = self._reads[key] = Read(subscription)
        self._hub.spawn(self._page(key, read))

    async def _page(self, key: tuple[str, Position], read: Read) -> None:
        name, position = key
        await asyncio.sleep(0)  # whoever asks in this turn of the loop shares the read and may trust it fully
        read.first += read.late
        read.late = []
        try:
            reading = await self._broker.read(name, position, PAGE)
        except TocsinError:
            del self._reads[key]
            for subscription in read.first + read.late:
                subscription.busy = False
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self.scattered, read.first + read.late)
            return
        del self._reads[key]
        self.pages += 1
        items = [Shared(publication) for publication in reading.publications]
        served, refused = read.first, read.late
        if reading.verdict is Verdict.OK:
            served, refused = served + refused, []
        for index, subscription in enumerate(served):
            if index and index % BATCH == 0:
                await asyncio.sleep(0)
            self._serve(subscription, reading, items)
        for subscription in refused:
            subscription.busy = False
            self.step(subscription)

    def _serve(self, subscription: Subscription, reading: Reading, items: list[Shared]) -> None:
        subscription.busy = False
        follower, channel = subscription.follower, subscription.channel
        if follower is None or subscription.closed:
            return
        own = channel.live and reading.epoch == channel.state.epoch
        result = follower.on_page(reading, channel.written if own else None)
        if isinstance(result, Gap):
            self._gap(subscription, result)
        else:
            page = items[: len(result.publications)]
            name, encoding = channel.name, subscription.encoding
            fit = next((index for index, item in enumerate(page) if not item.writable(name, encoding)), len(page))
            self.replayed += subscription.write(page[:fit])
            if fit < len(page):
                position = page[fit].publication.position
                assert position is not None
                follower.position = position
                self._gap(subscription, Gap(Reason.EXPIRED, position))
        asyncio.get_running_loop().call_soon(self.step, subscription)

    def _gap(self, subscription: Subscription, gap: Gap) -> None:
        self._hub.counters.gaps += 1
        subscription.member.on_gap(subscription.channel.name, gap)
