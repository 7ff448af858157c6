"""Acknowledgement levels: nobody is told `published` before it is as safe as was asked for, and on the right server."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from functools import partial

import pytest

from app.brokers import AckLevel
from app.brokers.acks import Acks, fsyncs_always, read_reign
from app.brokers.examine import Finding, Level
from app.brokers.link import connector
from app.brokers.redis import RedisBroker
from app.brokers.writer import Bounds
from app.core.errors import TocsinError, Unavailable
from app.core.messages import Draft, Kind, Position, Published
from tests.contract.stage import RULES, Ear, Stage, connected, until
from tests.stage.redis import RedisServer, redis_version

REPLICATED = AckLevel(replicas=1)
FSYNCED = AckLevel(fsynced=True)
KEY = "k" * 16


async def test_redis_waits_for_what_came_before_a_write_of_the_same_connection(
    own_server: RedisServer, replica: RedisServer
) -> None:
    """What `Acks` relies on. A first wait, and since 7.2 one behind a read, says at once what is not so."""
    with own_server.client() as one, own_server.client() as two:
        replica.signal(signal.SIGSTOP)
        one.set("a", 1)
        two.set("b", 1)
        assert two.wait(1, 100) == 0
        replica.signal(signal.SIGCONT)
        assert two.wait(1, 5000) == 1


@pytest.fixture
def replica(own_server: RedisServer) -> Iterator[RedisServer]:
    """A replica of `own_server`."""
    with RedisServer() as server:
        server.follow(own_server)
        yield server


def need_waitaof() -> None:
    """Skip where Redis cannot say what is on its disk."""
    if redis_version() < (7, 2):
        pytest.skip("WAITAOF came with Redis 7.2")


def worse(findings: list[Finding]) -> list[str]:
    return [one.sentence for one in findings if one.level is Level.PROBLEM]


async def test_what_is_acknowledged_is_on_the_replica(
    own_server: RedisServer, replica: RedisServer, prefix: str
) -> None:
    async with connected(own_server.url, prefix, ack=REPLICATED) as stage:
        with replica.client() as client:
            for number in range(1, 51):
                position = await stage.publish(f"room:{number % 3}", b"x", key=f"{number:016}")
                assert client.exists(f"{prefix}:{{room:{number % 3}}}:key::{number:016}")
                assert client.hget(f"{prefix}:{{room:{number % 3}}}:meta", "top") == str(position.offset).encode()


async def test_a_level_that_is_not_reached_is_unavailable_though_all_can_see_the_message(
    own_server: RedisServer, replica: RedisServer, prefix: str
) -> None:
    async with connected(own_server.url, prefix, ack=REPLICATED, ack_timeout=0.3) as stage:
        await stage.subscribe("room")
        first = await stage.publish("room", b"a")
        replica.signal(signal.SIGSTOP)
        began = time.monotonic()
        outcome = await stage.send("room", b"b", key=KEY)
        assert 0.25 < time.monotonic() - began < 0.8
        assert isinstance(outcome, Unavailable)
        assert "was published, but it is not known to be replicated:1" in outcome.message
        assert outcome.retry_after
        await until(lambda: stage.ear.payloads("room") == [b"a", b"b"])
        retried = await stage.send("room", b"b", key=KEY)  # finds its key, and must not say `duplicate`
        assert isinstance(retried, Unavailable)
        replica.signal(signal.SIGCONT)
        assert await stage.send("room", b"b", key=KEY) == Published(Position(first.epoch, 2), duplicate=True)
        assert (await stage.broker.read("room", first, 10)).top == 2
        assert stage.broker.counters().reconnects == 0


async def test_a_retry_waits_until_the_replica_has_it(
    own_server: RedisServer, replica: RedisServer, prefix: str
) -> None:
    async with connected(own_server.url, prefix, ack=REPLICATED, ack_timeout=0.2) as stage:
        replica.signal(signal.SIGSTOP)
        assert isinstance(await stage.send("room", b"b", key=KEY), Unavailable)
    async with connected(own_server.url, prefix, ack=REPLICATED, ack_timeout=5) as stage:
        retried = stage.send("room", b"b", key=KEY)
        done, _ = await asyncio.wait((retried,), timeout=0.3)
        assert not done
        replica.signal(signal.SIGCONT)
        outcome = await retried
        assert isinstance(outcome, Published)
        assert outcome.duplicate


async def test_a_first_wait_of_a_new_connection_is_no_false_acknowledgement(
    own_server: RedisServer, replica: RedisServer, prefix: str
) -> None:
    async with connected(own_server.url, prefix, ack=REPLICATED, ack_timeout=0.3) as stage:
        replica.signal(signal.SIGSTOP)
        for _ in range(3):
            stage.broker.reconnect()
            await stage.ready()
            assert isinstance(await stage.send("room", b"x"), Unavailable)
        replica.signal(signal.SIGCONT)


async def test_publishing_goes_on_while_a_level_is_awaited_and_answers_keep_their_order(
    own_server: RedisServer, replica: RedisServer, prefix: str
) -> None:
    async with connected(own_server.url, prefix, ack=REPLICATED, ack_timeout=5) as stage:
        await stage.subscribe("room")
        await stage.publish("room", b"first")
        replica.signal(signal.SIGSTOP)
        answered: list[int] = []

        def publish(number: int, *, ephemeral: bool = False) -> None:
            draft = Draft("room", Kind.TEXT, b"%d" % number, ephemeral=ephemeral)
            stage.broker.publish(draft, lambda _: answered.append(number))

        batches = stage.broker.counters().batches
        for number in range(20):
            publish(number, ephemeral=number % 4 == 3)
            await until(lambda number=number: len(stage.ear.items) == number + 2)  # type: ignore[misc]
        assert stage.broker.counters().batches == batches + 20
        assert answered == []
        replica.signal(signal.SIGCONT)
        await until(lambda: len(answered) == 20)
        assert answered == list(range(20))


async def test_one_wait_covers_all_that_was_answered_before_it(
    own_server: RedisServer, replica: RedisServer, prefix: str
) -> None:
    def waits() -> int:
        with own_server.client() as client:
            return int(client.info("commandstats")["cmdstat_wait"]["calls"])

    async with connected(own_server.url, prefix, ack=REPLICATED, bounds=Bounds(batch=10)) as stage:
        await stage.publish("room", b"first")
        before = waits()
        await stage.fill("room", [b"x"] * 200)
        assert 1 <= waits() - before <= 20


async def test_those_who_came_late_are_not_given_up_with_the_first(
    own_server: RedisServer, replica: RedisServer, prefix: str
) -> None:
    async with connected(own_server.url, prefix, ack=REPLICATED, ack_timeout=0.6) as stage:
        await stage.publish("room", b"first")
        replica.signal(signal.SIGSTOP)
        early = stage.send("room", b"early")
        await asyncio.wait((early,), timeout=0.4)
        assert not early.done()
        late = stage.send("room", b"late")
        assert isinstance(await early, Unavailable)
        assert not late.done()
        replica.signal(signal.SIGCONT)
        assert isinstance(await late, Published)


async def test_as_many_as_may_wait_in_the_queue_may_wait_for_their_level(
    own_server: RedisServer, replica: RedisServer, prefix: str
) -> None:
    bounds = Bounds(queue=50, batch=10)
    async with connected(own_server.url, prefix, ack=REPLICATED, ack_timeout=0.5, bounds=bounds) as stage:
        await stage.publish("room", b"first")
        replica.signal(signal.SIGSTOP)
        answers = [stage.send("room", b"%d" % number) for number in range(40)]
        await until(lambda: not stage.broker.congested and not stage.broker.busy)
        answers += [stage.send("room", b"%d" % number) for number in range(40, 80)]
        await until(lambda: stage.broker.congested and not stage.broker.busy)
        assert (await stage.broker.read("room", None, 0)).top <= 61  # one batch was under way
        replica.signal(signal.SIGCONT)
        outcomes = await asyncio.gather(*answers)
        assert sum(isinstance(one, Published) for one in outcomes) >= 30
        assert (await stage.broker.read("room", None, 0)).top == 81


async def test_refusals_and_ephemeral_messages_wait_for_nothing(
    own_server: RedisServer, replica: RedisServer, prefix: str
) -> None:
    async with connected(own_server.url, prefix, ack=REPLICATED, ack_timeout=5) as stage:
        await stage.publish("room", b"a", key=KEY)
        replica.signal(signal.SIGSTOP)
        began = time.monotonic()
        assert await stage.send("room", b"x", ephemeral=True) == Published(None)
        assert not isinstance(await stage.send("room", b"other", key=KEY), Published | Unavailable)
        assert time.monotonic() - began < 0.5
        replica.signal(signal.SIGCONT)


async def test_a_lost_connection_leaves_nobody_without_an_answer(
    own_server: RedisServer, replica: RedisServer, prefix: str
) -> None:
    async with connected(own_server.url, prefix, ack=REPLICATED, ack_timeout=5) as stage:
        await stage.publish("room", b"a")
        replica.signal(signal.SIGSTOP)
        answers = [stage.send("room", b"%d" % number) for number in range(5)]
        with own_server.client() as client:

            def waiting() -> bool:
                return any(one["cmd"] == "wait" and "b" in one["flags"] for one in client.client_list())

            await until(waiting)
            client.execute_command("CLIENT", "KILL", "TYPE", "normal")
        assert all(isinstance(one, Unavailable) for one in await asyncio.gather(*answers))
        replica.signal(signal.SIGCONT)
        await stage.ready()
        assert (await stage.publish("room", b"b")).offset == 7


async def test_the_answer_of_another_reign_proves_nothing(own_server: RedisServer, prefix: str) -> None:
    """The primary was demoted, and leads again without what it had taken: its replicas agree, but on something else."""
    told: list[Published | TocsinError] = []
    moves: list[None] = []
    with RedisServer() as replica:
        replica.follow(own_server)
        make = connector(own_server.url, "tocsin", 2.0)
        move = partial(moves.append, None)
        acks = Acks(make, f"{prefix}:acks", REPLICATED, timeout=2.0, deadline=2.0, on_replica=move)
        acks.link.start()
        try:
            await until(lambda: acks.link.up)
            with own_server.client() as client:
                before = client.info("replication")["master_replid"].encode()
                client.replicaof("127.0.0.1", replica.port)
                client.replicaof("no", "one")
                after = client.info("replication")["master_replid"].encode()
            assert after != before
            replica.follow(own_server)
            for reign in (before, after):
                acks.take([(told.append, Published(Position("e", 1)))], reign)
            await until(lambda: len(told) == 2)
        finally:
            await acks.link.close()
    assert isinstance(told[0], Unavailable)
    assert "the primary has changed" in told[0].message
    assert isinstance(told[1], Published)
    assert moves  # whoever wrote is perhaps still with another primary


async def test_too_few_replicas_are_a_problem_as_long_as_they_are_missing(own_server: RedisServer, prefix: str) -> None:
    broker = RedisBroker(own_server.url, prefix, RULES, probe_seconds=0.1, ack=REPLICATED)
    broker.start(Ear(), "inc1")
    try:
        await until(lambda: any("needs as many connected replicas" in one for one in broker.problems()))
        assert worse(await broker.examine()) == [
            "TOCSIN_ACK=replicated:1 needs as many connected replicas, and this Redis has 0"
        ]
        with RedisServer() as replica:
            replica.follow(own_server)
            await until(lambda: not broker.problems())
            assert worse(await broker.examine()) == []
        await until(lambda: any("has 0" in one for one in broker.problems()))
    finally:
        await broker.close()


async def test_before_waitaof_only_appendfsync_always_will_do(prefix: str) -> None:
    if redis_version() >= (7, 2):
        pytest.skip("this Redis knows WAITAOF")
    with RedisServer(appendonly="yes", appendfsync="everysec") as server:
        broker = RedisBroker(server.url, prefix, RULES, probe_seconds=0.1, ack=FSYNCED)
        stage = Stage(broker, Ear())
        broker.start(stage.ear, "inc1")
        try:
            await until(lambda: any("TOCSIN_ACK=fsynced" in one for one in broker.problems()))
            [finding] = [one for one in await broker.examine() if one.level is Level.PROBLEM]
            assert "before version 7.2" in finding.sentence
            assert "Redis 7.2 or newer" in finding.advice
            assert "appendfsync always" in finding.advice
            assert isinstance(await stage.send("room", b"a"), Unavailable)
            with server.client() as client:
                client.config_set("appendfsync", "always")
                await stage.ready()
                assert worse(await broker.examine()) == []
                await stage.publish("room", b"b")
                client.config_set("no-appendfsync-on-rewrite", "yes")
                assert isinstance(await stage.send("room", b"c"), Unavailable)  # believed of no earlier look
                await until(lambda: any("TOCSIN_ACK=fsynced" in one for one in broker.problems()))
        finally:
            await broker.close()


async def test_what_is_acknowledged_as_fsynced_survives_every_kill(prefix: str) -> None:
    with RedisServer(appendonly="yes", appendfsync="always") as server:
        acknowledged: set[Position | None] = set()
        for _ in range(5):
            async with connected(server.url, prefix, ack=FSYNCED, bounds=Bounds(batch=10)) as stage:
                answers = [stage.send("room", b"%d" % number) for number in range(150)]
                await answers[60]
                server.kill()
                outcomes = await asyncio.gather(*answers)
                acknowledged |= {one.position for one in outcomes if isinstance(one, Published)}
            server.start()
        async with connected(server.url, prefix, ack=FSYNCED) as stage:
            extract = await stage.broker.extract("room", None, None, 10_000, 10_000_000)
        assert len(acknowledged) > 300
        assert acknowledged <= {one.position for one in extract.publications}


async def test_waitaof_says_what_is_on_the_disk(prefix: str) -> None:
    need_waitaof()
    with RedisServer(appendonly="yes", appendfsync="everysec") as server:
        async with connected(server.url, prefix, ack=FSYNCED, ack_timeout=4) as stage:
            await stage.publish("room", b"a", key=KEY)
            server.kill()
            await until(stage.broker.problems)
            server.start()
            await stage.ready()
            outcome = await stage.send("room", b"a", key=KEY)
            assert isinstance(outcome, Published)
            assert outcome.duplicate
            with server.client() as client:
                client.config_set("appendfsync", "no")
        async with connected(server.url, prefix, ack=FSYNCED, ack_timeout=0.3) as stage:
            assert isinstance(await stage.send("room", b"b"), Unavailable)


async def test_without_an_append_only_file_fsynced_is_a_problem(own_server: RedisServer, prefix: str) -> None:
    need_waitaof()
    broker = RedisBroker(own_server.url, prefix, RULES, ack=FSYNCED)
    broker.start(Ear(), "inc1")
    try:
        await until(lambda: any("needs an append-only file" in one for one in broker.problems()))
    finally:
        await broker.close()


@pytest.mark.parametrize("ack", [REPLICATED, FSYNCED], ids=str)
async def test_a_missing_permission_to_wait_is_named(
    own_server: RedisServer, replica: RedisServer, prefix: str, ack: AckLevel
) -> None:
    command = "wait" if ack.replicas else "waitaof"
    if ack.fsynced:
        need_waitaof()
    with own_server.client() as client:
        client.execute_command("ACL", "SETUSER", "limited", "on", ">secret", "~*", "&*", "+@all", f"-{command}")
    broker = RedisBroker(own_server.address("limited:secret"), prefix, RULES, ack=ack)
    stage = Stage(broker, Ear())
    broker.start(stage.ear, "inc1")
    try:
        await until(lambda: any(f"run {command.upper()}" in one for one in broker.problems()))
        assert isinstance(await stage.send("room", b"a"), Unavailable)
    finally:
        await broker.close()


def test_only_a_primary_has_a_reign() -> None:
    lines = b"# Replication\r\nrole:%b\r\nconnected_slaves:0\r\nmaster_replid:8f3a\r\nmaster_replid2:0000\r\n"
    assert read_reign(lines % b"master") == b"8f3a"
    assert read_reign(lines % b"slave") is None
    assert read_reign(b"role:master\r\n") is None


def test_an_answer_means_a_disk_only_with_all_three_settings() -> None:
    settings = [b"appendonly", b"yes", b"appendfsync", b"always", b"no-appendfsync-on-rewrite", b"no"]
    assert fsyncs_always(settings)
    for at, other in ((1, b"no"), (3, b"everysec"), (5, b"yes")):
        assert not fsyncs_always([*settings[:at], other, *settings[at + 1 :]])
    assert not fsyncs_always([])
    assert not fsyncs_always(None)
