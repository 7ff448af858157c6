"""The page at `/` keeps its promises in a real browser, against a real service."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.async_api import WebSocketRoute, expect

import app.edge
from tests.browser.conftest import Arrive
from tests.stage.redis import RedisServer
from tests.stage.service import Service

pytestmark = pytest.mark.asyncio(loop_scope="module")

SEND_BYTES = """([channel, size]) => new Promise((done) => {
  const socket = new WebSocket(`ws://${location.host}/ws?channel=${channel}`);
  socket.onopen = () => socket.send(new Uint8Array(size));
  socket.onmessage = () => socket.close();
  socket.onclose = done;
})"""
SEND_MANY = """([channel, count]) => new Promise((done) => {
  const socket = new WebSocket(`ws://${location.host}/ws?channel=${channel}`);
  let heard = 0;
  socket.onopen = () => { for (let n = 1; n <= count; n++) socket.send(`message ${n}`); };
  socket.onmessage = () => { if (++heard === count) socket.close(); };
  socket.onclose = done;
})"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


async def serving(service: Service) -> int:
    """How many workers hold sockets, by their snapshots (a second old at most)."""
    await asyncio.sleep(1.1)
    connections = await asyncio.to_thread(service.metric, "connections")
    return sum(1 for number in connections.values() if number)


async def test_page_weighs_little() -> None:
    folder = Path(app.edge.__file__).parent / "page"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 25_000


async def test_two_browsers_talk_through_four_workers(service: Service, arrive: Arrive, channel: str) -> None:
    ada, bob = await arrive(), await arrive()
    await ada.visit(service.url, channel)
    await bob.visit(service.url, channel)
    for _ in range(30):  # the kernel chooses the worker: one pane moves until two workers have a part in it
        if await serving(service) > 1:
            break
        await bob.reconnect("B")
    assert await serving(service) > 1

    said: list[str] = []
    for visitor, pane in ((ada, "A"), (bob, "B"), (bob, "A"), (ada, "B"), (ada, "A")):
        said.append(f"{len(said) + 1}: hear, hear \N{BELL}")
        await visitor.say(pane, said[-1])
        for listener in (ada, bob):
            await listener.has_texts("A", said)
            await listener.has_texts("B", said)

    own = [ada.pane("A"), ada.pane("B"), bob.pane("A"), bob.pane("B")]
    assert [await pane.locator("li.own").count() for pane in own] == [2, 1, 1, 1]
    assert ada.complaints + bob.complaints == []


async def test_page_stays_within_its_content_security_policy(service: Service, arrive: Arrive, channel: str) -> None:
    ada = await arrive()
    answer = await ada.visit(service.url, channel)
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    await ada.say("A", "one")
    await ada.has_texts("B", ["one"])
    await expect(ada.page.locator(".bell")).to_have_css("mask-image", f'url("{service.url}/page/bell.svg")')
    assert ada.complaints == []


async def test_markup_stays_text(service: Service, arrive: Arrive, channel: str) -> None:
    ada = await arrive()
    await ada.visit(service.url, channel)
    markup = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    await ada.say("A", markup)
    await ada.has_texts("B", [markup])
    assert await ada.page.locator("img, .log script").count() == 0
    assert await ada.page.title() == f"{channel} · Tocsin"
    assert ada.complaints == []


async def test_shift_enter_makes_a_line(service: Service, arrive: Arrive, channel: str) -> None:
    ada = await arrive()
    await ada.visit(service.url, channel)
    box = ada.pane("A").get_by_role("textbox")
    await box.fill("one")
    await box.press("Shift+Enter")
    await box.press_sequentially("two")
    await box.press("Enter")
    await expect(ada.texts("B")).to_have_text("one\ntwo", use_inner_text=True)
    await expect(box).to_have_value("")


async def test_binary_is_shown_as_its_size(service: Service, arrive: Arrive, channel: str) -> None:
    ada = await arrive()
    await ada.visit(service.url, channel)
    await ada.page.evaluate(SEND_BYTES, [channel, 2048])
    await ada.has_texts("A", ["binary, 2,048 bytes"])


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
async def test_nothing_is_wider_than_the_window(
    service: Service, arrive: Arrive, channel: str, width: int, dark: bool
) -> None:
    ada = await arrive(width=width, dark=dark)
    await ada.visit(service.url, channel)
    await ada.say("A", "tocsin" * 200)
    await ada.has_texts("B", ["tocsin" * 200])
    assert await ada.page.evaluate(OVERFLOW) == 0
    logs = await ada.page.locator(".log").evaluate_all("logs => logs.map((log) => log.scrollWidth - log.clientWidth)")
    assert logs == [0, 0]
    paper = await ada.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(19, 18, 14)" if dark else "rgb(245, 241, 232)")


