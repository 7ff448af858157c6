"""Every fault once and small: nothing is lost silently, doubled, reordered, made up or reset without need."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.faults.scene import Fault, Grounds
from tests.faults.table import FAULTS

SEED = 1


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def grounds() -> AsyncIterator[Grounds]:
    """What neighbours in the table stand on together."""
    found = Grounds()
    yield found
    await found.close()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_nothing_is_silently_lost_doubled_or_reordered_by(grounds: Grounds, fault: Fault) -> None:
    outcome = await grounds.play(fault, SEED, small=True)
    assert outcome.broken == []
    assert outcome.counts["messages"] or not outcome.counts
