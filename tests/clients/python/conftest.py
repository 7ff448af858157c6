"""A service that takes tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.clients.python.stage import KEY, SECRET
from tests.stage.redis import RedisServer
from tests.stage.service import Service


@pytest.fixture(scope="session")
def guarded(redis_server: RedisServer) -> Iterator[Service]:
    """One that knows tokens and a key, and lets in who shows nothing."""
    settings = {"jwt_secret": SECRET, "api_keys": json.dumps({"shop": KEY}), "allow_anonymous": "true"}
    with Service(redis_server.url, redis_prefix="guarded", settings=settings) as running:
        yield running