async def test_dropped_pane_comes_back_by_itself(service: Service, arrive: Arrive, channel: str) -> None:
    ada = await arrive()
    await ada.visit(service.url, channel)
    await ada.pane("B").get_by_role("button", name="Drop").click()
    await ada.has_state("B", "waiting")
    await expect(ada.pane("B").get_by_role("status")).to_have_text("Dropped by you.")
    await ada.has_state("A", "open")
    await ada.has_state("B", "open")
    await expect(ada.pane("B").locator(".note")).to_contain_text("Back after")
    await ada.say("A", "welcome back")
    await ada.has_texts("B", ["welcome back"])
    assert ada.complaints == []


async def test_refused_channel_shows_the_sentence_of_the_service(service: Service, arrive: Arrive) -> None:
    ada = await arrive()
    await ada.visit(service.url, "lobby")
    await ada.page.get_by_label("Channel").fill("not allowed!")
    await ada.page.get_by_role("button", name="Join").click()
    answer = await ada.page.request.get(f"{service.url}/api/v1/connect?channel={quote('not allowed!')}")
    assert answer.status == 400
    sentence: str = (await answer.json())["error"]["message"]
    for pane in ("A", "B"):
        await ada.has_state(pane, "stopped")
        await expect(ada.pane(pane).get_by_role("status")).to_have_text(f"Refused: {sentence}")
        await expect(ada.pane(pane).get_by_role("button", name="Send")).to_be_disabled()


async def test_channel_lives_in_the_address(service: Service, arrive: Arrive, channel: str) -> None:
    ada = await arrive()
    await ada.visit(service.url, channel)
    await ada.say("A", "in the first channel")
    await ada.has_texts("B", ["in the first channel"])

    field = ada.page.get_by_label("Channel")
    await field.fill(f"{channel}.b")
    await field.press("Enter")
    await expect(ada.pane("A").get_by_role("status")).to_contain_text(f"In {channel}.b since")
    await ada.has_texts("A", [])
    assert ada.page.url.endswith(f"#{channel}.b")

    await ada.page.go_back()
    await expect(field).to_have_value(channel)
    await expect(ada.pane("A").get_by_role("status")).to_contain_text(f"In {channel} since")


async def test_only_the_newest_messages_are_kept(service: Service, arrive: Arrive, channel: str) -> None:
    ada = await arrive()
    await ada.visit(service.url, channel)
    await expect(ada.pane("A").locator(".older")).to_be_hidden()
    await ada.page.evaluate(SEND_MANY, [channel, 520])
    await expect(ada.texts("A").last).to_have_text("message 520", timeout=20_000)
    await expect(ada.texts("A")).to_have_count(500)
    await expect(ada.texts("A").first).to_have_text("message 21")
    await expect(ada.pane("A").locator(".older")).to_be_visible()


async def test_reader_of_older_messages_is_left_in_peace(service: Service, arrive: Arrive, channel: str) -> None:
    ada = await arrive()
    await ada.visit(service.url, channel)
    await ada.page.evaluate(SEND_MANY, [channel, 60])
    await expect(ada.texts("B").last).to_have_text("message 60")
    await expect(ada.texts("B").last).to_be_in_viewport()

    log = ada.pane("B").get_by_role("log")
    await log.evaluate("log => log.scrollTop = 0")
    await ada.say("A", "news")
    newest = ada.pane("B").get_by_role("button", name="1 new below")
    await expect(newest).to_be_visible()
    assert await log.evaluate("log => log.scrollTop") == 0
    await newest.click()
    await expect(ada.texts("B").last).to_be_in_viewport()
    await expect(ada.texts("B").last).to_have_text("news")
    await expect(newest).to_be_hidden()


