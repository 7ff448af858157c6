"""A page lets its user in with a token, in a real browser: by nothing but `new WebSocket(url, [format, bearer])`, and
the console, which asks for one.
"""

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
from playwright.async_api import Page, expect

from tests.browser.conftest import Arrive
from tests.stage.redis import RedisServer
from tests.stage.service import NO_TLS, Service

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = secrets.token_hex(32)
ADMIN = {"x-api-key": secrets.token_hex(16)}
METRICS = secrets.token_hex(16)
CONNECT = """([url, token]) => {
  const told = window.told = { opened: false, protocol: null, heard: [], code: null };
  const socket = window.socket = new WebSocket(url, ["tocsin.plain", "tocsin.bearer." + token]);
  socket.onopen = () => { told.opened = true; told.protocol = socket.protocol; };
  socket.onmessage = ({ data }) => told.heard.push(data);
  socket.onclose = ({ code }) => { told.code = code; };
}"""


@pytest.fixture(scope="module")
def guarded(redis_server: RedisServer) -> Iterator[Service]:
    settings = {
        "jwt_secret": SECRET,
        "api_keys": json.dumps({"ops": {"key": ADMIN["x-api-key"], "admin": True}}),
        "metrics_token": METRICS,
    }
    with Service(redis_server.url, workers=3, redis_prefix="token-page", settings=settings) as running:
        yield running


def minted(user: str, *more: str) -> str:
    """A token as an operator makes it."""
    command = [sys.executable, "-m", "app.cli", "token", user, "--subscribe", "room:*", "--publish", "room:*", *more]
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


async def test_console_asks_for_a_token_keeps_it_and_forgets_it(guarded: Service, arrive: Arrive) -> None:
    ada = await arrive()
    await ada.page.goto(f"{guarded.url}/#room:4")
    field = ada.page.get_by_label("Token", exact=True)
    await expect(field).to_be_focused()
    await field.fill("nonsense")
    await ada.page.get_by_role("button", name="Connect").click()
    headers = {"authorization": "Bearer nonsense"}
    answer = await asyncio.to_thread(guarded.get, "/api/v1/connect?protocols=tocsin.v1", headers=headers)
    sentence = answer.json()["error"]["message"]
    await expect(ada.page.locator("#gate .said")).to_have_text(f"Refused: {sentence}")

    token = minted("ada", "--history", "room:*", "--presence", "room:*")
    await field.fill(f"{token[:40]}\n{token[40:]}")  # as a terminal breaks it
    await ada.page.get_by_role("button", name="Connect").click()
    await ada.has_joined("room:4")
    await expect(field).to_be_hidden()
    await ada.say("room:4", "let in")
    await ada.has_texts("room:4", ["let in"])
    await expect(ada.page.locator(".people .self")).to_have_text("ada (you)")
    assert token not in await ada.page.content()
    assert token not in ada.page.url

    await ada.page.reload()
    await ada.has_texts("room:4", ["let in"])
    await ada.page.get_by_role("button", name="Forget the token").click()
    await expect(field).to_be_visible()
    assert await ada.page.evaluate("sessionStorage['tocsin.token']") is None


async def test_console_says_what_a_token_does_not_allow(guarded: Service, arrive: Arrive) -> None:
    bob = await arrive()
    await bob.page.add_init_script(f"sessionStorage['tocsin.token'] = '{minted('bob')}'")
    await bob.visit(guarded.url, "room:2")
    await expect(bob.page.locator(".people")).to_have_text("Who is here may not be seen with this token.")
    await bob.page.get_by_label("Channel to join").fill("elsewhere")
    await bob.page.get_by_role("button", name="Join").click()
    await expect(bob.room("elsewhere").locator(".state")).to_have_text("Refused: you may not subscribe in this channel")

    await bob.page.get_by_role("tab", name="Watch").click()
    note = bob.page.locator("#watch .note")
    await expect(note).to_contain_text("No latency: you may not subscribe in this channel.")
    await expect(note).to_contain_text("No metrics: metrics need the token of TOCSIN_METRICS_TOKEN.")
    field = bob.page.get_by_label("Metrics token")
    await field.fill("wrong")
    await field.press("Enter")
    await expect(bob.page.locator(".metrics-token .said")).to_contain_text("Refused: ")
    await field.fill(METRICS)
    await field.press("Enter")
    await expect(bob.page.locator("tbody tr")).to_have_count(3)
    await expect(field).to_be_hidden()

    await bob.page.get_by_role("tab", name="Try").click()
    await expect(bob.page.locator(".snippets")).to_contain_text('-H "Authorization: Bearer $TOKEN"')


async def test_console_says_that_its_user_is_out_and_asks_for_another_token(guarded: Service, arrive: Arrive) -> None:
    eve = await arrive()
    await eve.page.add_init_script(f"sessionStorage['tocsin.token'] = '{minted('eve')}'")
    await eve.visit(guarded.url, "room:3")
    url = f"{guarded.url}/api/v1/users/eve/disconnect"
    await asyncio.to_thread(httpx.post, url, json={"refuse_seconds": 60}, headers=ADMIN, verify=NO_TLS)
    await eve.has_link("closed")
    await expect(eve.page.locator("#trouble")).to_contain_text("Not connected: ")

    claims = {"sub": "eve", "exp": time.time() - 60, "tocsin": {"subscribe": ["*"]}}
    expired = jwt.encode(claims, SECRET, "HS256")
    await eve.page.evaluate("token => { sessionStorage['tocsin.token'] = token; }", expired)
    await eve.page.get_by_role("button", name="Connect again").click()
    await expect(eve.page.locator("#gate .said")).to_have_text("Refused: this token has expired: get a new one")
    await eve.page.get_by_label("Token", exact=True).fill(minted("oda"))
    await eve.page.get_by_role("button", name="Connect", exact=True).click()
    await eve.has_joined("room:3")
