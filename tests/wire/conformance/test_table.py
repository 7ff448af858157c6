"""The suite is whole: as many cases in each group as are known, each with a number of its own."""

from __future__ import annotations

import itertools

import pytest

from tests.wire.conformance.table import CASES, GROUPS, Group


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: f"{group.number} {group.title}")
def test_every_group_has_all_its_cases(group: Group) -> None:
    assert len(group.cases) == group.count
    assert {case.group for case in group.cases} == {group.number}


def test_there_are_247_cases_each_once() -> None:
    assert len(CASES) == sum(group.count for group in GROUPS) == 247
    assert len({case.number for case in CASES}) == 247


def test_numbers_count_up() -> None:
    numbers = [[int(part) for part in case.number.split(".")] for case in CASES]
    assert numbers == sorted(numbers)
    for before, number in itertools.pairwise(numbers):
        if before[:-1] == number[:-1]:
            assert number[-1] == before[-1] + 1
        else:
            assert number[-1] == 1
