"""What the broker does when its store is away, frozen, full, deaf, restarted or not the primary."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from app.brokers import WRITTEN, AckLevel
from app.brokers.scripts import load
from app.brokers.writer import Bounds
from app.core.continuity import Verdict
from app.core.errors import TocsinError, Unavailable
from app.core.messages import Draft, Kind, Position, Published
from tests.contract.stage import Ear, Stage, connected, until
from tests.stage.proxy import proxied
from tests.stage.redis import RedisServer


def offsets(outcomes: list[Published | TocsinError]) -> list[int]:
    return [one.position.offset for one in outcomes if isinstance(one, Published) and one.position is not None]


async def test_no_memory_refuses_and_moves_nothing(own_server: RedisServer, prefix: str) -> None:
    async with connected(own_server.url, prefix) as stage:
        position = await stage.publish("room", b"a")
        with own_server.client() as client:
            client.config_set("maxmemory", "1")
            before = client.hgetall(f"{prefix}:{{room}}:meta")
            for channel in ("room", "fresh"):
                outcome = await stage.send(channel, b"b", key="k" * 16)
                assert isinstance(outcome, Unavailable)
                assert "memory" in outcome.message
            assert client.hgetall(f"{prefix}:{{room}}:meta") == before
            assert client.keys(f"{prefix}:{{fresh}}*") == []
            client.config_set("maxmemory", "0")
        assert await stage.publish("room", b"b", key="k" * 16) == Position(position.epoch, 2)


async def test_script_flush_in_the_middle_of_traffic_keeps_each_publishers_order(
    own_server: RedisServer, prefix: str
) -> None:
    bounds = Bounds(batch=64)
    async with (
        connected(own_server.url, prefix, bounds=bounds) as one,
        connected(own_server.url, prefix, bounds=bounds) as two,
    ):
        start = (await one.broker.read("room", None, 0)).at_top
        taken: dict[bytes, list[int]] = {b"1": [], b"2": []}
        waiting = 0

        def publish(stage: Stage, name: bytes, number: int) -> None:
            nonlocal waiting
            waiting += 1

            def receipt(outcome: Published | TocsinError) -> None:
                nonlocal waiting
                waiting -= 1
                if isinstance(outcome, Published):
                    taken[name].append(number)

            stage.broker.publish(Draft("short:room", Kind.TEXT, b"%b %d" % (name, number)), receipt)

        heard = Ear()
        await one.subscribe("short:room")
        with own_server.client() as client:
            number = 0
            for _ in range(40):
                for _ in range(100):
                    publish(one, b"1", number)
                    publish(two, b"2", number)
                    number += 1
                await asyncio.sleep(0)
                for _ in range(5):
                    client.script_flush()
                    await asyncio.sleep(0.001)
        await until(lambda: waiting == 0)
        await until(lambda: len(one.ear.items) == len(taken[b"1"]) + len(taken[b"2"]))
        for name in (b"1", b"2"):
            log = [int(payload.split()[1]) for payload in one.ear.payloads("short:room") if payload.startswith(name)]
            assert log == taken[name]
            assert log == sorted(log)
            assert len(log) > 1000
        assert heard.items == []
        assert start.offset == 0


@pytest.mark.parametrize("reloaded", [True, False])
async def test_a_script_lost_inside_a_batch_never_lets_a_later_message_overtake(
    own_server: RedisServer, prefix: str, reloaded: bool
) -> None:
    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 5
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.001)

    async with proxied(own_server.port) as proxy, connected(proxy.url, prefix) as stage:
        with own_server.client() as client:

            def lose() -> None:
                wait(lambda: client.xlen(f"{prefix}:{{room}}:log") == 3)
                client.config_resetstat()
                client.script_flush()

            def reload() -> None:
                wait(lambda: client.info("errorstats").get("errorstat_NOSCRIPT", {}).get("count") == 3)
                if reloaded:
                    client.script_load(load("publish").body.decode())

            proxy.last = b"message 9"
            proxy.pauses = [lose, reload]
            answers = [stage.send("room", b"message %d" % number) for number in range(1, 10)]
            answers[0].add_done_callback(lambda _: answers.append(stage.send("room", b"newer")))
            await until(lambda: len(answers) == 10)
            outcomes = await asyncio.gather(*answers)
        taken = [1, 2, 3, 7, 8, 9] if reloaded else [1, 2, 3, 4, 5, 6, 7, 8, 9]
        reading = await stage.broker.extract("room", None, None, 100, 100_000)
        wanted = [b"message %d" % number for number in taken] + [b"newer"]
        assert [one.payload for one in reading.publications] == wanted
        assert offsets(outcomes) == list(range(1, len(wanted) + 1))
        assert sum(isinstance(one, Unavailable) for one in outcomes) == 10 - len(wanted)


async def test_a_replica_refuses_and_a_promotion_is_a_new_epoch(own_server: RedisServer, prefix: str) -> None:
    with RedisServer() as primary:
        async with connected(own_server.url, prefix) as stage:
            before = await stage.publish("room", b"a")
            with own_server.client() as client:
                client.replicaof("127.0.0.1", primary.port)
                outcome = await stage.send("room", b"b")
                assert isinstance(outcome, Unavailable)
                assert "replica" in outcome.message
                assert "127.0.0.1" not in outcome.message
                await until(lambda: stage.broker.counters().reconnects >= 3)
                await until(lambda: "lost!" in stage.ear.events)
                client.replicaof("no", "one")
            await stage.ready()
            after = await stage.publish("room", b"c")
            assert after.epoch != before.epoch


@pytest.mark.parametrize("persistence", ["aof", "rdb"])
async def test_a_restart_is_a_new_epoch_and_positions_stay_whole(persistence: str, prefix: str) -> None:
    options = {"appendonly": "yes", "appendfsync": "always"} if persistence == "aof" else {}
    with RedisServer(port=None, options=options) as server:
        async with connected(server.url, prefix) as stage:
            old = await stage.fill("room", [b"a", b"b", b"c"])
            if persistence == "rdb":
                with server.client() as client:
                    client.save()
            server.kill()
            server.start()
            await stage.reconnected()
            top = await stage.broker.read("room", old[2], 10)
            assert (top.verdict, top.top, top.tail) == (Verdict.OK, 3, old[2].epoch)
            assert top.epoch != old[2].epoch
            new = await stage.publish("room", b"d")
            assert new == Position(top.epoch, 4)
            reading = await stage.broker.read("room", old[0], 10)
            assert [one.payload for one in reading.publications] == [b"b", b"c", b"d"]
            assert [one.position for one in reading.publications] == [old[1], old[2], new]


async def test_a_lost_tail_is_told_only_to_those_who_saw_it(prefix: str) -> None:
    with RedisServer(appendonly="yes", appendfsync="always") as server:
        async with connected(server.url, prefix) as stage:
            old = await stage.fill("room", [b"a", b"b", b"c"])
            log = next(path for path in Path(server.folder).rglob("*.aof") if "base" not in path.name)
            size = log.stat().st_size
            lost = await stage.fill("room", [b"d", b"e"])
            server.kill()
            with log.open("r+b") as file:
                file.truncate(size)
            server.start()
            await stage.reconnected()
            new = await stage.fill("room", [b"f", b"g", b"h"])
            assert [one.offset for one in new] == [4, 5, 6]
            for position in lost:
                assert (await stage.broker.read("room", position, 10)).verdict is Verdict.DIVERGED
            reading = await stage.broker.read("room", old[2], 10)
            assert [one.payload for one in reading.publications] == [b"f", b"g", b"h"]


async def test_a_killed_reader_is_lost_then_confirmed_and_hears_again(
    stage: Stage, own_server: RedisServer, prefix: str
) -> None:
    async with connected(own_server.url, prefix) as ours:
        channels = [f"room:{number}" for number in range(1300)]
        for channel in channels:
            ours.broker.subscribe(channel)
        await until(lambda: len(ours.ear.events) == 1300)
        with own_server.client() as client:
            before = int(client.info("commandstats")["cmdstat_subscribe"]["calls"])
            client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            await until(lambda: len(ours.ear.events) == 2601)
            assert int(client.info("commandstats")["cmdstat_subscribe"]["calls"]) - before == 2
        assert ours.ear.events[1300] == "lost!"
        assert sorted(ours.ear.events[1301:]) == sorted(channels)
        await ours.publish("room:7", b"x")
        await until(lambda: ours.ear.payloads("room:7") == [b"x"])
        assert ours.broker.counters().resubscribes == 1300


async def test_only_the_newest_subscription_is_confirmed(stage: Stage) -> None:
    broker, events = stage.broker, stage.ear.events
    broker.subscribe("room")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    broker.unsubscribe("room")
    broker.subscribe("room")
    broker.subscribe("gone")
    broker.unsubscribe("gone")
    await stage.subscribe("fence")
    assert events == ["room", "fence"]
    await stage.publish("gone", b"x")
    await stage.publish("room", b"y")
    await until(lambda: stage.ear.items)
    assert stage.ear.payloads("gone") == []
    assert stage.ear.payloads("room") == [b"y"]
    broker.unsubscribe("room")
    await stage.publish("room", b"z")
    await stage.subscribe("fence")
    assert stage.ear.payloads("room") == [b"y"]


async def test_a_foreign_message_harms_nothing(stage: Stage, store: redis.Redis, prefix: str) -> None:
    await stage.subscribe("room")
    for junk in (b"", b"hello", b"x y", b"-"):
        store.publish(f"{prefix}:{{room}}", junk)
    await stage.publish("room", b"x")
    await until(lambda: stage.ear.items)
    assert stage.ear.payloads("room") == [b"x"]
    assert "lost!" not in stage.ear.events


async def test_the_probe_finds_a_deaf_reader(own_server: RedisServer, prefix: str) -> None:
    async with (
        proxied(own_server.port) as proxy,
        connected(proxy.url, prefix, deadline=0.5, probe_seconds=0.2) as stage,
    ):
        await stage.subscribe("room")
        await until(lambda: stage.broker.counters().probe_seconds > 0)
        proxy.deaf = True
        outcomes = []
        while "lost!" not in stage.ear.events:
            outcomes.append(await stage.send("room", b"taken"))
            await asyncio.sleep(0.01)
        assert all(isinstance(one, Published) for one in outcomes)  # the reader alone is at fault
        assert 1 <= stage.broker.counters().probes_missed <= 2
        await until(lambda: any("heard" in one for one in stage.broker.problems()))
        proxy.deaf = False
        await stage.ready()
        await until(lambda: stage.ear.events[-1] == "room")
        await stage.publish("room", b"x")
        await until(lambda: stage.ear.payloads("room")[-1:] == [b"x"])


@pytest.mark.parametrize("ack", [WRITTEN, AckLevel(fsynced=True)], ids=["written", "fsynced"])
async def test_probes_by_the_writer_stand_in_nobodys_way(prefix: str, ack: AckLevel) -> None:
    with RedisServer(appendonly="yes", appendfsync="always") as server, server.client() as client:
        async with connected(server.url, prefix, probe_seconds=0.002, ack=ack) as stage:
            before = stage.broker.counters().published
            outcomes = []
            for number in range(60):
                outcomes += [stage.send("room", b"%d" % (10 * number + one)) for one in range(10)]
                if number % 7 == 0:
                    client.script_flush()
                await outcomes[-1]
            assert offsets(list(await asyncio.gather(*outcomes))) == list(range(1, 601))
            assert stage.broker.counters().published - before == 600
            assert stage.broker.counters().errors == 0
            published = client.info("commandstats")["cmdstat_publish"]["calls"]
            await until(lambda: client.info("commandstats")["cmdstat_publish"]["calls"] > published + 3)  # probes go on


@pytest.mark.parametrize(
    "left",
    ["reader", "commands", "writer", "reader and commands", "reader and writer", "commands and writer"],
)
async def test_a_connection_that_stays_at_a_server_that_leads_no_longer_is_found(
    own_server: RedisServer, prefix: str, left: str
) -> None:
    """An address moves to another primary, the former one lives on, and so do connections to it."""
    with RedisServer() as other:
        async with (
            proxied(own_server.port) as proxy,
            connected(proxy.url, prefix, deadline=0.5, probe_seconds=0.2) as stage,
        ):
            await stage.subscribe("room")
            proxy.target = other.port
            links = {link.label: link for link in stage.broker._links()}
            for label, link in links.items():
                assert link._writer is not None
                if label not in left:
                    link._writer.transport.abort()
            await until(lambda: all(link.connections > 1 for label, link in links.items() if label not in left))
            await until(lambda: all(link.connections > 1 for link in links.values()), 8)
            await stage.ready()
            await stage.publish("room", b"heard")
            await until(lambda: b"heard" in stage.ear.payloads("room"))
            with other.client() as client:
                assert client.exists(f"{prefix}:{{room}}:log")


async def test_while_the_store_is_down_everything_fails_at_once_and_then_goes_on(
    own_server: RedisServer, prefix: str
) -> None:
    async with connected(own_server.url, prefix) as stage:
        await stage.subscribe("room")
        await stage.publish("room", b"a")
        await until(lambda: stage.ear.items)
        own_server.kill()
        await until(lambda: len(stage.broker.problems()) == 3)
        began = time.monotonic()
        outcome = await stage.send("room", b"b")
        assert isinstance(outcome, Unavailable)
        assert outcome.retry_after
        for question in (
            stage.broker.read("room", None, 1),
            stage.broker.read_tops([("room", None)]),
            stage.broker.extract("room", None, None, 1, 1),
            stage.broker.clear("room"),
            stage.broker.tell(b"x"),
            stage.broker.examine(),
        ):
            with pytest.raises(Unavailable):
                await question
        assert time.monotonic() - began < 0.2
        own_server.start()
        await stage.ready()
        await until(lambda: stage.ear.events == ["room", "lost!", "room"])
        await stage.publish("room", b"c")
        await until(lambda: stage.ear.payloads("room") == [b"a", b"c"])


async def test_a_frozen_store_is_unavailable_in_time_and_nothing_answers_later(
    own_server: RedisServer, prefix: str
) -> None:
    async with connected(own_server.url, prefix) as stage:
        await stage.publish("room", b"a")
        own_server.signal(signal.SIGSTOP)
        began = time.monotonic()
        answers = [stage.send("room", b"%d" % number) for number in range(700)]
        with pytest.raises(Unavailable):
            await stage.broker.read("room", None, 1)
        outcomes = await asyncio.gather(*answers)
        assert time.monotonic() - began < 2.5
        assert all(isinstance(outcome, Unavailable) for outcome in outcomes)
        began = time.monotonic()
        assert isinstance(await stage.send("room", b"later"), Unavailable)
        assert time.monotonic() - began < 0.1
        own_server.signal(signal.SIGCONT)
        await stage.ready()
        position = await stage.publish("room", b"z")
        reading = await stage.broker.read("room", Position(position.epoch, position.offset - 1), 10)
        assert [one.payload for one in reading.publications] == [b"z"]


async def test_a_cancelled_question_leaves_its_answer_to_nobody(stage: Stage) -> None:
    await stage.publish("a", b"x")
    questions = [asyncio.create_task(stage.broker.read("a", None, 1)) for _ in range(20)]
    await asyncio.sleep(0)
    for question in questions:
        question.cancel()
    assert (await stage.broker.read("b", None, 1)).top == 0
    assert (await stage.broker.read("a", None, 1)).top == 1


async def test_the_queue_is_bounded_and_says_when_to_stop_reading(redis_server: RedisServer, prefix: str) -> None:
    async with connected(redis_server.url, prefix, bounds=Bounds(queue=100, batch=10)) as stage:
        relieved: list[int] = []
        answers = []
        for number in range(150):
            answers.append(stage.send("room", b"%d" % number))
            assert stage.broker.congested == (number >= 49)
            assert stage.broker.full == (number >= 99)
        stage.broker.when_uncongested(lambda: relieved.append(sum(one.done() for one in answers)))
        outcomes = await asyncio.gather(*answers)
        assert offsets(outcomes) == list(range(1, 101))
        assert all(isinstance(one, Unavailable) for one in outcomes[100:])
        assert not stage.broker.congested
        assert len(relieved) == 1
        stage.broker.when_uncongested(lambda: relieved.append(-1))
        assert relieved[1:] == [-1]


async def test_a_publish_that_waited_too_long_is_not_sent(redis_server: RedisServer, prefix: str) -> None:
    async with connected(redis_server.url, prefix, bounds=Bounds(patience=-1.0)) as stage:
        outcome = await stage.send("room", b"x")
        assert isinstance(outcome, Unavailable)
        assert "not sent" in outcome.message
        assert (await stage.broker.read("room", None, 1)).top == 0


async def test_a_receipt_that_fails_costs_the_others_nothing(stage: Stage) -> None:
    def fail(outcome: Published | TocsinError) -> None:
        raise RuntimeError("a bug of the caller")

    stage.broker.publish(Draft("room", Kind.TEXT, b"a"), fail)
    stage.broker.publish(Draft("room", Kind.TEXT, b"a" * 70_000), fail)
    assert (await stage.publish("room", b"b")).offset == 3
    assert stage.broker.counters().reconnects == 0


async def test_workers_are_told_all_or_one(stage: Stage, redis_server: RedisServer, prefix: str) -> None:
    assert await stage.broker.tell(b"all") == 1
    assert await stage.broker.tell(b"one", to="inc1") == 1
    assert await stage.broker.tell(b"nobody", to="inc2") == 0
    await until(lambda: stage.ear.control == [b"all", b"one"])


async def test_connections_replaced_on_request(stage: Stage) -> None:
    await stage.subscribe("room")
    stage.broker.reconnect()
    assert len(stage.broker.problems()) == 4
    await stage.ready()
    await until(lambda: stage.ear.events == ["room", "lost!", "room"])
    assert stage.broker.counters().reconnects == 3
    await stage.publish("room", b"x")
    await until(lambda: stage.ear.payloads("room") == [b"x"])
