"""The real native connection under random commands and schedules: one answer to each command, no message of a channel
before `subscribed` or after `unsubscribed`, every message in order or a gap.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Mapping

import pytest
from structlog.testing import capture_logs

from app.engine import catchup, conversation, hub, inquiry, shared
from tests.unit.continuity import store as model
from tests.unit.engine.clock import run
from tests.unit.engine.crowd import Stage
from tests.unit.engine.talker import Talker
from tests.unit.engine.test_search import act

RUNS = int(os.environ.get("TOCSIN_SEARCH", "60"))
STEPS = 200

CALM: Mapping[str, float] = {
    "talk": 40,
    "publish": 25,
    "burst": 4,
    "whisper": 2,
    "come": 8,
    "drop": 2,
    "stall": 5,
    "read": 8,
    "lose_reader": 1,
    "lossy": 1,
    "refusing": 1,
    "steady": 3,
    "jam": 1,
    "relieve": 2,
}
TROUBLE: Mapping[str, float] = {
    **CALM,
    "replicate": 8,
    "fail_over": 2,
    "demote": 2,
    "restart": 2,
    "clear": 1,
    "flush_all": 1,
    "expire_log": 1,
    "expire_meta": 1,
}
MOODS: Mapping[str, Mapping[str, float]] = {
    "calm": CALM,
    "slow peers": {**CALM, "stall": 25, "read": 20, "burst": 12},
    "talkative": {**CALM, "talk": 120},
    "trouble": TROUBLE,
}


def act_native(stage: Stage, talkers: list[Talker], action: str, chance: random.Random) -> None:
    talker = chance.choice(talkers)
    wire = talker.wire
    if action == "talk":
        for _ in range(chance.choice((1, 1, 2, 5))):
            talker.say_anything(chance)
    elif action not in {"come", "drop", "stall", "read"}:
        act(stage, action, chance)
    elif wire is None:
        talker.connect()
    elif action == "drop":
        wire.abort()
    elif action == "stall":
        wire.reads = False
    elif action == "read":
        wire.read()


async def play(seed: int, actions: Mapping[str, float]) -> int:
    chance = random.Random(seed)
    stage = Stage(chance, clients=1, channels=3)
    talkers = [Talker(stage, index) for index in range(chance.choice((2, 5)))]
    stage.broker.weather.delay = chance.choice((0.001, 0.02, 0.3))
    names, weights = list(actions), list(actions.values())
    for talker in talkers:
        talker.connect()
    for _ in range(STEPS):
        act_native(stage, talkers, chance.choices(names, weights)[0], chance)
        await asyncio.sleep(chance.choice((0, 0, 0, 0.0003, 0.003, 0.03, 0.3, chance.choice((1.0, 6.0)))))
    stage.heal()
    for talker in talkers:
        if talker.wire is not None:
            talker.wire.read()
    await asyncio.sleep(40)
    for name in stage.names:
        stage.publish(name)
    await asyncio.sleep(40)
    for talker in talkers:
        talker.say(type="ping")
    await asyncio.sleep(1)
    stage.stop()
    for talker in talkers:
        if talker.wire is not None:
            talker.check_whole()
            stage.fail_if(not talker.wire.reading, f"{talker}: is not read from")
            talker.wire.abort()
    await asyncio.sleep(20)
    stage.check_empty()
    await stage.hub.close()
    assert not stage.violations, f"seed {seed}: " + "; ".join(stage.violations[:5])
    return sum(talker.answers for talker in talkers)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds so small that every branch is taken."""
    monkeypatch.setattr(hub, "SLICE", 1)
    monkeypatch.setattr(hub, "RINGS", 2500)
    monkeypatch.setattr(inquiry, "PAGE", 3)
    monkeypatch.setattr(catchup, "PAGE", 3)
    monkeypatch.setattr(catchup, "BATCH", 1)
    monkeypatch.setattr(catchup, "TURN", 8)
    monkeypatch.setattr(shared, "RING", 900)
    monkeypatch.setattr(conversation, "UNDER_WAY", 3)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("mood", MOODS)
def test_every_command_is_answered_once_and_no_message_is_out_of_place(
    mood: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "MAXLEN", 8 if mood == "trouble" else 10_000)
    answers = 0

    async def story(seed: int) -> None:
        nonlocal answers
        answers += await play(seed, MOODS[mood])

    for seed in range(RUNS):
        with capture_logs() as logs:
            run(story(seed))
        errors = [entry for entry in logs if entry["log_level"] == "error"]
        assert not errors, f"seed {seed}: {errors}"
    assert answers > 10 * RUNS


