"""Every fault of Redis once and small; those elsewhere run side by side with them."""

from __future__ import annotations

import pytest

from tests.faults.scene import Fault, Grounds
from tests.faults.table import in_order


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("fault", in_order("Redis"), ids=lambda fault: fault.name)
async def test_nothing_is_silently_lost_doubled_or_reordered_by(grounds: Grounds, fault: Fault) -> None:
    outcome = await grounds.play(fault, seed=1, small=True)
    assert outcome.broken == []
    assert outcome.counts["messages"] or not outcome.counts
