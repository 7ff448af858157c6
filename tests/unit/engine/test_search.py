"""The real hub, catch-up and connections under random schedules, judged message by message.

Longer: `SEARCH_RUNS=5000 pytest tests/unit/engine/test_search.py` (runs a mood).
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Mapping

import pytest
from structlog.testing import capture_logs

from app.engine import catchup, hub, inquiry, shared
from tests.unit.continuity import store as model
from tests.unit.continuity.store import Store
from tests.unit.engine.clock import run
from tests.unit.engine.crowd import Client, Stage

RUNS = int(os.environ.get("SEARCH_RUNS", "60"))
STEPS = 150

CALM: Mapping[str, float] = {
    "publish": 30,
    "burst": 4,
    "say": 8,
    "whisper": 2,
    "come": 14,
    "drop": 6,
    "cancel": 2,
    "stall": 6,
    "read": 8,
    "lose_reader": 2,
    "lossy": 1,
    "steady": 3,
    "refusing": 1,
    "jam": 1,
    "relieve": 2,
}
TROUBLE: Mapping[str, float] = {
    **CALM,
    "replicate": 8,
    "fail_over": 2,
    "demote": 2,
    "lead_again": 1,
    "promote_again": 1,
    "restart": 2,
    "clear": 1,
    "flush_all": 1,
    "expire_log": 1,
    "expire_meta": 1,
    "move_commands": 1,
    "unreadable": 2,
}
MOODS: Mapping[str, tuple[Mapping[str, float], bool]] = {
    "calm": (CALM, True),
    "slow peers": ({**CALM, "stall": 30, "read": 20, "burst": 12}, True),
    "comings and goings": ({**CALM, "come": 40, "drop": 25, "cancel": 8}, True),
    "unsteady reader": ({**CALM, "lose_reader": 15, "lossy": 5}, True),
    "unreadable": ({**CALM, "unreadable": 8}, False),
    "trouble": (TROUBLE, False),
    "failovers": ({**TROUBLE, "fail_over": 8, "demote": 6, "restart": 6, "stall": 20, "read": 14}, False),
}


def act(stage: Stage, action: str, chance: random.Random) -> None:
    broker, client = stage.broker, chance.choice(stage.clients)
    name = chance.choice(stage.names)
    rooms = [broker.room(each) for each in stage.names]
    match action:
        case "publish":
            stage.publish(name, server=None if chance.random() < 0.5 else broker.room(name).store.leader)
        case "burst":
            for _ in range(chance.randrange(2, 12)):
                stage.publish(name)
        case "say":
            stage.say(client)
        case "whisper":
            stage.whisper(name)
        case "unreadable":
            stage.publish(name, "?")
        case "come":
            if client.off:
                client.connect(resume=chance.random() < 0.8, history=chance.choice((0, 0, 2)))
        case "drop":
            client.drop()
        case "cancel":
            if client.task is not None:
                client.task.cancel()
        case "stall":
            if client.wire is not None:
                client.wire.reads = False
        case "read":
            if client.wire is not None:
                client.wire.read()
        case "lose_reader":
            broker.lose_reader(chance.choice((None, 0.5, 8.0)))
        case "lossy":
            broker.weather.lose = 0.3
        case "refusing":
            broker.weather.refuse = 0.5
        case "steady":
            broker.weather.lose = broker.weather.refuse = 0.0
        case "jam":
            broker.jammed = True
        case "relieve":
            broker.relieve()
        case "move_commands":
            broker.commands = broker.room(name).store.leader
        case "clear":
            broker.room(name).store.clear(broker.room(name).store.leading)
        case _:
            for room in rooms:
                befall(room.store, action, chance)


def befall(store: Store, action: str, chance: random.Random) -> None:
    """Something happens to the store's servers."""
    match action:
        case "replicate":
            store.replicate(chance.randrange(1, 5))
        case "restart":
            store.restart(chance.randrange(4))
        case "expire_meta":
            store.expire_meta(log_too=chance.random() < 0.5)
        case _:
            getattr(store, action)()


async def play(seed: int, actions: Mapping[str, float], *, whole: bool) -> None:
    chance = random.Random(seed)
    stage = Stage(chance, clients=chance.choice((2, 5, 10)), channels=chance.choice((1, 2)))
    stage.broker.weather.delay = chance.choice((0.0, 0.001, 0.02, 0.3))
    names, weights = list(actions), list(actions.values())
    for _ in range(STEPS):
        act(stage, chance.choices(names, weights)[0], chance)
        await asyncio.sleep(chance.choice((0, 0, 0, 0.0003, 0.003, 0.03, 0.3, chance.choice((1.0, 6.0)))))
    stage.heal()
    await asyncio.sleep(40)
    for name in stage.names:
        stage.publish(name)
    await asyncio.sleep(40)
    stage.stop()
    await asyncio.sleep(10)
    stage.check_whole()
    if whole:
        for client in stage.clients:
            stage.fail_if(client.gaps > 0, f"{client}: was told of a gap")
    leave(stage.clients)
    await asyncio.sleep(20)
    stage.check_empty()
    await stage.hub.close()
    assert not stage.violations, f"seed {seed}: " + "; ".join(stage.violations[:5])


def leave(clients: list[Client]) -> None:
    for client in clients:
        client.drop()
        if client.task is not None:
            client.task.cancel()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds so small that every branch is taken."""
    monkeypatch.setattr(hub, "SLICE", 1)
    monkeypatch.setattr(hub, "LARGE", 3)
    monkeypatch.setattr(hub, "RINGS", 2500)
    monkeypatch.setattr(inquiry, "PAGE", 3)
    monkeypatch.setattr(catchup, "PAGE", 3)
    monkeypatch.setattr(catchup, "BATCH", 2)
    monkeypatch.setattr(catchup, "TURN", 8)
    monkeypatch.setattr(shared, "RING", 900)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("mood", MOODS)
def test_everyone_is_whole_or_told_and_nothing_is_left_over(mood: str, monkeypatch: pytest.MonkeyPatch) -> None:
    actions, whole = MOODS[mood]
    monkeypatch.setattr(model, "MAXLEN", 10_000 if whole or mood == "unreadable" else 8)
    for seed in range(RUNS):
        with capture_logs() as logs:
            run(play(seed, actions, whole=whole))
        errors = [entry for entry in logs if entry["log_level"] == "error"]
        assert not errors, f"seed {seed}: {errors}"
