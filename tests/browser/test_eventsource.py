"""`EventSource` alone, in a real browser: it resumes by itself, without a hole or a duplicate."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.async_api import Page

from tests.browser.conftest import Arrive
from tests.stage.redis import RedisServer
from tests.stage.service import NO_TLS, Service

pytestmark = pytest.mark.asyncio(loop_scope="module")

LISTEN = """(url) => {
  const told = window.told = { opens: 0, heard: [], others: [] };
  const source = new EventSource(url);
  source.onopen = () => { told.opens += 1; };
  source.onmessage = ({ data, lastEventId }) => {
    const message = JSON.parse(data);
    told.heard.push([message.channel, message.data]);
    told.last = lastEventId;
  };
  for (const kind of ["gap", "reconnect"]) source.addEventListener(kind, ({ data }) => told.others.push([kind, data]));
}"""


@pytest.fixture(scope="module")
def mortal(redis_server: RedisServer) -> Iterator[Service]:
    with Service(redis_server.url, workers=3, redis_prefix="eventsource") as running:
        yield running


async def told(page: Page, count: int) -> dict[str, Any]:
    """What the page has been told, once it has heard so many messages."""
    async with asyncio.timeout(20):
        while len((found := await page.evaluate("window.told"))["heard"]) < count:
            await asyncio.sleep(0.05)
    return dict(found)


async def test_it_resumes_by_itself_after_its_worker_was_killed(mortal: Service, arrive: Arrive, channel: str) -> None:
    names = channel, f"{channel}:b"
    visitor = await arrive()
    await visitor.page.goto(mortal.url)
    await visitor.page.evaluate(LISTEN, f"{mortal.url}/sse?channel={names[0]}&channel={names[1]}")
    await visitor.page.wait_for_function("window.told.opens === 1")
    published: list[list[Any]] = []

    async def publish(http: httpx.AsyncClient, count: int) -> None:
        for _ in range(count):
            number = len(published)
            name = names[number % 3 % 2]
            body = {"data": number, "key": f"number-{number:012}"}
            answer = None
            while answer is None or answer.status_code not in {200, 201}:
                try:
                    answer = await http.post(f"{mortal.url}/api/v1/channels/{name}/messages", json=body)
                except httpx.HTTPError:
                    await asyncio.sleep(0.05)
            published.append([name, number])

    here = mortal.pids_connected()
    async with httpx.AsyncClient(verify=NO_TLS, timeout=5) as http:
        await publish(http, 10)
        for pid in here:
            os.kill(pid, signal.SIGKILL)
        await publish(http, 10)
    found = await told(visitor.page, len(published))
    for name in names:
        assert [item for item in found["heard"] if item[0] == name] == [item for item in published if item[0] == name]
    assert found["opens"] == 2
    assert found["others"] == []
    assert found["last"].count("=") == 2
