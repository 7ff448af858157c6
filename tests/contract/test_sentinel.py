"""Sentinel: the primary is found; a failover refuses publishes for a while, then they flow; no id has two bodies."""

from __future__ import annotations

import asyncio
import signal
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from app.brokers import AckLevel
from app.brokers.address import SentinelAddress, read_sentinel_url
from app.brokers.redis import RedisBroker
from app.brokers.sentinel import Discovery, NoPrimary
from app.core.continuity import Verdict
from app.core.errors import TocsinError, Unavailable
from app.core.messages import Position, Published
from tests.contract.stage import RULES, Ear, Stage, connected, until
from tests.stage.redis import Watched


@pytest.fixture
def watched() -> Iterator[Watched]:
    """A primary, a replica and one Sentinel, which is quicker than several to begin with."""
    with Watched(sentinels=1) as running:
        yield running


class Publisher:
    """Publishes one message after the other, each with a key, and tries each until it is taken or `stop`."""

    def __init__(self, stage: Stage, channel: str) -> None:
        self.taken: dict[Position, bytes] = {}
        self.refused = 0
        self.unsure: set[bytes] = set()
        self._stage = stage
        self._channel = channel
        self._stopped = False
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        number = 0
        while not self._stopped:
            payload = b"%s %d" % (self._channel.encode(), number)
            outcome: Published | TocsinError = await self._stage.send(self._channel, payload, key=f"{number:016}")
            if isinstance(outcome, Published) and outcome.position is not None:
                self.taken[outcome.position] = payload
                number += 1
                await asyncio.sleep(0.005)  # not so fast that the log forgets the failover
            else:
                assert isinstance(outcome, Unavailable), outcome
                self.refused += 1
                self.unsure.add(payload)
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """End after the message under way."""
        self._stopped = True
        await self._task


@asynccontextmanager
async def publishing(stage: Stage, channel: str) -> AsyncIterator[Publisher]:
    """A publisher for a while."""
    publisher = Publisher(stage, channel)
    try:
        yield publisher
    finally:
        await publisher.stop()


def bodies(stages: list[Stage], publishers: list[Publisher]) -> dict[Position, set[bytes]]:
    """What was ever heard or acknowledged under each position."""
    found: dict[Position, set[bytes]] = defaultdict(set)
    for stage in stages:
        for _, item in stage.ear.items:
            if item.position is not None and hasattr(item, "payload"):
                found[item.position].add(item.payload)
    for publisher in publishers:
        for position, payload in publisher.taken.items():
            found[position].add(payload)
    return found


async def test_the_primary_is_found_by_its_name(prefix: str) -> None:
    with Watched(replicas=0, sentinels=1) as watched:
        async with connected(watched.url + "?db=2", prefix) as stage:
            await stage.subscribe("room")
            await stage.publish("room", b"x")
            await until(lambda: stage.ear.payloads("room") == [b"x"])
            with watched.primary.client() as client:
                assert client.info("keyspace")["db2"]["keys"] == 2
        address = SentinelAddress(read_sentinel_url(watched.url).sentinels, "other")
        with pytest.raises(NoPrimary):
            await Discovery(address, 1.0, lambda: None).find()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_failover_under_load(watched: Watched, prefix: str, end: signal.Signals) -> None:
    """Publishes are refused meanwhile, then flow; what a subscriber saw is judged for what it is."""
    old = watched.primary
    async with (
        connected(watched.url, prefix, deadline=0.5, probe_seconds=0.3) as one,
        connected(watched.url, prefix, deadline=0.5, probe_seconds=0.3) as two,
    ):
        stages = [one, two]
        for stage in stages:
            await stage.subscribe("a")
            await stage.subscribe("b")
        async with publishing(one, "a") as first, publishing(two, "b") as second:
            await until(lambda: len(first.taken) > 50 and len(second.taken) > 50)
            old.signal(end)
            await until(lambda: first.refused and second.refused)
            await asyncio.to_thread(watched.wait_for_another, old)
            before = [len(first.taken), len(second.taken)]
            await until(lambda: len(first.taken) > before[0] + 50 and len(second.taken) > before[1] + 50, 20)
            if end == signal.SIGSTOP:  # it wakes up as the primary it was, and is demoted
                old.signal(signal.SIGCONT)
                at = [len(first.taken), len(second.taken)]
                await until(lambda: len(first.taken) > at[0] + 50 and len(second.taken) > at[1] + 50, 20)
        for stage in stages:
            await stage.ready()
        assert {len(found) for found in bodies(stages, [first, second]).values()} == {1}
        for channel, publisher in (("a", first), ("b", second)):
            extract = await one.broker.extract(channel, None, None, 10_000, 10_000_000)
            kept = [publication.position for publication in extract.publications if publication.position is not None]
            assert [position.offset for position in kept] == list(range(kept[0].offset, extract.position.offset + 1))
            lost = publisher.taken.keys() - set(kept)
            for position in list(publisher.taken)[-5:]:
                assert position in kept
            for position in lost:  # asynchronous replication may lose what was only `written`; it is never hidden
                assert (await one.broker.read(channel, position, 0)).verdict is Verdict.DIVERGED
            payloads = [publication.payload for publication in extract.publications]
            assert len(payloads) == len(set(payloads))


