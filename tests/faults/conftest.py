"""One ground at a time for the faults of a module."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.faults.scene import Grounds


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def grounds() -> AsyncIterator[Grounds]:
    """What neighbours in the table stand on together."""
    found = Grounds()
    yield found
    await found.close()