@pytest.mark.parametrize(
    ("code", "state", "words"),
    [
        (1001, "waiting", "The server is going away (1001)."),
        (1006, "waiting", "The connection was cut (1006)."),
        (1012, "waiting", "The server is restarting (1012)."),
        (1013, "waiting", "The server could not take the message for now (1013)."),
        (4529, "waiting", "Too much was sent, too fast (4529)."),
        (4999, "waiting", "The connection was closed (4999)."),
        (1000, "stopped", "The server has ended the connection (1000)."),
        (1009, "stopped", "The message was too big for this server (1009)."),
        (4403, "stopped", "Not allowed in this channel, or no longer (4403)."),
        (4499, "stopped", "The connection was closed (4499)."),
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

    await ada.page.route_web_socket("**/ws?**", stand)
    await ada.page.add_init_script("Math.random = () => 20")  # waits long enough to be seen on any machine
    await ada.visit(service.url, channel)
    for route in between[:2]:
        await route.close(code=code)
    for pane in ("A", "B"):
        await expect(ada.pane(pane).get_by_role("status")).to_have_text(words)
        await ada.has_state(pane, state)
    if code == 4529:
        await expect(ada.pane("A").locator(".countdown")).to_contain_text("Again in 2")
    await ada.pane("A").get_by_role("button", name="Connect").click()
    await ada.has_state("A", "open")


async def test_gap_reconnects_at_once(service: Service, arrive: Arrive, channel: str) -> None:
    ada = await arrive()
    between: list[WebSocketRoute] = []

    def stand(route: WebSocketRoute) -> None:
        route.connect_to_server()
        between.append(route)

    await ada.page.route_web_socket("**/ws?**", stand)
    await ada.page.add_init_script("Math.random = () => 20")  # any wait would be longer than this test's patience
    await ada.visit(service.url, channel)
    await between[0].close(code=4510)
    note = ada.page.locator(".note")
    await expect(note).to_contain_text("Back after")
    await ada.say("A", "whole again")
    await ada.has_texts("B", ["whole again"])


async def test_unanswered_message_is_reported(service: Service, arrive: Arrive, channel: str) -> None:
    ada = await arrive()
    between: list[WebSocketRoute] = []

    def swallow(route: WebSocketRoute) -> None:
        between.append(route)
        server = route.connect_to_server()
        route.on_message(lambda _: None)
        server.on_message(route.send)

    await ada.page.route_web_socket("**/ws?**", swallow)
    await ada.visit(service.url, channel)
    await ada.say("A", "into the void")
    await expect(ada.pane("A").get_by_role("textbox")).to_have_value("")
    await ada.pane("A").get_by_role("button", name="Drop").click()
    await expect(ada.pane("A").locator(".note").first).to_have_text(
        "1 message has not come back: whether the server took it is unknown."
    )
    await ada.has_texts("A", [])


async def test_ten_lines_work_as_copied(service: Service, arrive: Arrive, channel: str) -> None:
    ada = await arrive()
    await ada.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await ada.visit(service.url, channel)
    await ada.page.get_by_role("button", name="Copy").click()
    await expect(ada.page.get_by_text("Copied.")).to_be_visible()
    lines: str = await ada.page.evaluate("navigator.clipboard.readText()")
    assert len(lines.splitlines()) == 10

    page = await ada.context.new_page()
    await page.goto(f"{service.url}/livez")
    async with page.expect_console_message(lambda said: said.text == "Hello from ten lines"):
        console = await ada.context.new_cdp_session(page)  # what a developer's console does
        await console.send("Runtime.evaluate", {"expression": lines})
    await ada.has_texts("A", ["Hello from ten lines"])
    await ada.has_texts("B", ["Hello from ten lines"])
    assert ada.complaints == []


async def test_page_lives_through_the_loss_of_redis_and_of_the_server(arrive: Arrive, channel: str) -> None:
    ada = await arrive()
    await ada.page.add_init_script("Math.random = () => 0.05")  # short waits, however long the servers take
    with RedisServer(appendonly="yes") as redis_server, Service(redis_server.url) as service:
        await ada.visit(service.url, channel)

        redis_server.kill()
        await ada.say("A", "is anyone there?")
        status = ada.pane("A").get_by_role("status")
        await expect(ada.pane("A").locator(".note").first).to_contain_text(
            "1 message has not come back", timeout=10_000
        )
        await expect(status).to_contain_text("Refused: ", timeout=10_000)
        await ada.has_state("B", "open")  # it only listens
        await asyncio.to_thread(redis_server.start)
        await ada.has_state("A", "open")
        await ada.say("A", "the store is back")
        await expect(ada.texts("B").last).to_have_text("the store is back", timeout=10_000)

        assert service.process is not None
        service.process.kill()
        service.process.wait()
        await expect(status).to_contain_text("The server cannot be reached.", timeout=10_000)
        await asyncio.to_thread(service.start)
        for pane in ("A", "B"):
            await ada.has_state(pane, "open")
        await ada.say("B", "the server is back")
        await expect(ada.texts("A").last).to_have_text("the server is back", timeout=10_000)
