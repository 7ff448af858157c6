"""The figures of a load test: quantiles, the fullest second, what counts as wrong."""

from __future__ import annotations

import random

import pytest

from app.terminal.latencies import STEPS, Latencies
from app.terminal.load import Outcome


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99, 1.0])
def test_a_quantile_is_right_within_a_bucket(share: float) -> None:
    chance = random.Random(7)
    values = sorted(chance.lognormvariate(-5, 2) for _ in range(5000))
    found = Latencies()
    for value in values:
        found.add(value)
    exact = values[max(0, round(share * len(values)) - 1)]
    assert exact <= found.quantile(share) <= exact * (1 + 2 / STEPS)
    assert found.quantile(1.0) == found.longest == values[-1]


def test_the_picture_has_every_duration_once() -> None:
    found = Latencies()
    for milliseconds in (1, 1, 2, 500):
        found.add(milliseconds / 1000)
    rows = list(found.rows())
    assert sum(count for _, count in rows) == 4
    assert rows[0][0] < 0.0015
    assert rows[-1][0] >= 0.5
    assert [end for end, _ in rows] == sorted(end for end, _ in rows)


def test_without_a_duration_there_is_nothing_to_see() -> None:
    assert list(Latencies().rows()) == []
    assert Latencies().summary() == {"p50": 0, "p90": 0, "p99": 0, "max": 0}


def test_the_fullest_second_is_a_share_of_all_returns() -> None:
    outcome = Outcome(began=100.0, returns=[100.1, 100.9, 101.0, 103.5])
    assert outcome.fullest_second == 0.5
    assert Outcome().fullest_second == 0.0


@pytest.mark.parametrize("wrong", ["missing", "duplicates", "reordered", "gaps"])
def test_anything_wrong_is_not_whole(wrong: str) -> None:
    assert Outcome().whole
    outcome = Outcome()
    setattr(outcome, wrong, 1)
    assert not outcome.whole
