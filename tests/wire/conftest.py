"""The kinds of sockets over which the behaviour suite runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.wire.stage import HTTP, OURS, Server

KINDS: dict[str, dict[str, Any]] = {
    "fast": {"ws": OURS, "http": HTTP},
    "fast-asyncio-h11": {"ws": OURS, "loop": "asyncio", "http": "h11"},
    "kept": {"ws": OURS, "take": False},
    "portable": {"ws": "websockets-sansio"},
}
"""`kept`: our protocol class under an application that does not take the connection over."""


@pytest.fixture(scope="package", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Name of a kind of socket."""
    name: str = request.param
    return name


@pytest.fixture(scope="package")
def server(kind: str) -> Iterator[Server]:
    """A server with this kind of socket."""
    with Server(**KINDS[kind]) as server:
        yield server


@pytest.fixture
def portable(kind: str) -> bool:
    """Whether the sockets are uvicorn's own: what it hides or does in its own way is named in each test."""
    return kind == "portable"
