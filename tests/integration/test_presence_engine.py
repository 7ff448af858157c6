"""Presence in two workers' engines on one Redis: who is told what, and what becomes of members when things break."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

import orjson
import pytest
import redis

from app.brokers import Attendee
from app.brokers.presence import RedisPresence
from app.brokers.redis import RedisBroker
from app.core.errors import Unavailable
from app.core.limits import Rate, Rates
from app.core.messages import ChannelRule, PresenceChange
from app.engine import boards, membership, worker
from app.engine.admissions import Admissions
from app.engine.hub import Hub
from app.engine.presence import Presence, Watcher
from app.engine.reaper import Reaper
from app.engine.refusals import Refusals
from app.engine.roster import Roster
from app.engine.worker import Worker
from app.protocols import Message
from app.protocols.native import Native
from tests.contract.stage import until
from tests.stage.redis import RedisServer
from tests.unit.engine.crowd import Wire

LATE = 8.0
"""Seconds in which a leave must have come; six, and two for a machine that has other things to do."""


class Codec(Native):
    """Writes what it is told as names, and counts."""

    def __init__(self) -> None:
        self.said = 0

    def say(self, event: Any) -> Message:
        assert isinstance(event, PresenceChange)
        self.said += 1
        joined, left = ([one.member for one in some] for some in (event.joined, event.left))
        return Message(orjson.dumps([joined, left, event.count]), text=True)


class Watching:
    """A watcher that keeps what it is told."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.heard: list[list[Any]] = []
        self.socket = Wire(lambda payload: self.heard.append(orjson.loads(payload)), lambda _: None)

    def left(self) -> list[str]:
        return [name for _, left, _ in self.heard for name in left]

    def joined(self) -> list[str]:
        return [name for joined, _, _ in self.heard for name in joined]


class Peer:
    """A connection, as the roster sees it."""

    held = one_way = False
    keepalive = None

    def __init__(self, silent_for: float) -> None:
        self.slot = 0
        self.socket = Wire(lambda _: None, lambda _: None)
        self.socket.heard = asyncio.get_running_loop().time() - silent_for

    def end(self, after: float) -> None:
        """Not of interest here."""


class Engine:
    """One worker without its sockets."""

    def __init__(self, url: str, prefix: str, name: str) -> None:
        self.broker = RedisBroker(url, prefix, [ChannelRule()], deadline=1.0)
        self.hub = Hub(self.broker)
        self.rooms = RedisPresence(self.broker.script, prefix)
        self.presence = Presence(self.rooms, self.hub, name)
        self.codec = Codec()
        self.roster = Roster(ping_seconds=25, stall_seconds=30, drain_seconds=1, chance=lambda: 0.5)
        self.worker = Worker(
            store=self.broker,
            hub=self.hub,
            roster=self.roster,
            admissions=Admissions(
                self.broker, prefix, clock=time.time, per_address=0, per_user=0, connects=Rate(0), rates=Rates()
            ),
            refusals=Refusals(self.broker, prefix, lambda _: 0, time.monotonic),
            presence=self.presence,
            reaper=Reaper(self.rooms, self.hub.spawn, self.presence.add_reaped),
            prefix=prefix,
            node="node",
            slots=4,
            incarnation=name,
            snapshot=lambda: {"ready": not self.worker.problems()},
        )
        self.name = name

    async def start(self) -> None:
        self.hub.start(lambda _: None, self.worker.on_control, lambda: None, self.presence.received)
        self.broker.start(self.hub, self.name)
        self.worker.start()
        await until(lambda: not self.broker.problems() and self.worker.slot >= 0)

    async def stop(self) -> None:
        await self.worker.stop()
        await self.hub.close()
        await self.broker.close()

    async def watch(self, channel: str = "room") -> Watching:
        """A watcher that knows the room as it is now."""
        await self.hub.open(channel)
        watcher = Watching(self.codec)
        self.presence.watch(channel, cast("Watcher", watcher))
        await until(lambda: self.presence._boards._boards[channel].told is not None)
        self.presence.begin(channel, cast("Watcher", watcher))
        return watcher

    async def enter(self, *names: str, channel: str = "room") -> None:
        """`client=member`, or one word for both."""
        await asyncio.gather(
            *(self.presence.enter(channel, one.partition("=")[0], one.rpartition("=")[2], b"{}") for one in names)
        )

    async def names(self, channel: str = "room") -> list[str]:
        page = await self.presence.members(channel, 1000, None)
        assert page.count == len(page.members)
        return sorted(one.member for one in page.members)

    async def come_to(self, wanted: list[str], channel: str = "room", seconds: float = 10) -> None:
        """Wait until the room is so."""
        async with asyncio.timeout(seconds):
            while True:
                try:
                    if await self.names(channel) == wanted:
                        return
                except Unavailable:
                    pass
                await asyncio.sleep(0.05)


