"""The whole story in two browsers, and what the page says when more than a worker is lost."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest
from playwright.async_api import expect

from tests.browser.conftest import Arrive
from tests.browser.story import CHANNEL, MEANWHILE, Story
from tests.stage.proxy import proxied
from tests.stage.redis import RedisServer
from tests.stage.service import Service

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def store() -> Iterator[RedisServer]:
    """A Redis that may be killed."""
    with RedisServer(appendonly="yes") as server:
        yield server


@pytest.fixture(scope="module")
def mortal(store: RedisServer) -> Iterator[Service]:
    """A service that may be killed, and its workers too."""
    with Service(store.url, workers=2) as running:
        yield running


async def test_a_page_whose_worker_is_killed_resumes_without_a_hole(mortal: Service, arrive: Arrive) -> None:
    ada, bob = await arrive(), await arrive()
    async with proxied(mortal.port) as proxy:
        await Story(mortal, proxy, ada, bob).tell()
        await bob.has_counted(reconnects=1, recovered=1, replayed=len(MEANWHILE), gaps=0, duplicates=0)
        await ada.has_counted(reconnects=0, recovered=0, replayed=0, gaps=0, duplicates=0)
        await expect(bob.notes(CHANNEL)).to_contain_text(f"{len(MEANWHILE)} messages replayed, none missing")
        await expect(bob.room(CHANNEL).locator("li.replayed .text")).to_have_text(MEANWHILE)
        assert ada.complaints == []


async def test_page_lives_through_the_loss_of_redis_and_of_the_service(
    store: RedisServer, mortal: Service, arrive: Arrive, channel: str
) -> None:
    ada = await arrive()
    await ada.page.add_init_script("Math.random = () => 0.05")  # short waits, however long the servers take
    await ada.visit(mortal.url, channel)
    watch = await ada.context.new_page()
    await watch.goto(f"{mortal.url}/#/watch")
    health = watch.locator(".store")
    await expect(health).to_contain_text("Ready")

    store.kill()
    await expect(health).to_have_text("Not ready", timeout=10_000)
    await expect(watch.locator(".reasons li").first).to_be_visible()
    await ada.say(channel, "is anyone there?")
    await expect(ada.room(channel).locator(".outbox")).to_have_text("1 message under way")
    await asyncio.to_thread(store.start)
    await ada.has_texts(channel, ["is anyone there?"])
    await expect(health).to_contain_text("Ready", timeout=10_000)

    assert mortal.process is not None
    os.killpg(mortal.process.pid, signal.SIGKILL)
    mortal.process.wait()
    await ada.has_link("connecting")
    await expect(health).to_have_text("The service cannot be reached", timeout=10_000)
    await expect(watch.locator("#watch")).to_have_class("watch stale")
    await ada.say(channel, "kept meanwhile")
    await expect(ada.room(channel).locator(".outbox")).to_have_text("1 message kept until the connection is back")
    await asyncio.to_thread(mortal.start)
    await ada.has_texts(channel, ["is anyone there?", "kept meanwhile"])
    await ada.has_counted(gaps=0, duplicates=0)
    await expect(health).to_contain_text("Ready", timeout=10_000)
