"""A real Chromium and its visitors: one browser context each, with the page open and its complaints written down."""

from __future__ import annotations

import json
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

    async def visit(self, url: str, channel: str, *, name: str | None = None) -> Response:
        """Open the page for a channel, under a name, and wait until the channel is joined."""
        if name is not None:
            await self.page.add_init_script(f"sessionStorage['tocsin.name'] = {json.dumps(name)}")
        answer = await self.page.goto(f"{url}/#{channel}")
        assert answer is not None
        await self.has_joined(channel)
        return answer

    @property
    def link(self) -> Locator:
        """How the connection is, at the top."""
        return self.page.get_by_role("group", name="Connection")

    def room(self, channel: str) -> Locator:
        """A channel that is open."""
        return self.page.get_by_role("region", name=f"Channel {channel}", exact=True)

    def texts(self, channel: str) -> Locator:
        """The messages of a channel, without names and times."""
        return self.room(channel).locator(".text")

    def notes(self, channel: str) -> Locator:
        """What the page itself says between them."""
        return self.room(channel).locator("li.note")

    async def has_link(self, state: str) -> None:
        """Wait until the connection is `connected`, `connecting` or `closed`."""
        await expect(self.link).to_have_attribute("data-state", state, timeout=15_000)

    async def has_joined(self, channel: str) -> None:
        """Wait until a channel is joined."""
        await self.has_link("connected")
        await expect(self.room(channel).locator(".empty")).to_have_text("Nothing has been said here yet.")

    async def has_texts(self, channel: str, texts: list[str]) -> None:
        """Wait until a channel shows exactly these messages, in this order."""
        await expect(self.texts(channel)).to_have_text(texts, timeout=15_000)

    async def has_counted(self, **counters: int) -> None:
        """Wait until the counters of continuity stand so."""
        for name, number in counters.items():
            shown = self.page.locator(f"[data-counter={name}]")
            await expect(shown, name).to_have_text(str(number), timeout=15_000)

    async def say(self, channel: str, text: str) -> None:
        """Send, as one with a keyboard does."""
        box = self.page.get_by_role("textbox", name=f"Message to {channel}", exact=True)
        await box.fill(text)
        await box.press("Enter")

    async def worker(self) -> str:
        """The worker that the page is on, as the service calls it (`node/slot`)."""
        await self.has_link("connected")
        said = await self.link.locator(".worker").text_content() or ""
        return said.removeprefix("worker ")

    async def leave(self) -> None:
        """Close the window."""
        await self.context.close()
