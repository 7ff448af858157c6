"""Continuity under everything that may befall it: invariants 1 to 11, by hypothesis and by a seeded search.

Longer: `python -m tests.unit.continuity.search 10000000 7` (steps, seed).
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.continuity.rules import Rules
from tests.unit.continuity.search import ACTIONS, CHOICES, Action, run, search

SLOTS = [name for name, (weight, _) in ACTIONS.items() for _ in range(max(1, round(2 * weight)))]
PER_NAME = 2 * 4 * CHOICES


def decode(code: int) -> Action:
    """An action from one integer; small integers are ordinary actions, so that hypothesis shrinks towards them."""
    slot, rest = divmod(code, PER_NAME)
    worker, rest = divmod(rest, 4 * CHOICES)
    return (SLOTS[slot], worker, *divmod(rest, CHOICES))


CODES = st.integers(0, len(SLOTS) * PER_NAME - 1)


@settings(
    max_examples=400,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example, HealthCheck.data_too_large],
)
@given(st.lists(CODES, max_size=60) | st.lists(CODES, min_size=40, max_size=120))
def test_whatever_happens_everyone_is_whole_or_told(codes: list[int]) -> None:
    violation = run([decode(code) for code in codes])
    assert violation is None, violation


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_random_search_finds_no_violation(seed: int) -> None:
    found = search(Rules(), steps=70_000, seed=seed)
    assert found is None, found


@pytest.mark.parametrize(
    "boost",
    [
        {"hold": 6, "fail_over": 5, "restart": 5, "slow": 12},
        {"stall": 6, "return": 30, "expire_log": 3},
        {"lazy": 6, "fail": 8, "command_move": 6, "lead_again": 4, "fail_over": 4},
        {"clear": 4, "flush_all": 3, "expire_meta": 3, "lose": 8},
    ],
    ids=["late flushes", "late readers", "late commands", "lost keys"],
)
def test_a_search_with_more_of_one_kind_of_trouble_finds_no_violation(boost: dict[str, float]) -> None:
    found = search(Rules(), steps=45_000, seed=4, boost=boost)
    assert found is None, found
