"""The JavaScript client as it is served, in a real browser: offline, asleep, on a dead line, and while workers die."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page

from tests.browser.conftest import Arrive
from tests.stage.browser import open_browser
from tests.stage.node import CLIENT
from tests.stage.proxy import Proxy, proxied
from tests.stage.redis import RedisServer
from tests.stage.service import Service
from tests.stage.service import until as until_true

pytestmark = pytest.mark.asyncio(loop_scope="module")

JOIN = """async ([url, channel]) => {
  const { connect } = await import("/client/tocsin.js");
  const tocsin = connect(url, { random: () => Math.random() / 5 });
  const room = tocsin.channel(channel, { presence: { info: {} } });
  Object.assign(window, { tocsin, room, states: [], heard: [], ids: [], gaps: 0, acks: [] });
  tocsin.on("state", ({ state }) => states.push(state));
  room.on("message", ({ data, id }) => { heard.push(data); ids.push(id); });
  room.on("gap", () => gaps++);
  await room.subscribe();
}"""
SAY = """([from, to]) => {
  for (let n = from; n < to; n++) room.publish(n).then(({ id }) => acks.push(id));
}"""
SPEAK = """async (count) => {
  for (let n = 0; n < count; n++) {
    room.publish(n).then(({ id }) => acks.push(id));
    await new Promise((resolve) => setTimeout(resolve, 15));
  }
}"""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with open_browser(keeps_pages=True) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def lively() -> AsyncIterator[Service]:
    """Two workers that are heard of every second: who hears nothing for two has lost them."""
    with RedisServer() as redis:
        service = Service(redis.url, workers=2, ping_seconds="1")
        await asyncio.to_thread(service.start)
        try:
            yield service
        finally:
            await asyncio.to_thread(service.end)


async def join(arrive: Arrive, service: Service, channel: str, url: str = "/ws") -> Page:
    """A page that hears the channel: `tocsin`, `room`, and what it has heard, are global there."""
    visitor = await arrive()
    await visitor.page.goto(f"{service.url}/livez")  # of the service's origin, and without a CSP against its tests
    await visitor.page.evaluate(JOIN, [url, channel])
    return visitor.page


async def tell(service: Service, channel: str, numbers: range) -> None:
    """Publish by REST."""
    for number in numbers:
        answer = await asyncio.to_thread(service.post, channel, {"data": number})
        assert answer.status_code == 201


async def until(page: Page, condition: str, argument: Any = None) -> None:
    """Wait for a condition in the page."""
    await page.wait_for_function(condition, arg=argument, timeout=20_000)


async def has_heard(page: Page, numbers: list[int]) -> None:
    """It hears exactly these, in this order, and is told of no gap."""
    await until(page, "(count) => heard.length >= count", len(numbers))
    assert await page.evaluate("[heard, gaps]") == [numbers, 0]


async def is_in_state(page: Page, state: str) -> None:
    await until(page, "(state) => tocsin.state === state", state)


async def test_page_that_was_offline_misses_nothing(lively: Service, arrive: Arrive, channel: str) -> None:
    page = await join(arrive, lively, channel)
    await page.context.set_offline(True)
    await until(page, "() => tocsin.state !== 'open'")
    await tell(lively, channel, range(5))
    await page.evaluate(SAY, [5, 10])
    assert await page.evaluate("[heard.length, acks.length]") == [0, 0]
    await page.context.set_offline(False)
    await until(page, "() => acks.length === 5")
    await has_heard(page, list(range(10)))


@asynccontextmanager
async def asleep(browser: Browser) -> AsyncIterator[None]:
    """All that the browser consists of stands still, but for the process that tests talk to: the machine sleeps."""
    devtools = await browser.new_browser_cdp_session()
    processes = (await devtools.send("SystemInfo.getProcessInfo"))["processInfo"]
    pids = [process["id"] for process in processes if process["type"] != "browser"]
    assert len(pids) > 1
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def test_page_that_slept_misses_nothing(lively: Service, browser: Browser, arrive: Arrive, channel: str) -> None:
    page = await join(arrive, lively, channel)

    def is_gone() -> bool:
        return bool(lively.get(f"/api/v1/channels/{channel}/members").json()["count"] == 0)

    assert not await asyncio.to_thread(is_gone)
    async with asleep(browser):
        await tell(lively, channel, range(5))
        await asyncio.to_thread(until_true, is_gone)  # nothing was heard of it for two seconds
    await has_heard(page, list(range(5)))  # perhaps on the old connection, before its end is read
    await until(page, "() => states.length >= 4")
    assert await page.evaluate("states") == ["open", "waiting", "connecting", "open"]


@pytest_asyncio.fixture(loop_scope="module")
async def line(lively: Service) -> AsyncIterator[Proxy]:
    async with proxied(lively.port) as proxy:
        yield proxy


async def test_dead_line_is_noticed_and_replaced(lively: Service, arrive: Arrive, channel: str, line: Proxy) -> None:
    page = await join(arrive, lively, channel, f"ws://127.0.0.1:{line.port}/ws")
    await page.evaluate(SAY, [0, 3])
    await has_heard(page, [0, 1, 2])
    line.frozen = True  # packets are lost, and nobody closes
    await page.evaluate(SAY, [3, 6])
    await tell(lively, channel, range(6, 10))
    await until(page, "() => tocsin.state !== 'open'")
    line.frozen = False
    await until(page, "() => acks.length === 6")
    await until(page, "() => heard.length >= 10")
    heard = await page.evaluate("heard")
    assert sorted(heard) == list(range(10))  # whoever came first: each once
    assert await page.evaluate("[gaps, new Set(ids).size]") == [0, 10]


async def test_page_that_is_put_away_comes_back_with_its_channels(
    lively: Service, arrive: Arrive, channel: str
) -> None:
    page = await join(arrive, lively, channel)
    await page.evaluate("for (const name of ['pagehide', 'pageshow']) addEventListener(name, () => states.push(name))")
    await page.goto(f"{lively.url}/readyz")
    await tell(lively, channel, range(5))
    # Playwright does not know that pages come back; the browser itself does.
    devtools = await page.context.new_cdp_session(page)
    entries = (await devtools.send("Page.getNavigationHistory"))["entries"]
    await devtools.send("Page.navigateToHistoryEntry", {"entryId": entries[-2]["id"]})

    async def seen() -> Any:
        found = await devtools.send("Runtime.evaluate", {"expression": "JSON.stringify([heard, gaps, states])"})
        return json.loads(found["result"].get("value", "[[]]"))

    async with asyncio.timeout(15):
        while len((await seen())[0]) < 5:
            await asyncio.sleep(0.05)
    heard, gaps, states = await seen()
    assert (heard, gaps) == (list(range(5)), 0)
    assert states[-5:] == ["waiting", "pagehide", "pageshow", "connecting", "open"]


async def test_workers_may_die_under_a_reader_and_a_writer(lively: Service, arrive: Arrive, channel: str) -> None:
    reader, writer = await join(arrive, lively, channel), await join(arrive, lively, channel)
    speaking = asyncio.create_task(writer.evaluate(SPEAK, 200))
    for pid in await asyncio.to_thread(lively.worker_pids):  # one after the other: both are cut, once or twice
        for page in (reader, writer):
            await is_in_state(page, "open")
        os.kill(pid, signal.SIGKILL)
    await speaking
    await until(writer, "() => acks.length === 200")
    for page in (reader, writer):
        await until(page, "() => heard.length >= 200")
        heard, ids, gaps = await page.evaluate("[heard, ids, gaps]")
        assert (sorted(heard), len(set(ids)), gaps) == (list(range(200)), 200, 0)
        assert "waiting" in await page.evaluate("states")
        assert ids == sorted(ids, key=lambda one: int(one.rpartition("-")[2]))
    assert set(await writer.evaluate("acks")) == set(await reader.evaluate("ids"))


async def test_readme_runs_in_a_page_as_it_stands(lively: Service, arrive: Arrive, channel: str) -> None:
    """All its blocks for pages, one after the other as one module."""
    readme = (CLIENT / "README.md").read_text("utf-8")
    blocks = [
        found for found in re.findall(r"^```js\n(.*?)^```", readme, re.MULTILINE | re.DOTALL) if '"ws"' not in found
    ]
    assert len(blocks) == 4
    module = "\n".join([*blocks, "window.done = id;"]).replace("room:4", f"{channel}:4")
    visitor = await arrive()
    page = visitor.page
    await page.goto(f"{lively.url}/livez")
    await page.evaluate(
        "Object.assign(window, { shown: [], show: (text) => shown.push(text), reload: () => shown.push('!') })"
    )
    await page.route("**/token", lambda route: route.fulfill(body="a.b.c"))
    await page.add_script_tag(content=module, type="module")
    await until(page, "() => window.done")
    await until(page, "() => shown.length === 2")
    assert await page.evaluate("shown") == ["hi", None]  # the order has no text
    log = await asyncio.to_thread(lively.get, f"/api/v1/channels/{channel}:42/messages")
    assert await page.evaluate("[localStorage.last, done]") == [log.json()["position"], log.json()["messages"][0]["id"]]
    assert visitor.complaints == []


async def test_the_first_page_of_the_project_shows_what_runs(lively: Service, arrive: Arrive, channel: str) -> None:
    readme = (CLIENT.parents[1] / "README.md").read_text("utf-8")
    (block,) = [
        found for found in re.findall(r"^```js\n(.*?)^```", readme, re.MULTILINE | re.DOTALL) if "import" in found
    ]
    visitor = await arrive()
    page = visitor.page
    await page.goto(f"{lively.url}/livez")
    async with page.expect_console_message(lambda line: "{text: hi}" in line.text):
        await page.add_script_tag(content=block.replace("room:4", f"{channel}:4"), type="module")
    assert visitor.complaints == []
