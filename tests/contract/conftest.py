"""One fixture per implementation of `Broker`; there is one now."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import redis

from tests.contract.stage import Stage, connected
from tests.stage.redis import RedisServer


@pytest.fixture
async def stage(redis_server: RedisServer, prefix: str) -> AsyncIterator[Stage]:
    """A broker on the session's Redis under a prefix of this test's own."""
    async with connected(redis_server.url, prefix) as stage:
        yield stage


@pytest.fixture
def store(redis_server: RedisServer) -> Iterator[redis.Redis]:
    """A hand in the store, past the broker."""
    with redis_server.client() as client:
        yield client


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """A Redis that this test may break."""
    with RedisServer() as server:
        yield server