@asynccontextmanager
async def two_engines(url: str, prefix: str) -> AsyncIterator[tuple[Engine, Engine]]:
    async with AsyncExitStack() as stack:
        engines = [Engine(url, prefix, name) for name in ("one", "two")]
        await asyncio.gather(*(engine.start() for engine in engines))
        for engine in engines:
            stack.push_async_callback(engine.stop)
        yield engines[0], engines[1]


@pytest.fixture
async def engines(redis_server: RedisServer, prefix: str) -> AsyncIterator[tuple[Engine, Engine]]:
    async with two_engines(redis_server.url, prefix) as engines:
        yield engines


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """A Redis that this test may break."""
    with RedisServer() as server:
        yield server


def age_reign(server: RedisServer, prefix: str) -> None:
    """As if this server had led for an hour."""
    with server.client() as store:
        replid, since = bytes(store.get(f"{prefix}:{{workers}}:reign") or b"").split()
        store.set(f"{prefix}:{{workers}}:reign", b"%b %d" % (replid, int(since) - 3_600_000))


def scripts_run(store: redis.Redis) -> int:
    found: dict[str, Any] = store.info("commandstats")
    return sum(found.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval"))


async def test_changes_are_told_on_other_workers_once_a_second_and_encoded_once(
    engines: tuple[Engine, Engine],
) -> None:
    one, two = engines
    watchers = [await two.watch() for _ in range(3)]
    began = time.monotonic()
    await one.enter("ada", "bob")
    await one.enter("c3=ada", "eve")
    await until(lambda: all(watcher.heard for watcher in watchers), 5)
    assert time.monotonic() - began > 0.9
    assert watchers[0].heard == [[["ada", "bob", "eve"], [], 3]]
    assert two.codec.said == 1
    one.presence.leave("room", "ada")  # still there with another client
    one.presence.leave("room", "bob")
    await until(lambda: all(watcher.left() for watcher in watchers), 5)
    assert watchers[2].left() == ["bob"]
    assert two.codec.said == 2
    two.presence.unwatch("room", cast("Watcher", watchers[0]))
    one.presence.leave("room", "eve")
    await until(lambda: len(watchers[1].left()) == 2, 5)
    assert len(watchers[0].heard) == 2


async def test_who_is_back_on_any_worker_within_two_seconds_was_never_away(engines: tuple[Engine, Engine]) -> None:
    one, two = engines
    await one.enter("c1=ada", "c2=bob")
    watcher = await two.watch()
    one.presence.gone("room", "c1")
    one.presence.gone("room", "c2")
    await asyncio.sleep(1.2)
    assert await two.names() == ["ada", "bob"]
    await two.enter("c3=ada")
    await until(watcher.left, 5)
    await two.come_to(["ada"])
    assert watcher.heard == [[[], ["bob"], 1]]


async def test_what_one_turn_brings_is_one_step_a_room(
    engines: tuple[Engine, Engine], redis_server: RedisServer
) -> None:
    one, two = engines
    with redis_server.client() as store:
        before = scripts_run(store)
        await one.enter(*(f"c{number}" for number in range(1000)))
        assert scripts_run(store) - before <= 10  # the room, two steps, and beats
    assert (await two.presence.members("room", 1, None)).count == 1000
    assert one.presence.local == one.presence.joins == 1000


async def test_a_worker_tells_at_once_that_it_is_ready_and_that_it_is_not(
    redis_server: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "BEAT_SECONDS", 3600)
    engine = Engine(redis_server.url, prefix, "one")

    async def says() -> list[bool]:
        return [orjson.loads(lease.split(b"\n", 2)[2])["ready"] for lease in await engine.worker._leases()]

    try:
        await engine.start()
        for ready in (True, False):
            engine.roster.draining = not ready
            async with asyncio.timeout(2):
                while await says() != [ready]:
                    await asyncio.sleep(0.01)
    finally:
        await engine.stop()


async def test_beats_of_ten_thousand_members_cost_four_commands_a_second(prefix: str) -> None:
    with RedisServer() as server, server.client() as store:
        engine = Engine(server.url, prefix, "one")
        await engine.start()
        try:
            for room in range(500):
                await engine.enter(*(f"c{number}" for number in range(20)), channel=f"room{room}")
            assert engine.presence.local == 10_000
            before = scripts_run(store)
            await asyncio.sleep(4)
            assert scripts_run(store) - before <= 4 * 4 + 3
        finally:
            await engine.stop()


async def test_a_room_is_noted_while_it_has_members_of_the_worker(
    engines: tuple[Engine, Engine], redis_server: RedisServer, prefix: str
) -> None:
    one, _ = engines
    with redis_server.client() as store:
        for _ in range(3):
            await one.enter("c1", "c2")
            assert store.smembers(f"{prefix}:{{workers}}:rooms:one") == {b"room"}
            one.presence.leave("room", "c1")
            one.presence.leave("room", "c2")
            await until(lambda: not store.exists(f"{prefix}:{{workers}}:rooms:one"))
        assert not one.presence._members._rooms
        await one.enter("c1")
        one.presence.leave("room", "c1")
        await one.enter("c1")
        assert store.smembers(f"{prefix}:{{workers}}:rooms:one") == {b"room"}
        assert await one.names() == ["c1"]


async def test_the_members_of_a_dead_worker_leave_within_six_seconds(
    engines: tuple[Engine, Engine], redis_server: RedisServer, prefix: str
) -> None:
    one, two = engines
    await asyncio.sleep(4.5)  # who reaps has been well for a TTL
    await one.enter("c1=ada", "c2=bob")
    await two.enter("c3=ada")
    watcher = await two.watch()
    age_reign(redis_server, prefix)
    await one.worker.stop()
    began = time.monotonic()
    await until(watcher.left, LATE)
    print(f"{time.monotonic() - began:.1f} s")
    assert watcher.left() == ["bob"]
    assert await two.names() == ["ada"]
    assert two.presence.reaped == 2
    with redis_server.client() as store:
        await until(lambda: store.zrange(f"{prefix}:{{workers}}:all", 0, -1) == [b"two"])


async def test_a_worker_that_was_buried_comes_back_with_its_members(
    engines: tuple[Engine, Engine], redis_server: RedisServer, prefix: str
) -> None:
    one, two = engines
    await one.enter("ada", "bob")
    watcher = await two.watch()
    age_reign(redis_server, prefix)
    brisk, silent = Peer(40), Peer(60)
    one.roster.add(cast("Any", brisk))
    one.roster.add(cast("Any", silent))
    with redis_server.client() as store:
        store.delete(f"{prefix}:{{workers}}:lease:one")
        await two.rooms.bury("one", "two")
        await two.rooms.reap("room", "one")
        await until(lambda: one.worker.incarnation != "one")
        assert one.worker.incarnation.startswith("node-")
        assert (brisk.socket.closed, silent.socket.closed) == (None, 1006)
        await two.come_to(["ada", "bob"])
        one.presence.leave("room", "bob")
        await two.come_to(["ada"])
        await until(lambda: watcher.left()[-1:] == ["bob"], 5)
        stored: Any = store.hgetall(f"{prefix}:{{room}}:members")
        assert all(one.worker.incarnation.encode() in value for value in stored.values())
        assert store.smembers(f"{prefix}:{{workers}}:rooms:{one.worker.incarnation}") == {b"room"}
    assert await two.worker.channels("", "") == ([("room", 1)], None)
    assert await one.worker.channels("", "") == ([("room", 1)], None)


async def test_what_a_buried_worker_still_wrote_is_found(
    engines: tuple[Engine, Engine], redis_server: RedisServer, prefix: str
) -> None:
    one, two = engines
    await one.enter("ada")
    age_reign(redis_server, prefix)
    with redis_server.client() as store:
        store.delete(f"{prefix}:{{workers}}:lease:one")
    await two.rooms.bury("one", "two")
    assert await two.rooms.estate("one", ["room"]) == []
    await one.enter("bob")  # under an incarnation that is dead already, after everything was cleared up
    one.presence.leave("room", "ada")
    await until(lambda: one.worker.incarnation != "one")
    one.presence.leave("room", "bob")
    await two.come_to([])
    await until(lambda: not one.presence._members._rooms)


async def test_an_outage_of_the_store_empties_no_room(prefix: str, own_server: RedisServer) -> None:
    async with two_engines(own_server.url, prefix) as (one, two):
        age_reign(own_server, prefix)
        await one.enter("ada")
        await two.enter("bob")
        watcher = await two.watch()
        own_server.signal(signal.SIGSTOP)
        await asyncio.sleep(6)
        one.presence.leave("room", "nobody")
        with pytest.raises(Unavailable):
            await one.enter("eve")
        own_server.signal(signal.SIGCONT)
        await asyncio.sleep(6)
        assert watcher.heard == []
        assert await two.names() == ["ada", "bob"]
        assert {one.worker.incarnation, two.worker.incarnation} == {"one", "two"}


async def test_who_could_not_enter_is_no_member_and_who_left_meanwhile_is_gone(
    prefix: str, own_server: RedisServer
) -> None:
    async with two_engines(own_server.url, prefix) as (one, two):
        await one.enter("ada", "bob")
        own_server.signal(signal.SIGSTOP)
        one.presence.leave("room", "bob")
        with pytest.raises(Unavailable):
            await one.enter("eve")
        own_server.signal(signal.SIGCONT)
        await two.come_to(["ada"])
        await one.enter("eve")
        assert await two.names() == ["ada", "eve"]
        assert one.presence.local == 2


async def test_what_was_not_heard_is_told_after_a_loss_of_the_reader(
    engines: tuple[Engine, Engine], redis_server: RedisServer, prefix: str
) -> None:
    one, two = engines
    await one.enter("ada", "bob")
    watcher = await two.watch()
    with redis_server.client() as store:
        await one.presence._store.attend("room", "one", [], ["bob"])
        await until(lambda: watcher.left() == ["bob"], 5)
        store.hdel(f"{prefix}:{{room}}:users", "ada")
        store.hset(f"{prefix}:{{room}}:users", "zoe", "1 {}")
        for client in store.client_list(_type="pubsub"):
            store.client_kill_filter(_id=client["id"])
    await until(lambda: watcher.left() == ["bob", "ada"] and watcher.joined() == ["zoe"], 8)
    assert watcher.heard[-1][2] == 1


async def test_what_is_missing_in_the_store_is_put_back_and_told(
    engines: tuple[Engine, Engine], redis_server: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "ASSERT_SECONDS", 1)
    monkeypatch.setattr(boards, "READ_SECONDS", 1)
    one, two = engines
    await one.enter("ada", "bob")
    watcher = await two.watch()
    with redis_server.client() as store:
        store.hdel(f"{prefix}:{{room}}:members", "ada")
        store.hdel(f"{prefix}:{{room}}:users", "ada")
        await two.come_to(["ada", "bob"])
        store.hdel(f"{prefix}:{{room}}:users", "bob")
        await two.come_to(["ada", "bob"])
        store.delete(f"{prefix}:{{room}}:members", f"{prefix}:{{room}}:users")
        await two.come_to(["ada", "bob"])
        await asyncio.sleep(2.5)
        assert sorted(watcher.joined()) == sorted(watcher.left())  # who was missed for a moment is here again
        assert watcher.heard == [] or watcher.heard[-1][2] == 2


async def test_rooms_of_which_the_store_lost_the_note_are_noted_again(
    engines: tuple[Engine, Engine], redis_server: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "ASSERT_SECONDS", 1)
    one, _ = engines
    await one.enter("ada")
    with redis_server.client() as store:
        note = f"{prefix}:{{workers}}:rooms:{one.worker.incarnation}"
        store.delete(note)
        await until(lambda: store.smembers(note) == {b"room"}, 5)


async def test_a_store_that_forgot_everything_is_told_again_in_seconds(prefix: str, own_server: RedisServer) -> None:
    async with two_engines(own_server.url, prefix) as (one, two):
        await one.enter("ada")
        await two.enter("bob")
        with own_server.client() as store:
            store.flushall()
        await two.come_to(["ada", "bob"], seconds=5)


async def test_who_has_left_leaves_again_when_another_server_leads(prefix: str, own_server: RedisServer) -> None:
    async with two_engines(own_server.url, prefix) as (one, two):
        await one.enter("ada")
        one.presence.leave("room", "ada")
        await until(lambda: not one.presence._members._rooms)
        await two.rooms.attend("room", "one", [Attendee("ada", "ada")], [])  # what the new one has: no leave
        with own_server.client() as store:
            store.replicaof("127.0.0.1", 1)
            store.replicaof("NO", "ONE")
        await two.come_to([])
        with own_server.client() as store:
            await until(lambda: not store.exists(f"{prefix}:{{workers}}:rooms:one"), 5)


async def test_a_fault_in_one_part_of_a_tick_costs_neither_the_lease_nor_the_others(
    redis_server: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(redis_server.url, prefix, "one")
    ticked: list[bool] = []

    def fail() -> None:
        raise RuntimeError("a fault of the roster")

    monkeypatch.setattr(engine.roster, "turn", fail)
    monkeypatch.setattr(engine.presence, "tick", lambda: ticked.append(True))
    try:
        await engine.start()
        assert engine.worker.slot >= 0
        assert ticked
    finally:
        await engine.stop()


async def test_of_a_large_room_only_the_number_is_told_and_when_it_is_small_again_who_is_missing(
    engines: tuple[Engine, Engine],
) -> None:
    one, two = engines
    everyone = [f"m{number}" for number in range(600)]
    await one.enter("ada", *everyone[:400])
    watcher = await two.watch()
    await one.enter(*everyone[400:])
    await until(lambda: watcher.heard, 5)
    assert watcher.heard == [[[], [], 601]]
    one.presence.leave("room", "ada")
    for name in everyone[:150]:
        one.presence.leave("room", name)
    await until(lambda: watcher.heard[-1][2] == 450 and watcher.left(), 5)
    await until(lambda: len(watcher.left()) == 151 and len(watcher.joined()) == 200, 5)
    assert set(watcher.left()) == {"ada", *everyone[:150]}
    assert set(watcher.joined()) == set(everyone[400:])


async def test_who_reads_slowly_is_told_the_sum_of_it_later(engines: tuple[Engine, Engine]) -> None:
    one, two = engines
    watcher = await two.watch()
    watcher.socket.paused = True
    await one.enter("ada", "bob")
    await until(lambda: two.presence._boards._behind, 5)
    one.presence.leave("room", "bob")
    await one.enter("eve")
    await until(
        lambda: two.presence._boards._boards["room"].told == 2 and not two.presence._boards._boards["room"].timer, 5
    )
    await asyncio.sleep(1.2)
    assert watcher.heard == []
    watcher.socket.paused = False
    await until(lambda: watcher.heard, 5)
    assert (sorted(watcher.joined()), watcher.left(), watcher.heard[-1][2]) == (["ada", "eve"], [], 2)
    assert not two.presence._boards._behind


async def test_first_pages_asked_for_at_once_are_one_reading(
    engines: tuple[Engine, Engine], redis_server: RedisServer
) -> None:
    one, _ = engines
    await one.enter("ada")
    with redis_server.client() as store:
        before = scripts_run(store)
        pages = await asyncio.gather(*(one.presence.members("room", 100, None) for _ in range(500)))
        assert {page.count for page in pages} == {1}
        assert scripts_run(store) - before <= 6
    assert not one.presence._reads
