"""One Chromium for a module, as many visitors as a test wants."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests.stage.browser import Visitor, open_browser

Arrive = Callable[..., Awaitable[Visitor]]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with open_browser() as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def arrive(browser: Browser) -> AsyncIterator[Arrive]:
    """Makes visitors (arguments of `Visitor.arrive`) and closes their windows afterwards."""
    visitors: list[Visitor] = []

    async def make(*, width: int = 1280, dark: bool = False) -> Visitor:
        visitors.append(await Visitor.arrive(browser, width=width, dark=dark))
        return visitors[-1]

    yield make
    for visitor in visitors:
        await visitor.leave()


@pytest.fixture
def channel() -> str:
    """A channel of this test's own."""
    return f"page:{secrets.token_hex(4)}"
