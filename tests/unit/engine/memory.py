"""A broker in memory: the contract of `app.brokers` over the model of the store, late, lossy and unsteady at will."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import orjson

from app.brokers import Extract, Listener, Receipt
from app.core.continuity import Reading, label
from app.core.errors import TocsinError, Unavailable
from app.core.messages import Cleared, Draft, Kind, Position, Publication, Published
from tests.unit.continuity.oracle import Oracle
from tests.unit.continuity.store import Answer, Store, StoreRules

T = TypeVar("T")

UNREADABLE = b"?"
"""A payload that begins so is of a kind that this version does not know."""


def away() -> Unavailable:
    """What a caller is told."""
    return Unavailable("the store is away")


@dataclass
class Weather:
    """How likely it is that something goes wrong, and how long things take (seconds)."""

    delay: float = 0.01
    refuse: float = 0.0
    lose: float = 0.0


@dataclass
class Room:
    """One channel at the store, with its judge."""

    name: str
    oracle: Oracle
    store: Store
    authors: dict[bytes, str] = field(default_factory=dict)
    """Client that published a payload."""
    nodes: dict[bytes, int] = field(default_factory=dict)
    """Node of each payload."""


class MemoryBroker:
    """`Broker` over a `Store` for each channel. The reader, and the commands with the publishes, may be connected to
    different servers.

    Args:
        chance: decides what `weather` leaves open.
    """

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.weather = Weather()
        self.rooms: dict[str, Room] = {}
        self.reader = 0
        self.commands = 0
        self.linked = True
        self.jammed = False
        self.late = 0.0
        self.cut = False
        self.reconnects = 0
        self.reads = 0
        self._listener: Listener
        self._connection = 0
        self._asked: dict[str, int] = {}
        self._numbers = 0
        self._active: set[str] = set()
        self._queue: list[tuple[str, Publication | Cleared | int]] = []
        self._due: dict[str, float] = {}
        self._flying = 0
        self._held = False
        self._waiting: list[Callable[[], None]] = []

    def start(self, listener: Listener) -> None:
        """Begin, on the running loop."""
        self._listener = listener
        self._loop = asyncio.get_running_loop()

    def room(self, name: str) -> Room:
        """The channel at the store."""
        if name not in self.rooms:
            oracle = Oracle()
            self.rooms[name] = Room(name, oracle, Store(StoreRules(), oracle, partial(self._hear, name)))
        return self.rooms[name]

    @property
    def subscribed(self) -> set[str]:
        """What somebody has asked to hear."""
        return set(self._asked)

    @property
    def idle(self) -> bool:
        """Whether nothing is on its way."""
        return not self._queue and not self._flying

    def hold(self) -> None:
        """What is heard waits from now on."""
        self._held = True

    def release(self) -> None:
        """It arrives, in one burst."""
        self._held = False
        self._burst(self._connection, whole=True)

    # -- Outlet

    def publish(self, draft: Draft, receipt: Receipt) -> None:
        self._flying += 1
        self._later("writer", partial(self._take, draft, receipt))

    @property
    def busy(self) -> bool:
        return self._flying > 0

    @property
    def congested(self) -> bool:
        return self.jammed

    def when_uncongested(self, callback: Callable[[], None]) -> None:
        if self.jammed:
            self._waiting.append(callback)
        else:
            callback()

    def relieve(self) -> None:
        """The queue of publishes is short again."""
        self.jammed = False
        waiting, self._waiting = self._waiting, []
        for callback in waiting:
            callback()

    def put(self, name: str, payload: bytes, author: str | None = None, server: int | None = None) -> Position | None:
        """Publish now; None: refused."""
        room = self.room(name)
        if author is not None:
            room.authors[payload] = author
        at = room.store.servers[self.commands if server is None else server]
        position = room.store.publish(at, payload, payload.decode(), retry=False)
        if position is not None:
            room.nodes[payload] = room.oracle.nodes[position]
        return position

    def whisper(self, name: str, payload: bytes) -> None:
        """An ephemeral message."""
        self._push(name, Publication(None, Kind.TEXT, payload))

    def _take(self, draft: Draft, receipt: Receipt) -> None:
        position = None
        if self.chance.random() >= self.weather.refuse:
            position = self.put(draft.channel, draft.payload, draft.client)
        self._later("writer", partial(self._answer, receipt, position))

    def _answer(self, receipt: Receipt, position: Position | None) -> None:
        self._flying -= 1
        receipt(away() if position is None else Published(position))
        self._listener.settled()

    # -- Log

    async def read(self, channel: str, position: Position | None, limit: int) -> Reading:
        self.reads += 1
        return (await self._ask(lambda: self._read(channel, position, limit))).reading

    async def read_tops(self, asked: Sequence[tuple[str, Position | None]]) -> list[Reading | TocsinError]:
        self.reads += 1
        answers = await self._ask(lambda: [self._read(name, position, 0) for name, position in asked])
        unsteady = self.weather.refuse
        return [away() if self.chance.random() < unsteady else answer.reading for answer in answers]

    async def extract(
        self, channel: str, since: Position | None, before: Position | None, limit: int, size: int
    ) -> Extract:
        assert since is before is None
        room = self.room(channel)
        reading = (await self._ask(lambda: room.store.newest(room.store.servers[self.commands], limit))).reading
        at = reading.top - len(reading.publications)
        start = Position(label(reading.lineage, at), at)
        return Extract(self._dress(room, reading.publications), Position(reading.tail, reading.top), start, True)

    async def clear(self, channel: str) -> Position:
        room = self.room(channel)
        room.store.clear(room.store.leading)
        meta = room.store.leading.state.meta
        assert meta is not None
        return Position(meta.epoch, meta.top)

    async def _ask(self, question: Callable[[], T | None]) -> T:
        await asyncio.sleep(self._delay())
        answer = None if self.chance.random() < self.weather.refuse else question()
        await asyncio.sleep(self.late or self._delay())
        if answer is None:
            raise away()
        return answer

    def _read(self, channel: str, position: Position | None, limit: int) -> Answer:
        room = self.room(channel)
        answer = room.store.read(room.store.servers[self.commands], position, limit=limit)
        if answer is None:
            self.reconnect()
            raise away()
        reading = answer.reading
        return answer._replace(reading=replace(reading, publications=self._dress(room, reading.publications)))

    def _dress(self, room: Room, publications: Sequence[Publication]) -> tuple[Publication, ...]:
        return tuple(self._dressed(room, publication) for publication in publications)

    @staticmethod
    def _dressed(room: Room, publication: Publication) -> Publication:
        author = room.authors.get(publication.payload)
        attributes = orjson.dumps({} if author is None else {"c": author})
        kind = None if publication.payload.startswith(UNREADABLE) else publication.kind
        return replace(publication, kind=kind, attributes=attributes)

    # -- Feed

    def subscribe(self, channel: str) -> None:
        self.room(channel)
        self._numbers += 1
        self._asked[channel] = self._numbers
        if self.linked:
            self._later("reader", partial(self._subscribed, self._connection, channel, self._numbers))

    def unsubscribe(self, channel: str) -> None:
        if self._asked.pop(channel, None) is not None and self.linked:
            self._later("reader", partial(self._unsubscribed, self._connection, channel))

    def reconnect(self) -> None:
        self.reconnects += 1
        self._loop.call_soon(self.lose_reader)

    def lose_reader(self, back: float | None = None) -> None:
        """The reader's connection is lost; it is back, at the leader, after so many seconds."""
        if not self.linked:
            return
        self.linked = False
        self._connection += 1
        self._queue.clear()
        self._active.clear()
        self._listener.lost()
        self._loop.call_later(self._delay() if back is None else back, self._relink)

    def _relink(self) -> None:
        self.linked = True
        leaders = [room.store.leader for room in self.rooms.values()] or [0]
        self.reader = self.commands = leaders[0]
        for channel, number in self._asked.items():
            self._later("reader", partial(self._subscribed, self._connection, channel, number))

    def _subscribed(self, connection: int, channel: str, number: int) -> None:
        if connection == self._connection:
            self._active.add(channel)
            self._push(channel, number)

    def _unsubscribed(self, connection: int, channel: str) -> None:
        if connection == self._connection:
            self._active.discard(channel)

    def _hear(self, channel: str, server: int, item: Publication | Cleared) -> None:
        if server != self.reader or not self.linked or channel not in self._active:
            return
        if self.chance.random() < self.weather.lose:
            return
        if isinstance(item, Publication):
            item = self._dressed(self.rooms[channel], item)
        self._push(channel, item)

    def _push(self, channel: str, item: Publication | Cleared | int) -> None:
        if self.linked and channel in self._active:
            self._queue.append((channel, item))
            self._loop.call_later(self._delay(), self._burst, self._connection)

    def _burst(self, connection: int, *, whole: bool = False) -> None:
        """What has come until now arrives, or a part of it."""
        if connection != self._connection or not self._queue or self._held:
            return
        count = len(self._queue) if whole else self.chance.choice((1, 2, 3, len(self._queue)))
        burst, self._queue = self._queue[:count], self._queue[count:]
        if self._queue:
            self._loop.call_soon(self._burst, connection)
        for channel, item in burst:
            if isinstance(item, int):
                if self._asked.get(channel) == item:
                    self._listener.confirmed(channel)
            elif channel in self._asked:
                self._listener.received(channel, item)
            if self.cut:
                self.cut = False
                self.lose_reader(5.0)
            if connection != self._connection:
                return
        self._listener.drained()

    # -- time

    def _delay(self) -> float:
        return self.weather.delay * self.chance.random() * self.chance.choice((0.0, 0.1, 1.0, 1.0, 10.0))

    def _later(self, line: str, callback: Callable[[], None]) -> None:
        """After a while, in the order of the calls of one line."""
        due = max(self._due.get(line, 0.0), self._loop.time() + self._delay())
        self._due[line] = due
        self._loop.call_at(due, callback)
