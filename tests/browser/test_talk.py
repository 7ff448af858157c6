"""Talk, the first tab of the console, in a real browser against a real service."""

from __future__ import annotations

import asyncio
import base64
import re
from typing import Any

import httpx
import pytest
from playwright.async_api import WebSocketRoute, expect

from tests.browser.conftest import Arrive
from tests.stage.service import NO_TLS, Service

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def ask(service: Service, method: str, path: str, body: object = None) -> Any:
    """The answer of REST; None where it has no body."""
    url = f"{service.url}/api/v1/{path}"
    answer = await asyncio.to_thread(httpx.request, method, url, json=body, timeout=10, verify=NO_TLS)
    answer.raise_for_status()
    return answer.json() if answer.content else None


async def publish(service: Service, channel: str, **body: object) -> None:
    await ask(service, "POST", f"channels/{channel}/messages", body)


async def read(service: Service, channel: str) -> list[Any]:
    """The data of all messages in the log."""
    page = await ask(service, "GET", f"channels/{channel}/messages")
    return [message["data"] for message in page["messages"]]


async def test_two_browsers_talk_and_see_each_other(service: Service, arrive: Arrive, channel: str) -> None:
    ada, bob = await arrive(), await arrive()
    await ada.visit(service.url, channel, name="Ada")
    await bob.visit(service.url, channel, name="Bob")
    said: list[str] = []
    for visitor in (ada, bob, ada):
        said.append(f"{len(said) + 1}: hear, hear \N{BELL}")
        await visitor.say(channel, said[-1])
        for listener in (ada, bob):
            await listener.has_texts(channel, said)
    who = ["Ada", "Bob", "Ada"]
    await expect(ada.room(channel).locator(".who")).to_have_text(
        [f"{name}{' (you)' * (name == 'Ada')}" for name in who]
    )
    await expect(bob.room(channel).locator("li.own")).to_have_count(1)
    await expect(ada.page.locator(".people")).to_contain_text("Bob")
    await expect(ada.page.locator(".people .self")).to_have_text("Ada (you)")

    await bob.page.get_by_label("Your name").fill("Robert")
    await bob.page.get_by_role("button", name="Set").click()
    await expect(ada.page.locator(".people")).to_contain_text("Robert")
    await bob.say(channel, "call me Robert")
    await expect(ada.room(channel).locator(".who").last).to_have_text("Robert")
    await bob.has_counted(reconnects=0, recovered=0, duplicates=0)
    assert ada.complaints + bob.complaints == []


async def test_what_comes_from_others_stays_text(service: Service, arrive: Arrive, channel: str) -> None:
    ada = await arrive()
    answer = await ada.visit(service.url, channel)
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    markup = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    await ada.say(channel, markup)
    await ada.has_texts(channel, [markup])
    await publish(service, channel, data={"html": "<b>no</b>"})
    await publish(service, channel, base64=base64.b64encode(bytes(2048)).decode())
    await ada.has_texts(channel, [markup, '{ "html": "<b>no</b>" }', "binary, 2,048 bytes"])
    await expect(ada.room(channel).locator(".who").last).to_have_text("over HTTP")
    assert await ada.page.locator("img, .log script, .log b").count() == 0
    assert await ada.page.title() == f"{channel} · Tocsin"
    assert ada.complaints == []


async def test_text_of_several_lines_and_json_are_sent_as_they_are_meant(
    service: Service, arrive: Arrive, channel: str
) -> None:
    ada = await arrive()
    await ada.visit(service.url, channel)
    box = ada.room(channel).get_by_role("textbox")
    await box.fill("one")
    await box.press("Shift+Enter")
    await box.press_sequentially("two")
    await box.press("Enter")
    await expect(ada.texts(channel)).to_have_text("one\ntwo", use_inner_text=True)
    await expect(box).to_have_value("")

    await ada.room(channel).get_by_label("JSON").check()
    await ada.say(channel, '{"temperature": ')
    await expect(ada.room(channel).locator(".outbox")).to_contain_text("This is not JSON")
    await expect(box).to_have_value('{"temperature": ')
    await ada.say(channel, '{"temperature": 21.5}')
    await expect(ada.texts(channel).last).to_have_text('{ "temperature": 21.5 }')
    assert await read(service, channel) == ["one\ntwo", {"temperature": 21.5}]


