"""Fixtures that every folder may use."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from tests.stage.redis import RedisServer
from tests.stage.service import Service


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One real Redis for the session; tests that break it start their own."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def prefix() -> str:
    """A key prefix of this test's own, so that tests can share a server."""
    return f"test-{secrets.token_hex(6)}"


@pytest.fixture(scope="session")
def service(redis_server: RedisServer) -> Iterator[Service]:
    """One service of four workers for the session; tests that break it start their own."""
    with Service(redis_server.url, workers=4, redis_prefix="session") as running:
        yield running
