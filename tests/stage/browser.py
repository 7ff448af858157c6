"""A real Chromium and its visitors: one browser context each, with the page open and its complaints written down."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

import pytest
from playwright.async_api import Browser, BrowserContext, Locator, Page, Response, async_playwright, expect

FLAGS = [
    "--no-sandbox",  # containers forbid the system calls that it needs
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",  # tests speak with loopback only
    "--disable-component-update",
    "--disable-sync",
]


def chromium_binary() -> str:
    """Path of the installed Chromium; without one a laptop skips and CI fails."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is missing: .ci/run must install it")
        pytest.skip("chromium is not installed")
    return found


@asynccontextmanager
async def open_browser(*, keeps_pages: bool = False) -> AsyncIterator[Browser]:
    """One headless Chromium; each visitor gets a context of its own in it. With `keeps_pages` a page that one has left
    is kept as it was (the back/forward cache): Playwright, which cannot follow that, turns it off.
    """
    binary = chromium_binary()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=binary,
            args=FLAGS,
            ignore_default_args=["--disable-back-forward-cache"] if keeps_pages else None,
        )
        try:
            yield browser
        finally:
            await browser.close()


class Visitor:
    """One who has the page open.

    Attributes:
        complaints: what the browser had to say: console warnings and errors (a CSP violation is one), uncaught errors.
    """

    def __init__(self, context: BrowserContext, page: Page) -> None:
        self.context = context
        self.page = page
        self.complaints: list[str] = []
        page.on("console", lambda said: self._note(said.type, said.text))
        page.on("pageerror", lambda error: self._note("error", str(error)))

    def _note(self, kind: str, text: str) -> None:
        if kind in {"warning", "error"}:
            self.complaints.append(f"{kind}: {text}")

    @classmethod
    async def arrive(cls, browser: Browser, *, width: int = 1280, height: int = 800, dark: bool = False) -> Self:
        """Open a window (CSS pixels) without any page yet."""
        context = await browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        context.set_default_timeout(10_000)
        return cls(context, await context.new_page())

    async def visit(self, url: str, channel: str) -> Response:
        """Open the page for a channel and wait until both panes are open."""
        answer = await self.page.goto(f"{url}/#{channel}")
        assert answer is not None
        for name in ("A", "B"):
            await self.has_state(name, "open")
        return answer

    def pane(self, name: str) -> Locator:
        """Pane A or B."""
        return self.page.get_by_role("region", name=f"Pane {name}", exact=True)

    def texts(self, name: str) -> Locator:
        """The messages of a pane, without their times."""
        return self.pane(name).locator(".text")

    async def has_state(self, name: str, state: str) -> None:
        """Wait until a pane is `connecting`, `open`, `waiting` or `stopped`."""
        await expect(self.pane(name)).to_have_attribute("data-state", state, timeout=10_000)

    async def has_texts(self, name: str, texts: list[str]) -> None:
        """Wait until a pane shows exactly these messages, in this order."""
        await expect(self.texts(name)).to_have_text(texts, timeout=10_000)

    async def say(self, name: str, text: str) -> None:
        """Send from a pane, as one with a keyboard does."""
        box = self.pane(name).get_by_role("textbox")
        await box.fill(text)
        await box.press("Enter")

    async def reconnect(self, name: str) -> None:
        """Drop a pane's connection and wait for the next one."""
        button = self.pane(name).locator(".toggle")
        await button.click()  # Drop
        await button.click()  # Connect, without the wait
        await self.has_state(name, "open")

    async def leave(self) -> None:
        """Close the window."""
        await self.context.close()