async def test_several_channels_are_joined_and_the_address_says_which_is_open(
    service: Service, arrive: Arrive, channel: str
) -> None:
    await publish(service, f"{channel}.b", data="said before")
    ada = await arrive()
    await ada.visit(service.url, channel)
    field = ada.page.get_by_label("Channel to join")
    await field.fill("not allowed!")
    await field.press("Enter")
    await expect(ada.page.get_by_role("alert").filter(has_text="name has 1 to 128")).to_be_visible()
    await field.fill(f"{channel}.b")
    await field.press("Enter")
    await ada.has_texts(f"{channel}.b", ["said before"])  # history
    assert ada.page.url.endswith(f"#{channel}.b")
    await publish(service, channel, data="elsewhere")
    button = ada.page.locator(f"button[data-channel='{channel}']")
    await expect(button).to_have_text(f"{channel}1 new")

    await ada.page.go_back()
    await ada.has_texts(channel, ["elsewhere"])
    await expect(button).to_have_text(channel)
    await ada.page.reload()
    await expect(ada.page.locator("button[data-channel]")).to_have_text([channel, f"{channel}.b"])
    await ada.has_texts(channel, ["elsewhere"])
    await ada.room(channel).get_by_role("button", name="Leave").click()
    await expect(ada.page.locator("button[data-channel]")).to_have_text([f"{channel}.b"])
    await expect(ada.room(f"{channel}.b")).to_be_visible()
    await ada.page.get_by_label("Channel to join").fill(channel)
    await ada.page.get_by_label("Channel to join").press("Enter")
    await ada.has_texts(channel, ["elsewhere"])
    await ada.has_counted(recovered=0, gaps=0, duplicates=0)


async def test_dropped_connection_comes_back_and_replays_what_was_missed(
    service: Service, arrive: Arrive, channel: str
) -> None:
    ada = await arrive()
    await ada.page.add_init_script("Math.random = () => 3")  # a wait of 1.5 s: long enough to miss something
    await ada.visit(service.url, channel)
    await ada.say(channel, "one")
    await ada.has_texts(channel, ["one"])
    await ada.page.get_by_role("button", name="Drop connection").click()
    await ada.has_link("connecting")
    await expect(ada.link).to_contain_text("dropped by you")
    await publish(service, channel, data="two")
    await ada.say(channel, "three")
    await ada.has_link("connected")
    await expect(ada.texts(channel)).to_have_count(3)
    await ada.has_counted(reconnects=1, recovered=1, gaps=0, duplicates=0)
    await expect(ada.notes(channel)).to_contain_text("replayed, none missing")
    await expect(ada.room(channel).locator("li.replayed .text").first).to_have_text("two")
    assert await read(service, channel) == ["one", "two", "three"]

    await ada.page.get_by_role("button", name="Stay away 5 s").click()
    await expect(ada.link.get_by_role("status")).to_have_text("Staying away")
    await expect(ada.link).to_contain_text(re.compile(r"again in [34]\.\d s"))
    assert ada.complaints == []


async def test_gap_is_told(service: Service, arrive: Arrive, channel: str) -> None:
    ada = await arrive()
    await ada.visit(service.url, channel)
    await publish(service, channel, data="soon gone")
    await ada.has_texts(channel, ["soon gone"])
    await ask(service, "DELETE", f"channels/{channel}/messages")
    await expect(ada.notes(channel)).to_contain_text("Messages are missing here: the channel was cleared.")
    await ada.has_counted(gaps=1, duplicates=0)


@pytest.mark.parametrize(
    ("code", "state", "words"),
    [
        (1012, "connecting", "the server is restarting"),
        (1006, "connecting", "the connection was cut"),
        (4529, "connecting", "again in 2"),
        (4403, "closed", "Not connected"),
    ],
)
async def test_close_codes_are_told_in_words(
    service: Service, arrive: Arrive, channel: str, *, code: int, state: str, words: str
) -> None:
    ada = await arrive()
    between: list[WebSocketRoute] = []  # stands between the page and the service, and cuts

    def stand(route: WebSocketRoute) -> None:
        route.connect_to_server()
        between.append(route)

    await ada.page.route_web_socket(re.compile(r"/ws$"), stand)
    await ada.page.add_init_script("Math.random = () => 20")  # waits long enough to be seen on any machine
    await ada.visit(service.url, channel)
    await between[-1].close(code=code)
    await ada.has_link(state)
    await expect(ada.link).to_contain_text(words)
    if state == "closed":
        await ada.page.get_by_role("button", name="Connect again").click()
        await ada.has_joined(channel)
        await ada.say(channel, "here again")
        await ada.has_texts(channel, ["here again"])


async def test_only_the_newest_messages_are_kept_and_the_reader_of_older_ones_is_left_in_peace(
    service: Service, arrive: Arrive, channel: str
) -> None:
    ada = await arrive()
    await ada.visit(service.url, channel)
    await expect(ada.room(channel).locator(".older")).to_be_hidden()
    many = [{"channel": channel, "data": f"message {number}"} for number in range(1, 521)]
    await ask(service, "POST", "messages", {"messages": many})
    await expect(ada.texts(channel).last).to_have_text("message 520", timeout=20_000)
    await expect(ada.texts(channel)).to_have_count(500)
    await expect(ada.texts(channel).first).to_have_text("message 21")
    await expect(ada.texts(channel).last).to_be_in_viewport()
    await expect(ada.room(channel).locator(".older")).to_be_visible()

    log = ada.room(channel).get_by_role("log")
    await log.evaluate("log => log.scrollTop = 0")
    await publish(service, channel, data="news")
    newest = ada.room(channel).get_by_role("button", name="1 new below")
    await expect(newest).to_be_visible()
    await expect(ada.texts(channel).last).not_to_be_in_viewport()
    await newest.click()
    await expect(ada.texts(channel).last).to_have_text("news")
    await expect(ada.texts(channel).last).to_be_in_viewport()
    await expect(newest).to_be_hidden()
