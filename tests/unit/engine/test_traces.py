"""What was found once, each as a short story. Every one failed before it was mended."""

from __future__ import annotations

import asyncio
import random

import pytest
from structlog.testing import capture_logs

from app.engine import hub
from tests.unit.engine.clock import run
from tests.unit.engine.crowd import Client, Stage


async def arrive(stage: Stage, *clients: Client) -> None:
    """These connect, and join."""
    for client in clients:
        client.connect(resume=False)
    await asyncio.sleep(1)
    assert all(client.wire is not None for client in clients)


async def come_to_rest(stage: Stage) -> None:
    """Nothing more happens; then everybody must be whole."""
    await asyncio.sleep(40)
    stage.publish(stage.names[0])
    await asyncio.sleep(40)
    stage.stop()
    await asyncio.sleep(10)
    stage.check_whole()
    for client in stage.clients:
        client.drop()
    await asyncio.sleep(10)
    stage.check_empty()
    await stage.hub.close()
    assert not stage.violations, stage.violations


def test_a_message_that_nobody_can_read_is_told_also_when_another_one_came_just_before() -> None:
    async def story() -> None:
        stage = Stage(random.Random(1), clients=6, channels=1)
        await arrive(stage, *stage.clients)
        stage.broker.hold()
        stage.publish("room0")
        stage.publish("room0", "?")
        stage.publish("room0")
        stage.broker.release()
        await asyncio.sleep(5)
        assert [client.gaps for client in stage.clients] == [1] * 6
        await come_to_rest(stage)

    run(story())


def test_who_became_slow_in_a_flush_that_ends_with_another_history_is_judged_by_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        monkeypatch.setattr(hub, "SLICE", 1)
        stage = Stage(random.Random(1), clients=12, channels=1)
        stage.broker.weather.delay = 0.0
        store = stage.broker.room("room0").store
        slow = stage.clients[2]
        await arrive(stage, *stage.clients)
        assert slow.wire is not None
        slow.wire.reads = False
        for _ in range(4):
            stage.publish("room0")
            await asyncio.sleep(1)
        for _ in range(9):
            store.replicate(1)
        stage.broker.hold()
        stage.publish("room0")  # the replica will not have it
        store.fail_over()
        stage.broker.commands = store.leader
        stage.publish("room0")  # this has the same offset
        stage.broker.release()
        stage.hub.resync(stage.hub.channels["room0"])
        await asyncio.sleep(1)
        assert slow.wire.paused
        slow.wire.read()
        await asyncio.sleep(1)
        assert slow.gaps == 1
        stage.heal()
        await come_to_rest(stage)

    run(story())


def test_nothing_comes_before_the_close_that_tells_of_a_gap() -> None:
    async def story() -> None:
        stage = Stage(random.Random(1), clients=3, channels=1)
        store = stage.broker.room("room0").store
        plain = stage.clients[0]
        await arrive(stage, *stage.clients)
        stage.publish("room0")
        await asyncio.sleep(1)
        plain.drop()
        await asyncio.sleep(1)
        store.clear(store.leading)
        stage.publish("room0")
        await asyncio.sleep(1)
        got = plain.got
        stage.broker.late = 1.0  # the verdict is known, and while it travels the channel goes on
        plain.connect(resume=True)
        await asyncio.sleep(0.5)
        stage.publish("room0")
        await asyncio.sleep(3)
        assert plain.gaps > 0
        assert plain.got == got
        stage.broker.late = 0.0
        await come_to_rest(stage)

    run(story())


def test_upgrades_under_way_count_against_the_capacity() -> None:
    async def story() -> None:
        stage = Stage(random.Random(1), clients=9, channels=1, capacity=2)
        for client in stage.clients:
            client.plain = True
            client.connect(resume=False)
        await asyncio.sleep(1)
        assert stage.roster.count == 2
        for client in stage.clients:
            client.drop()
        await asyncio.sleep(1)
        await arrive(stage, *stage.clients[:2])
        await come_to_rest(stage)

    run(story())


def test_a_channel_that_cannot_be_opened_keeps_nothing_of_those_who_tried() -> None:
    async def story() -> None:
        stage = Stage(random.Random(1), clients=9, channels=1)
        stage.broker.weather.refuse = 1.0
        for _ in range(5):
            for client in stage.clients:
                if client.off:
                    client.connect(resume=False)
            await asyncio.sleep(6)
        assert all(not channel.waiters for channel in stage.hub.channels.values())
        stage.heal()
        await arrive(stage, *stage.clients)
        await come_to_rest(stage)

    run(story())


def test_what_was_heard_before_the_reader_is_lost_is_written() -> None:
    async def story() -> None:
        stage = Stage(random.Random(1), clients=4, channels=1)
        await arrive(stage, *stage.clients)
        payload = stage.publish("room0")
        stage.broker.cut = True  # the connection breaks behind it, before the end of the burst
        await asyncio.sleep(0.5)
        assert not stage.broker.linked
        assert [client.got for client in stage.clients] == [1] * 4, payload
        await asyncio.sleep(10)
        await come_to_rest(stage)

    run(story())


def test_a_message_that_cannot_be_encoded_costs_a_gap_and_no_channel() -> None:
    async def story() -> None:
        stage = Stage(random.Random(1), clients=6, channels=2)
        await arrive(stage, *stage.clients)
        for name in stage.names:
            stage.publish(name)
            stage.publish(name, "!")
            stage.publish(name)
        await asyncio.sleep(10)
        assert [client.gaps for client in stage.clients] == [1] * 6
        stage.broker.whisper("room0", b"!")
        await asyncio.sleep(1)
        await come_to_rest(stage)

    with capture_logs() as logs:
        run(story())
    assert {entry["channel"] for entry in logs if entry["log_level"] == "error"} == {"room0", "room1"}


def test_an_answer_meant_for_a_forgotten_channel_is_not_given_to_its_successor() -> None:
    async def story() -> None:
        stage = Stage(random.Random(1), clients=4, channels=1)
        first, second, *_ = stage.clients[1:]
        await arrive(stage, first)
        stage.publish("room0")
        first.drop()
        await asyncio.sleep(4.9)
        stage.broker.late = 1.9
        stage.hub.resync(stage.hub.channels["room0"])
        await asyncio.sleep(0.2)
        assert not stage.hub.channels
        stage.broker.late = 0.0
        for _ in range(3):
            stage.publish("room0")
        await arrive(stage, second)
        channel = stage.hub.channels["room0"]
        stage.broker.late = 5.0
        stage.hub.resync(channel)
        assert channel.state.generation == 2
        await asyncio.sleep(2)
        assert not channel.live
        stage.broker.late = 0.0
        await asyncio.sleep(5)
        await come_to_rest(stage)

    run(story())
