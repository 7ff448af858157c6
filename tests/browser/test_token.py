"""A page lets its user in with a token, in a real browser, by nothing but `new WebSocket(url, [format, bearer])`."""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from playwright.async_api import Page

from tests.browser.conftest import Arrive
from tests.stage.redis import RedisServer
from tests.stage.service import NO_TLS, Service

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = secrets.token_hex(32)
ADMIN = {"x-api-key": secrets.token_hex(16)}
CONNECT = """([url, token]) => {
  const told = window.told = { opened: false, protocol: null, heard: [], code: null };
  const socket = window.socket = new WebSocket(url, ["tocsin.plain", "tocsin.bearer." + token]);
  socket.onopen = () => { told.opened = true; told.protocol = socket.protocol; };
  socket.onmessage = ({ data }) => told.heard.push(data);
  socket.onclose = ({ code }) => { told.code = code; };
}"""


@pytest.fixture(scope="module")
def guarded(redis_server: RedisServer) -> Iterator[Service]:
    keys = json.dumps({"ops": {"key": ADMIN["x-api-key"], "admin": True}})
    with Service(redis_server.url, workers=3, redis_prefix="token-page", jwt_secret=SECRET, api_keys=keys) as running:
        yield running


def minted(user: str) -> str:
    """A token as an operator makes it."""
    command = [sys.executable, "-m", "app.cli", "token", user, "--subscribe", "room:*", "--publish", "room:*"]
    done = subprocess.run(
        command,
        env={"TOCSIN_JWT_SECRET": SECRET},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


async def told(page: Page, what: str) -> dict[str, Any]:
    """What the page has been told, once that is among it."""
    async with asyncio.timeout(10):
        while not (found := await page.evaluate("window.told"))[what]:
            await asyncio.sleep(0.02)
    return dict(found)


async def test_a_minted_token_lets_a_page_in(guarded: Service, arrive: Arrive) -> None:
    visitor = await arrive()
    await visitor.page.goto(guarded.url)
    await visitor.page.evaluate(CONNECT, [guarded.ws("room:1"), minted("ada")])
    await told(visitor.page, "opened")
    await visitor.page.evaluate("socket.send('from a page')")
    found = await told(visitor.page, "heard")
    assert (found["protocol"], found["heard"], found["code"]) == ("tocsin.plain", ["from a page"], None)


async def test_an_expired_token_does_not(guarded: Service, arrive: Arrive) -> None:
    visitor = await arrive()
    await visitor.page.goto(guarded.url)
    allows = {"subscribe": ["*"]}
    expired = jwt.encode({"sub": "ada", "exp": time.time() - 60, "tocsin": allows}, SECRET, "HS256")
    await visitor.page.evaluate(CONNECT, [guarded.ws("room:1"), expired])
    found = await told(visitor.page, "code")
    assert (found["opened"], found["code"]) == (False, 1006)
    why = await visitor.page.evaluate(
        """async ([token]) => {
          const headers = { authorization: `Bearer ${token}` };
          const answer = await fetch("/api/v1/connect?channel=room:1", { headers });
          return [answer.status, (await answer.json()).error.message];
        }""",
        [expired],
    )
    assert why == [401, "this token has expired: get a new one"]


async def test_a_revoked_user_is_out_of_every_page_within_a_second_while_one_watches(
    guarded: Service, arrive: Arrive
) -> None:
    token = minted("mallory")
    visitors = [await arrive() for _ in range(4)]
    for visitor in visitors:
        await visitor.page.goto(guarded.url)
        await visitor.page.evaluate(CONNECT, [guarded.ws("room:1"), token])
        await told(visitor.page, "opened")
    url = f"{guarded.url}/api/v1/users/mallory/disconnect"
    began = time.monotonic()
    answer = await asyncio.to_thread(httpx.post, url, json={"refuse_seconds": 60}, headers=ADMIN, verify=NO_TLS)
    assert answer.status_code == 202
    codes = [(await told(visitor.page, "code"))["code"] for visitor in visitors]
    assert codes == [4403] * 4
    assert time.monotonic() - began < 1.5  # the browser's own time included
    await visitors[0].page.evaluate(CONNECT, [guarded.ws("room:1"), token])
    assert (await told(visitors[0].page, "code"))["opened"] is False
