"""What holds for the whole console: how it looks, how it is used without a mouse, Watch and Try."""

from __future__ import annotations

import asyncio
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.async_api import Locator, Request, expect

import app.edge
from tests.browser.conftest import Arrive
from tests.integration.test_readme import curl_binary
from tests.stage.browser import Visitor
from tests.stage.service import Service

pytestmark = pytest.mark.asyncio(loop_scope="module")

TABS = ("Talk", "Watch", "Try")
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
OPENED = """new Promise((done) => {
  if (events.readyState === EventSource.OPEN) done();
  else events.onopen = done;
})"""
FAINT = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (color, over) => {  // as it is painted: half transparent colours over what is behind them
    canvas.fillStyle = over;
    canvas.fillRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (parts) => {  // WCAG 2.2, relative luminance
    const linear = parts.map((part) => part / 255)
      .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const ground = (element) => {
    const colors = [];
    for (let at = element; at; at = at.parentElement) colors.push(getComputedStyle(at).backgroundColor);
    return colors.reverse().reduce((over, color) => `rgb(${rgb(color, over)})`, "white");
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data.trim()).join("");
    if (!text || !element.checkVisibility() || element.disabled) continue;
    const behind = ground(element);
    const [a, b] = [luminance(rgb(getComputedStyle(element).color, behind)), luminance(rgb(behind, "white"))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`${text.slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return found;
}"""


async def open_tab(visitor: Visitor, name: str) -> None:
    await visitor.page.get_by_role("tab", name=name).click()
    await expect(visitor.page.get_by_role("tabpanel", name=name)).to_be_visible()


async def test_page_and_its_pictures_weigh_little() -> None:
    folder = Path(app.edge.__file__).parent / "page"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 80_000
    pictures = {file: file.stat().st_size for file in (Path(__file__).parents[2] / "docs" / "pictures").iterdir()}
    assert all(size <= (150_000 if file.suffix == ".png" else 1_000_000) for file, size in pictures.items())
    assert any(file.suffix == ".webp" for file in pictures)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_every_tab_fits_the_window_and_every_text_can_be_read(
    service: Service, arrive: Arrive, channel: str, *, dark: bool
) -> None:
    ada = await arrive(dark=dark)
    await ada.visit(service.url, channel)
    await ada.say(channel, "tocsin" * 200)
    await ada.has_texts(channel, ["tocsin" * 200])
    await ada.page.get_by_role("button", name="Drop connection").click()
    await expect(ada.notes(channel)).to_contain_text("Back after")
    for tab in TABS:
        await open_tab(ada, tab)
        for width in (360, 768, 1280):
            await ada.page.set_viewport_size({"width": width, "height": 800})
            assert await ada.page.evaluate(OVERFLOW) == 0, f"{tab} at {width}"
        assert await ada.page.evaluate(FAINT) == [], tab
    assert ada.complaints == []


async def test_tabs_are_moved_between_by_arrow_keys(service: Service, arrive: Arrive, channel: str) -> None:
    ada = await arrive()
    await ada.visit(service.url, channel)
    await ada.page.keyboard.press("Tab")
    for key, expected in (("ArrowRight", "Watch"), ("End", "Try"), ("ArrowRight", "Talk"), ("ArrowLeft", "Try")):
        await ada.page.keyboard.press(key)
        tab = ada.page.get_by_role("tab", name=expected, selected=True)
        await expect(tab).to_be_focused()
        await expect(tab).to_have_css("outline-style", "solid")
        await expect(ada.page.get_by_role("tabpanel")).to_have_count(1)
        await expect(ada.page.get_by_role("tabpanel", name=expected)).to_be_visible()
    assert ada.page.url.endswith("#/try")
    await ada.page.keyboard.press("Home")
    await expect(ada.room(channel)).to_be_visible()
    assert ada.page.url.endswith(f"#{channel}")


async def test_watch_moves_every_second_and_only_while_it_is_looked_at(
    service: Service, arrive: Arrive, channel: str
) -> None:
    ada = await arrive()
    asked: list[str] = []

    def note(request: Request) -> None:
        if request.url.endswith("/metrics"):
            asked.append(request.url)

    ada.page.on("request", note)
    await ada.visit(service.url, channel)
    assert asked == []
    await open_tab(ada, "Watch")

    def card(title: str) -> Locator:
        heading = ada.page.get_by_role("heading", name=title, exact=True)
        return ada.page.locator(".card").filter(has=heading)

    await expect(card("Publishes").locator("b")).to_contain_text(re.compile(r"\d"))
    for title in ("Acknowledged in", "Echoed in"):
        figures = card(title).locator("b")
        await expect(figures.first).to_contain_text("ms p50")
        await expect(figures.last).to_contain_text("ms p99")
    line = card("Connections").locator("path.first")
    before = await line.get_attribute("d") or ""
    assert before.startswith("M")
    await expect(line).not_to_have_attribute("d", before, timeout=3000)
    await expect(ada.page.locator(".store")).to_contain_text("Ready")
    await expect(ada.page.locator("tbody tr")).to_have_count(4)
    await expect(ada.page.locator("tbody td:nth-child(2)")).to_have_text(["ready"] * 4)
    connections = await ada.page.locator("tbody td:nth-child(3)").all_text_contents()
    assert sum(map(int, connections)) >= 1

    await open_tab(ada, "Talk")
    heard = len(asked)
    await ada.page.wait_for_timeout(1500)  # longer than between two polls
    assert len(asked) == heard
    assert ada.complaints == []


class Clipboard:
    """What is copied in Try, by title."""

    def __init__(self, visitor: Visitor) -> None:
        self.page = visitor.page

    async def copy(self, title: str) -> str:
        await self.page.get_by_role("button", name=f"Copy: {title}").click()
        snippet = self.page.locator(".snippet").filter(has=self.page.get_by_role("heading", name=title, exact=True))
        await expect(snippet.get_by_role("status")).to_have_text("Copied")
        copied: str = await self.page.evaluate("navigator.clipboard.readText()")
        return copied


async def test_snippets_work_as_copied(service: Service, arrive: Arrive, channel: str) -> None:
    ada = await arrive()
    await ada.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await ada.visit(service.url, channel)
    await open_tab(ada, "Try")
    board = Clipboard(ada)
    page = await ada.context.new_page()
    await page.goto(f"{service.url}/livez")
    console = await ada.context.new_cdp_session(page)  # what a developer's console does

    lines = await board.copy("Browser, no library")
    assert len(lines.splitlines()) == 10
    async with page.expect_console_message(lambda said: said.text == "Hello from ten lines"):
        await console.send("Runtime.evaluate", {"expression": lines})
    module = await board.copy("Browser, with the client")
    async with page.expect_console_message(lambda said: said.text.startswith("in the log as")):
        await page.add_script_tag(type="module", content=module)
    listener = await board.copy("EventSource")
    async with page.expect_console_message(lambda said: "Hello from curl" in said.text):
        await console.send("Runtime.evaluate", {"expression": listener})
        await console.send("Runtime.evaluate", {"expression": OPENED, "awaitPromise": True})
        await run(await board.copy("curl: publish"))
    assert "Hello from curl" in await run(await board.copy("curl: read the log"))

    await open_tab(ada, "Talk")
    texts = ["Hello from ten lines", '{ "text": "Hello from the client" }', '{ "text": "Hello from curl" }']
    await ada.has_texts(channel, texts)
    assert ada.complaints == []


async def run(command: str) -> str:
    """What a copied command prints."""
    words = shlex.split(command.replace("\\\n", " "))
    assert words[0] == "curl"
    command_line = [curl_binary(), "--fail", "--silent", *words[1:]]
    done = await asyncio.to_thread(subprocess.run, command_line, capture_output=True, text=True, check=True)
    return done.stdout


async def test_python_snippet_works_as_copied(service: Service, arrive: Arrive, channel: str) -> None:
    ada = await arrive()
    await ada.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await ada.visit(service.url, channel)
    await open_tab(ada, "Try")
    program = await Clipboard(ada).copy("Python")
    process = await asyncio.create_subprocess_exec(sys.executable, "-u", "-c", program, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(10):
            assert b"Hello from Python" in await process.stdout.readline()
    finally:
        process.kill()
        await process.wait()
    await open_tab(ada, "Talk")
    await ada.has_texts(channel, ['{ "text": "Hello from Python" }'])
