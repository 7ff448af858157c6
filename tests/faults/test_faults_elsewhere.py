"""Every fault of delivery, workers, network and presence once and small."""

from __future__ import annotations

import pytest

from tests.faults.scene import Fault, Grounds
from tests.faults.table import in_order


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "fault", in_order("Delivery", "Workers and network", "Presence and permission"), ids=lambda fault: fault.name
)
async def test_nothing_is_silently_lost_doubled_or_reordered_by(grounds: Grounds, fault: Fault) -> None:
    outcome = await grounds.play(fault, seed=1, small=True)
    assert outcome.broken == []
    assert outcome.counts["messages"] or not outcome.counts
