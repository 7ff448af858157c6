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

from app.engine import catchup, connection, hub, inquiry, shared
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
    match action:
        case "talk":
            for _ in range(chance.choice((1, 1, 2, 5))):
                talker.say_anything(chance)
        case "come":
            if talker.wire is None:
                talker.connect()
        case "drop" | "stall" | "read" if talker.wire is None:
            pass
        case "drop":
            talker.wire.abort()
        case "stall":
            talker.wire.reads = False
        case "read":
            talker.wire.read()
        case _:
            act(stage, action, chance)


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
    monkeypatch.setattr(connection, "UNDER_WAY", 3)


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
