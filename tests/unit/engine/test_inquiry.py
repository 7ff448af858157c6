"""When channels are asked about without a reason, and when not."""

from __future__ import annotations

import asyncio
import random

import pytest

from app.engine import inquiry
from app.engine.inquiry import CHECK_SECONDS
from tests.unit.engine.clock import run
from tests.unit.engine.crowd import Stage


async def crowded() -> Stage:
    """Ten channels, all of them subscribed and live."""
    stage = Stage(random.Random(1), clients=10, channels=10)
    stage.broker.weather.delay = 0.0
    for client in stage.clients:
        client.connect(resume=False, history=0)
    await asyncio.sleep(2 * CHECK_SECONDS + 0.5)
    return stage


async def end(stage: Stage) -> None:
    stage.stop()
    for client in stage.clients:
        client.drop()
    await asyncio.sleep(20)
    await stage.hub.close()
    assert stage.violations == []


def test_checks_rest_after_a_loss_of_the_reader_when_every_channel_is_asked_anyway() -> None:
    async def play() -> None:
        stage = await crowded()
        before = stage.broker.reads
        await asyncio.sleep(3)
        assert stage.broker.reads - before == 3  # ten channels in nine seconds: one call in each
        stage.broker.lose_reader(0.5)
        before = stage.broker.reads
        await asyncio.sleep(3)
        assert stage.broker.reads - before <= 2  # what came first, and what came while that was asked
        await end(stage)

    run(play())


def test_what_an_idle_channel_misses_right_after_a_loss_of_the_reader_is_found_in_time() -> None:
    async def play() -> None:
        stage = await crowded()
        stage.broker.lose_reader(0.5)
        await asyncio.sleep(1)
        stage.broker.weather.lose = 1.0
        for name in stage.names:
            stage.publish(name)
        stage.broker.weather.lose = 0.0
        await asyncio.sleep(19.75)  # docs/reliability.md: an idle channel in 20 s
        stage.check_whole()
        await end(stage)

    run(play())


def test_channels_that_are_confirmed_one_after_the_other_share_a_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inquiry, "TOPS", 4)

    async def play() -> None:
        stage = await crowded()
        await asyncio.sleep(0.2)
        stage.broker.lose_reader(0.1)
        stage.broker.weather.delay = 0.002  # the store is quick, the confirmations come singly
        before = stage.broker.reads
        await asyncio.sleep(0.5)
        assert stage.broker.reads - before == 3  # four, four and two of the ten
        assert all(channel.live for channel in stage.hub.channels.values())
        await end(stage)

    run(play())


def test_a_channel_that_is_gone_is_not_waited_for() -> None:
    async def play() -> None:
        stage = await crowded()
        await asyncio.sleep(0.2)
        stage.broker.lose_reader(0.1)
        stage.broker.unsubscribe(stage.names[0])  # and would never be confirmed
        await asyncio.sleep(0.5)
        assert sum(channel.live for channel in stage.hub.channels.values()) == 9
        await end(stage)

    run(play())
