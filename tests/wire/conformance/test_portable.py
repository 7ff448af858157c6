"""All cases over the portable path: uvicorn's own WebSocket implementation, as any ASGI server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.stage.redis import RedisServer
from tests.wire.conformance.case import Case
from tests.wire.conformance.stage import Stage
from tests.wire.conformance.table import CASES, PORTABLE_DEVIATIONS


@pytest.fixture(scope="module")
def stage(redis_server: RedisServer) -> Iterator[Stage]:
    """One service for all cases."""
    with Stage(redis_server.url, "conformance-portable", fast=False) as stage:
        yield stage


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(stage: Stage, case: Case) -> None:
    deviation = PORTABLE_DEVIATIONS.get(case.number)
    if deviation is None:
        stage.play(case)
    else:  # still it must be this and nothing worse
        stage.play(replace(case, codes=frozenset({deviation.code})))
        pytest.xfail(deviation.why)


def test_nothing_is_left_of_all_cases(stage: Stage) -> None:
    stage.check_aftermath()
