"""Token buckets: never more than the burst and the rate allow, never less, and nobody is punished for asking."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.limits import Rate

RATES = st.builds(Rate, st.floats(0.1, 1000), st.floats(1, 1000))
STEPS = st.lists(st.tuples(st.floats(0, 5), st.floats(0.1, 50)), min_size=1, max_size=80)


@given(RATES, STEPS)
def test_no_window_holds_more_than_the_burst_and_what_the_rate_adds(
    rate: Rate, steps: list[tuple[float, float]]
) -> None:
    full_at, now, taken = 0.0, 1000.0, [(1000.0, 0.0)]
    for pause, amount in steps:
        now += pause
        full_at, wait = rate.take(full_at, now, amount)
        assert wait >= 0
        if not wait:
            taken.append((now, amount))
    for first in range(len(taken)):
        total = 0.0
        for at, amount in taken[first:]:  # a large one is paid for by what comes after it
            assert total + min(amount, rate.burst) <= rate.burst + rate.rate * (at - taken[first][0]) + 1e-6 * (
                1 + total
            )
            total += amount


@given(RATES, STEPS)
def test_who_waits_as_told_is_let_through_and_not_much_earlier(rate: Rate, steps: list[tuple[float, float]]) -> None:
    full_at, now = 0.0, 1000.0
    for pause, amount in steps:
        now += pause
        full_at, wait = rate.take(full_at, now, amount)
        if wait:
            assert rate.take(full_at, now + wait * 0.99 - 1e-6, amount)[1] > 0
            now += wait + 1e-6
            full_at, wait = rate.take(full_at, now, amount)
            assert wait == 0.0


@given(RATES)
def test_an_idle_bucket_is_full(rate: Rate) -> None:
    full_at, _ = rate.owe(0.0, 1000.0, 10 * rate.burst)
    later = 1000.0 + 11 * rate.burst / rate.rate
    assert rate.take(full_at, later, rate.burst)[1] == 0.0
    assert rate.take(rate.take(full_at, later, rate.burst)[0], later, 1)[1] > 0


def test_more_than_the_burst_goes_through_a_full_bucket_and_is_paid_for_afterwards() -> None:
    rate = Rate(1, 10)
    assert rate.take(0.0, 1000.0, 500) == (1500.0, 0.0)
    assert rate.take(1500.0, 1001.0, 1) == (1500.0, 490.0)


def test_debt_is_told_and_grows() -> None:
    rate = Rate(10, 2)
    full_at, waits = 0.0, []
    for _ in range(4):
        full_at, wait = rate.owe(full_at, 1000.0)
        waits.append(round(wait, 6))
    assert waits == [0.0, 0.0, 0.1, 0.2]


@pytest.mark.parametrize("amount", [1, 1e9])
def test_no_rate_is_no_limit(amount: float) -> None:
    assert Rate(0).take(0.0, 5.0, amount) == Rate(0).owe(0.0, 5.0, amount) == (0.0, 0.0)
