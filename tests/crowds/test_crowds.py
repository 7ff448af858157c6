"""Every scenario small: everybody is whole. Of times a machine that is busy says little, so they are wide here."""

from __future__ import annotations

from dataclasses import replace

from app.terminal.load import Outcome
from tests.crowds.scenes import SCENES, Scale, jitter
from tests.stage.service import Service


def missed(name: str, scale: Scale, outcome: Outcome) -> list[str]:
    return [f"{goal}: {figure}" for goal, figure, reached in SCENES[name].judge(scale, outcome) if not reached]


async def test_a_crowd_whose_connections_are_cut_again_and_again_is_whole(service: Service) -> None:
    scale = replace(SCENES["jitter"].small, late=60.0)
    assert missed("jitter", scale, await jitter(scale, service.url)) == []


async def test_a_crowd_is_whole_and_back_after_a_restart_of_all_workers() -> None:
    scale = SCENES["restart"].small
    assert missed("restart", scale, await SCENES["restart"].play(scale)) == []
