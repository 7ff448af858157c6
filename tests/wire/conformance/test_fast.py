"""All cases over the fast path: our own protocol class, connections detached."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.stage.redis import RedisServer
from tests.wire.conformance.case import Case
from tests.wire.conformance.stage import Stage
from tests.wire.conformance.table import CASES


@pytest.fixture(scope="module")
def stage(redis_server: RedisServer) -> Iterator[Stage]:
    """One service for all cases."""
    with Stage(redis_server.url, "conformance-fast", fast=True) as stage:
        yield stage


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(stage: Stage, case: Case) -> None:
    stage.play(case)


def test_nothing_is_left_of_all_cases(stage: Stage) -> None:
    stage.check_aftermath()