async def test_with_a_replica_that_acknowledges_a_failover_loses_nothing(prefix: str) -> None:
    """One of two replicas has each message: Sentinel promotes that one, and the other acknowledges to it."""
    ack = AckLevel(replicas=1)
    with Watched(replicas=2, sentinels=1) as watched:
        old = watched.primary
        async with connected(watched.url, prefix, deadline=0.5, probe_seconds=0.3, ack=ack, ack_timeout=1) as stage:
            async with publishing(stage, "a") as publisher:
                await until(lambda: len(publisher.taken) > 50)
                old.kill()
                await until(lambda: publisher.refused)
                before = len(publisher.taken)
                await until(lambda: len(publisher.taken) > before + 50, 30)
            await stage.ready()
            extract = await stage.broker.extract("a", None, None, 10_000, 10_000_000)
            assert publisher.taken.keys() <= {publication.position for publication in extract.publications}
            assert len(publisher.taken) == len(set(publisher.taken.values()))


async def test_idle_connections_leave_a_frozen_primary_too(watched: Watched, prefix: str) -> None:
    """Nothing was published, so only the probe could notice; then all connections move together."""
    old = watched.primary
    async with connected(watched.url, prefix, deadline=0.5, probe_seconds=0.2) as stage:
        await stage.subscribe("room")
        old.signal(signal.SIGSTOP)
        new = await asyncio.to_thread(watched.wait_for_another, old)
        await until(lambda: stage.broker.counters().reconnects >= 3, 20)
        await stage.ready()
        old.signal(signal.SIGCONT)
        with new.client() as client:
            names = [one["name"] for one in client.client_list()]
        assert names.count("tocsin") == 3
        assert (await stage.publish("room", b"x")).offset == 1
        await until(lambda: stage.ear.payloads("room") == [b"x"])


async def test_a_demoted_primary_that_still_talks_is_not_believed(prefix: str) -> None:
    """A Sentinel that was cut off still names it, and it sends messages of its own: nobody hears them."""
    with Watched(sentinels=3) as watched:
        old, lonely = watched.primary, watched.sentinels[0]
        async with connected(watched.url, prefix, deadline=0.5, probe_seconds=0.3) as stage:
            await stage.subscribe("room")
            position = await stage.publish("room", b"a")
            await until(lambda: stage.ear.payloads("room") == [b"a"])
            lonely.signal(signal.SIGSTOP)
            old.signal(signal.SIGSTOP)
            others = watched.sentinels[1:]
            await until(lambda: all(sentinel.knows()[0] != old.port for sentinel in others), 20)
            await stage.ready()
            old.signal(signal.SIGCONT)
            with old.client() as client:  # what a worker that still follows it would publish and hear
                client.publish(f"{prefix}:{{room}}", b'feedfeedfeed-2 t{"t":1}\nfalse')
            assert (await Discovery(read_sentinel_url(watched.url), 0.5, lambda: None).find())[1] != old.port
            after = await stage.publish("room", b"b")
            assert after.epoch != position.epoch
            await until(lambda: stage.ear.payloads("room") == [b"a", b"b"])
            lonely.signal(signal.SIGCONT)


async def test_without_a_primary_it_is_said_and_without_sentinels_too(prefix: str) -> None:
    with Watched(replicas=0, sentinels=1, down_after=300) as watched:
        url = watched.url
        async with connected(url, prefix, deadline=0.5, probe_seconds=0.2) as stage:
            watched.servers[0].kill()
            await until(lambda: any("Sentinel names no primary that works" in one for one in stage.broker.problems()))
            assert isinstance(await stage.send("room", b"x"), Unavailable)
            watched.sentinels[0].kill()
            await until(lambda: any("no Sentinel can be asked" in one for one in stage.broker.problems()))
            watched.sentinels[0].start()
            watched.servers[0].start()
            await stage.ready()
            await stage.publish("room", b"x")
    broker = RedisBroker(url, prefix, RULES)
    broker.start(Ear(), "inc1")
    try:
        await until(lambda: any("no Sentinel can be asked" in one for one in broker.problems()))
    finally:
        await broker.close()


async def test_passwords_of_the_primary_and_of_the_sentinels_are_two(prefix: str) -> None:
    with Watched(replicas=0, sentinels=1) as watched:
        with watched.servers[0].client() as client, watched.sentinels[0].client() as sentinel:
            client.config_set("requirepass", "one")
            sentinel.execute_command("SENTINEL", "SET", "main", "auth-pass", "one")
            sentinel.execute_command("ACL", "SETUSER", "asker", "on", ">two", "+@all")
            sentinel.execute_command("ACL", "SETUSER", "default", "off")
        url = watched.address(":one")
        async with connected(f"{url}?sentinel_username=asker&sentinel_password=two", prefix) as stage:
            await stage.publish("room", b"x")
        broker = RedisBroker(f"{url}?sentinel_username=asker&sentinel_password=three", prefix, RULES)
        broker.start(Ear(), "inc1")
        try:
            await until(lambda: any("refuses the user or password" in one for one in broker.problems()))
        finally:
            await broker.close()
