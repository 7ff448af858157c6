"""What was found once, each as a short story. Every one failed before it was mended."""

from __future__ import annotations

import asyncio
import random

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
