"""Clients around a real hub: sockets that record, clients that judge what they are given, and the whole stage."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Sequence
from typing import Any, cast

from app.core.continuity import Follower, Gap, Resumed
from app.core.errors import Close, TocsinError
from app.core.identity import Identity
from app.core.limits import Rate, Rates
from app.core.messages import ChannelRule, Position, Welcome
from app.core.session import PlainSession
from app.edge.access import Access
from app.edge.entrance import Entrance
from app.edge.websocket import WebSocketEdge
from app.engine.admissions import Admissions
from app.engine.catchup import CatchUp
from app.engine.channel import Channel
from app.engine.connection import Connection
from app.engine.hub import Hub
from app.engine.presence import Presence
from app.engine.roster import Roster
from app.protocols.native import Native
from app.protocols.plain import Plain
from app.sockets import EXTENSION, Limits, Receiver
from tests.unit.engine.memory import MemoryBroker, Room

RULE = ChannelRule()
UNWRITABLE = b"!"
"""A payload that begins so cannot be encoded."""
HIGH = 4
"""Messages that may wait at a socket before its peer counts as slow."""
LIMITS = Limits()


class Units:
    """The framing of `Wire`: a unit is a payload, a chunk at most three of them."""

    def text(self, payload: bytes) -> bytes:
        if payload.startswith(UNWRITABLE):
            raise ValueError("this cannot be framed")
        return payload

    def binary(self, payload: bytes) -> bytes:
        return payload

    def join(self, units: Sequence[bytes]) -> list[tuple[bytes, ...]]:
        return [tuple(units[at : at + 3]) for at in range(0, len(units), 3)]


UNITS = Units()


def _nothing(_: Any) -> None:
    """What is written to a socket that has ended."""


class Wire:
    """A `Socket` whose peer reads when it is told to."""

    def __init__(self, take: Callable[[bytes], None], ended: Callable[[int], None]) -> None:
        self.write: Callable[[tuple[bytes, ...]], None] = self._write
        self.paused = False
        self.heard = math.inf
        self.framing = UNITS
        self.reads = True
        self.reading = True
        self.receiver: Receiver | None = None
        self.closed: int | None = None
        self._take = take
        self._ended = ended
        self._waiting = 0
        self._loop = asyncio.get_running_loop()

    def _write(self, chunk: tuple[bytes, ...]) -> None:
        for payload in chunk:
            self._take(payload)
            self._waiting += not self.reads
        if self._waiting > HIGH and not self.paused and self.receiver is not None:
            self.paused = True
            self.receiver.on_paused()

    def read(self) -> None:
        """The peer reads all that waits."""
        self.reads, self._waiting = True, 0
        if self.paused and self.receiver is not None and self.closed is None:
            self.paused = False
            self.receiver.on_resumed()

    def say(self, payload: bytes) -> None:
        """The peer sends a message."""
        if self.reading and self.closed is None and self.receiver is not None:
            self.receiver.on_text(payload)

    def ping(self, chunk: tuple[bytes, ...] | None) -> None:
        if chunk:
            self.write(chunk)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self, code: int, reason: str = "") -> None:
        self._end(code, 0.05)

    def abort(self) -> None:
        self._end(Close.ABNORMAL, 0.0)

    def _end(self, code: int, seconds: float) -> None:
        if self.closed is None:
            self.closed = code
            self.write = _nothing
            self._loop.call_later(seconds, self._gone)

    def _gone(self) -> None:
        receiver, self.receiver = self.receiver, None
        if receiver is not None:
            receiver.on_closed(self.closed or Close.ABNORMAL)
        self._ended(self.closed or Close.ABNORMAL)


class Told(Connection):
    """A connection that tells of gaps and goes on, as richer formats do."""

    client: Client

    def on_gap(self, channel: str, gap: Gap) -> None:
        """In place of a close."""
        self.client.on_gap(gap.position)


class Client:
    """One who subscribes, comes and goes, and judges what it is given."""

    def __init__(self, stage: Stage, index: int, channel: str) -> None:
        self.stage = stage
        self.index = index
        self.channel = channel
        self.plain = index % 3 == 0
        self.echo = index % 4 != 1
        self.name = ""
        self.wire: Wire | None = None
        self.task: asyncio.Task[None] | None = None
        self.node: int | None = None
        self.since: Position | None = None
        self.seen: set[int] = set()
        self.got = 0
        self.gaps = 0

    @property
    def room(self) -> Room:
        """Its channel at the store."""
        return self.stage.broker.room(self.channel)

    @property
    def off(self) -> bool:
        """Whether it may connect."""
        return self.wire is None and (self.task is None or self.task.done())

    def connect(self, *, resume: bool, history: int = 0) -> None:
        """Come (back)."""
        if not resume or self.since is None:
            self.since = self.node = None
            self.seen = set()
        work = self._connect_plain(history) if self.plain else self._connect_told(history)
        self.task = asyncio.get_running_loop().create_task(work)

    async def _connect_told(self, history: int) -> None:
        stage = self.stage
        try:
            channel = await stage.hub.open(self.channel)
        except TocsinError:
            return
        try:
            if self.since is not None:
                resumed, follower = await stage.catchup.resume(channel, self.since)
            else:
                resumed, follower = await stage.catchup.begin(channel, history)
        except (TocsinError, asyncio.CancelledError):
            stage.hub.release(channel)
            return
        self.name = stage.new_client()
        connection = Told(
            session=PlainSession(self.name, Identity(), self.channel, RULE),
            codec=stage.codec,
            hub=stage.hub,
            catchup=stage.catchup,
            broker=stage.broker,
            roster=stage.roster,
            admissions=stage.admissions,
        )
        connection.client = self
        self.on_resumed(resumed)
        connection.open(self.attach(connection, LIMITS))
        connection.hear(channel, follower, echo=self.echo)

    async def _connect_plain(self, history: int) -> None:
        query = f"channel={self.channel}&echo={str(self.echo).lower()}&history={history}"
        if self.since is not None:
            query += f"&since={self.since}"

        def hand_over(receiver: Receiver, limits: Limits) -> Wire:
            assert isinstance(receiver, Connection)
            self.name = receiver.session.client
            self.on_resumed(self.stage.catchup.given)
            return self.attach(receiver, limits)

        scope = {
            "type": "websocket",
            "path": "/ws",
            "query_string": query.encode(),
            "headers": [],
            "subprotocols": [],
            "extensions": {EXTENSION: hand_over},
        }

        async def receive() -> dict[str, Any]:
            return {"type": "websocket.connect"}

        async def send(_: Any) -> None:
            """Whether it was accepted is told by the handover."""

        await self.stage.edge(scope, receive, send)

    def attach(self, receiver: Receiver, limits: Limits) -> Wire:
        """The socket of its new connection."""
        assert self.wire is None
        self.wire = Wire(self.take, self._on_end)
        self.wire.receiver = receiver
        self.stage.wires += 1
        return self.wire

    def on_resumed(self, resumed: Resumed) -> None:
        """Where it stands before the messages that follow."""
        if resumed.recovered:
            assert resumed.position == self.since
            missed = self.room.oracle.since(self.room.oracle.nodes[self.since], self.node)
            assert missed == [], f"client {self.index} resumed from {self.since} and is at {self.node}"
        elif resumed.recovered is False:
            self.on_gap(resumed.position)
        else:
            self.node, self.since = self.room.oracle.nodes[resumed.position], resumed.position

    def on_gap(self, position: Position) -> None:
        """It is told that continuity was lost."""
        self.gaps += 1
        self.node, self.since = self.room.oracle.nodes[position], position

    def take(self, payload: bytes) -> None:
        """A message is written to it."""
        if payload.startswith(b"~"):
            return
        room = self.room
        node = room.nodes[payload]
        self.stage.fail_if(room.authors.get(payload) == self.name and not self.echo, f"{self}: own message {payload!r}")
        self.stage.fail_if(node in self.seen, f"{self}: {payload!r} twice")
        self.seen.add(node)
        before = self._skip(room.oracle.parent[node])
        self.stage.fail_if(
            before != self._skip(self.node), f"{self}: {payload!r} follows {before}, and it is at {self.node}"
        )
        self.node = node
        self.since = next(position for position, found in room.oracle.nodes.items() if found == node)
        self.got += 1

    def _skip(self, node: int | None) -> int | None:
        """Back over its own messages, which a muted client is not given."""
        if self.echo:
            return node
        authors, nodes = self.room.authors, self.room.nodes
        own = {node for payload, node in nodes.items() if authors.get(payload) == self.name}
        while node in own:
            node = self.room.oracle.parent[node]
        return node

    def missing(self) -> list[int] | None:
        """Nodes that it has not been given; None: it is not on the history at all."""
        oracle = self.room.oracle
        return oracle.since(self._skip(self.room.store.leading.state.node) or 0, self._skip(self.node))

    def drop(self) -> None:
        """The connection is cut."""
        if self.wire is not None:
            self.wire.abort()

    def _on_end(self, code: int) -> None:
        self.wire = None
        self.stage.wires -= 1
        if code == Close.GAP:
            self.gaps += 1
            self.since = self.node = None

    def __repr__(self) -> str:
        return f"client {self.index} ({'plain' if self.plain else 'told'}{'' if self.echo else ', no echo'})"


class Watched(CatchUp):
    """Remembers what it answered last, since plain does not say where it begins. Read before another task runs."""

    def __init__(self, broker: MemoryBroker, hub: Hub) -> None:
        super().__init__(broker, hub)
        self._given: dict[asyncio.Task[Any] | None, Resumed] = {}

    @property
    def given(self) -> Resumed:
        """What was answered to the running task."""
        return self._given.pop(asyncio.current_task())

    async def resume(self, channel: Channel, since: Position) -> tuple[Resumed, Follower]:
        resumed, follower = await super().resume(channel, since)
        self._given[asyncio.current_task()] = resumed
        return resumed, follower

    async def begin(self, channel: Channel, history: int) -> tuple[Resumed, Follower]:
        resumed, follower = await super().begin(channel, history)
        self._given[asyncio.current_task()] = resumed
        return resumed, follower


class Stage:
    """One worker with its clients, in virtual time. Make it on the running loop."""

    def __init__(self, chance: random.Random, clients: int = 6, channels: int = 2, capacity: int = 1000) -> None:
        self.chance = chance
        self.broker = MemoryBroker(chance)
        self.hub = Hub(self.broker)
        self.catchup = Watched(self.broker, self.hub)
        self.roster = Roster(ping_seconds=25, stall_seconds=30, drain_seconds=1, chance=chance.random)
        self.codec = Plain()
        self.wires = 0
        self.violations: list[str] = []
        self._clients = 0
        self._messages = 0
        self.admissions = Admissions(
            cast("Any", self.broker),
            "test",
            clock=lambda: 1e9,
            per_address=0,
            per_user=0,
            connects=Rate(0),
            rates=Rates(),
        )
        self.edge = WebSocketEdge(
            access=Access(
                (), frozenset(), anonymous=True, configured=False, tokens=None, cookie=None, refuse=lambda _: None
            ),
            entrance=Entrance(self.roster, self.admissions, capacity, list, lambda _: False),
            plain=self.codec,
            native=Native(),
            rules=(RULE,),
            hub=self.hub,
            catchup=self.catchup,
            broker=self.broker,
            roster=self.roster,
            admissions=self.admissions,
            presence=cast("Presence", None),  # nobody here asks for it
            limits=LIMITS,
            max_subscriptions=8,
            new_client=self.new_client,
            welcome=lambda client, user: Welcome(client, user, "test/0", 25.0, 65_536, 120),
        )
        self.names = [f"room{number}" for number in range(channels)]
        self.clients = [Client(self, index, self.names[index % channels]) for index in range(clients)]
        self.hub.start(self.catchup.scattered, lambda _: None, lambda: None, lambda _channel, _item: None)
        self.broker.start(self.hub)
        self._tick()

    def _tick(self) -> None:
        self.hub.inquiry.check()
        self.roster.turn()
        self._ticker = asyncio.get_running_loop().call_later(1.0, self._tick)

    def stop(self) -> None:
        """No more ticks."""
        self._ticker.cancel()

    def new_client(self) -> str:
        """A client id."""
        self._clients += 1
        return f"c{self._clients}x"

    def fail_if(self, wrong: bool, what: str) -> None:
        """Note a violation; the run goes on, since a callback that raises would hide what follows."""
        if wrong:
            self.violations.append(f"at {asyncio.get_running_loop().time():.4f}: {what}")

    def publish(self, name: str, mark: str = "p", server: int | None = None) -> bytes:
        """Somebody elsewhere publishes."""
        self._messages += 1
        payload = f"{mark}{self._messages}".encode()
        self.broker.put(name, payload, server=server)
        return payload

    def say(self, client: Client) -> None:
        """A client publishes."""
        if client.wire is not None:
            self._messages += 1
            client.wire.say(f"p{self._messages}".encode())

    def whisper(self, name: str) -> None:
        """An ephemeral message."""
        self._messages += 1
        self.broker.whisper(name, f"~{self._messages}".encode())

    def heal(self) -> None:
        """Everything works from now on."""
        broker = self.broker
        broker.weather.refuse = broker.weather.lose = 0.0
        broker.relieve()
        for room in broker.rooms.values():
            leader = room.store.leading
            leader.primary = True
            room.store.other.primary, room.store.other.source = False, None
        if any({room.store.leader} != {broker.reader, broker.commands} for room in broker.rooms.values()):
            broker.lose_reader(0.0)
        for client in self.clients:
            if client.wire is not None:
                client.wire.read()

    def check_whole(self) -> None:
        """Everybody has everything and is in its group; nothing is left over."""
        hub = self.hub
        for client in self.clients:
            wire = client.wire
            if wire is None or not isinstance(wire.receiver, Connection):
                continue
            subscription = wire.receiver._subscriptions.get(client.channel)
            self.fail_if(client.missing() != [], f"{client}: misses {client.missing()}")
            self.fail_if(subscription is None or subscription.follower is not None, f"{client}: is in no group")
            self.fail_if(subscription is not None and subscription.busy, f"{client}: is busy")
            self.fail_if(not wire.reading, f"{client}: is not read from")
        for channel in hub.channels.values():
            self.fail_if(bool(channel.waiters), f"{channel.name}: {channel.waiters} wait")
            self.fail_if(bool(channel.out) or channel.flush is not None, f"{channel.name}: is not written")
            self.fail_if(not channel.live, f"{channel.name}: is not live")
            users = sum(client.wire is not None and client.channel == channel.name for client in self.clients)
            self.fail_if(channel.users != users, f"{channel.name}: {channel.users} users, should be {users}")
        rings = sum(channel.ring.size for channel in hub.channels.values() if channel.ring is not None)
        self.fail_if(hub.ring_bytes != rings, f"rings hold {rings} bytes, counted are {hub.ring_bytes}")
        self.fail_if(bool(hub._tasks or hub._slow), f"left: {hub._tasks} {hub._slow}")
        self.fail_if(bool(self.catchup._reads), f"left: {self.catchup._reads}")
        self.fail_if(self.roster.count != self.wires, f"{self.roster.count} on the roster, {self.wires} are there")

    def check_empty(self) -> None:
        """Everybody has left long ago."""
        self.fail_if(bool(self.hub.channels), f"left: {self.hub.channels}")
        self.fail_if(bool(self.broker.subscribed), f"still heard: {self.broker.subscribed}")
        self.fail_if(self.hub.ring_bytes != 0, f"{self.hub.ring_bytes} bytes of rings are left")
        self.fail_if(self.roster.count != 0, f"{self.roster.count} on the roster")
        self.fail_if(bool(self.roster._stalled), f"left: {self.roster._stalled}")