async def gather(stage: Stage, count: int) -> list[Talker]:
    """So many clients, all in the group of the first channel."""
    talkers = [Talker(stage, index) for index in range(count)]
    for talker in talkers:
        talker.connect()
        talker.say(type="subscribe", channel=stage.names[0])
        await asyncio.sleep(1)
    assert all(stage.names[0] in talker.views for talker in talkers)
    return talkers


async def part(stage: Stage, talkers: list[Talker]) -> None:
    """They have all they should have, and go."""
    await asyncio.sleep(5)
    for talker in talkers:
        if talker.wire is not None:
            talker.check_whole()
            talker.wire.abort()
    stage.stop()
    await asyncio.sleep(20)
    stage.check_empty()
    await stage.hub.close()
    assert not stage.violations, stage.violations


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("again", [False, True], ids=["for good", "and comes back"])
def test_who_leaves_during_a_large_fan_out_is_given_nothing_more_of_it(again: bool) -> None:
    async def story() -> None:
        stage = Stage(random.Random(1), clients=1, channels=1)
        talkers = await gather(stage, 4)
        stage.broker.hold()
        stage.publish("room0")
        stage.broker.release()  # one socket is written at once, the others in the next turns
        talkers[-1].say(type="unsubscribe", channel="room0")
        if again:
            talkers[-1].say(type="subscribe", channel="room0")
        await asyncio.sleep(5)
        assert ("room0" in talkers[-1].views) is again
        stage.publish("room0")
        await part(stage, talkers)

    run(story())


@pytest.mark.usefixtures("small")
def test_who_leaves_while_its_channel_opens_has_both_answers_and_hears_nothing() -> None:
    async def story() -> None:
        stage = Stage(random.Random(1), clients=1, channels=1)
        stage.broker.weather.delay = 0.3
        talker = Talker(stage, 0)
        talker.connect()
        for _ in range(3):
            talker.say(type="subscribe", channel="room0")
            talker.say(type="unsubscribe", channel="room0")
        await asyncio.sleep(20)
        assert (talker.answers, talker.views) == (6, {})
        stage.publish("room0")
        await part(stage, [talker])

    run(story())


@pytest.mark.usefixtures("small")
def test_who_goes_while_its_channel_opens_leaves_nothing_behind() -> None:
    async def story() -> None:
        stage = Stage(random.Random(1), clients=1, channels=1)
        stage.broker.weather.delay = 0.3
        talker = Talker(stage, 0)
        talker.connect()
        talker.say(type="subscribe", channel="room0")
        assert talker.wire is not None
        talker.wire.abort()
        await part(stage, [talker])

    run(story())


def test_nothing_is_read_from_a_client_as_long_as_one_reason_holds() -> None:
    async def story() -> None:
        stage = Stage(random.Random(1), clients=1, channels=1)
        [talker] = await gather(stage, 1)
        wire = talker.wire
        assert wire is not None
        stage.broker.jammed = True
        talker.say(type="publish", channel="room0", data=1)
        assert not wire.reading
        wire.reads = False
        for _ in range(8):
            stage.publish("room0")
        await asyncio.sleep(2)
        assert wire.paused
        stage.broker.relieve()
        assert not wire.reading, "it is slow"
        stage.broker.jammed = True
        wire.read()
        assert wire.reading
        talker.say(type="publish", channel="room0", data=2)
        assert not wire.reading
        wire.reads = False
        for _ in range(8):
            stage.publish("room0")
        await asyncio.sleep(2)
        wire.read()
        assert not wire.reading, "the store is congested"
        stage.broker.relieve()
        assert wire.reading
        await part(stage, [talker])

    run(story())


def test_one_page_of_history_at_a_time_is_read_for_a_client() -> None:
    async def story() -> None:
        stage = Stage(random.Random(1), clients=1, channels=1)
        stage.broker.weather.delay = 0.3
        [talker] = await gather(stage, 1)
        for number in range(5):
            talker.say(type="history", channel="room0")
            assert talker.wire is not None
            assert not talker.wire.reading, number
        asked = talker.answers
        await asyncio.sleep(60)
        assert talker.answers == asked + 5
        assert talker.wire is not None
        assert talker.wire.reading
        await part(stage, [talker])

    run(story())


def test_answers_that_wait_are_written_before_the_socket_is_closed() -> None:
    async def story() -> None:
        stage = Stage(random.Random(1), clients=1, channels=1)
        [talker] = await gather(stage, 1)
        before = talker.answers
        for _ in range(25):
            talker.say(type="subscribe", channel=5)
        assert talker.wire is not None
        assert talker.wire.closed == 4400
        assert talker.answers == before + 20
        await part(stage, [])

    run(story())
