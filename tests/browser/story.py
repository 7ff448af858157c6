"""The story that the console tells: two browsers in a channel, the worker of one is killed, it resumes without a hole.

Told to the tests, which look at every word, and to `tests.browser.pictures`, which takes its pictures.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from playwright.async_api import expect

from tests.stage.browser import Visitor
from tests.stage.proxy import Proxy, proxied
from tests.stage.service import Service

CHANNEL = "room:42"
BEFORE = ["Morning, Bob!", "Hi Ada. Which worker are you on?", "Another one than you, look at the top."]
MEANWHILE = ["Somebody has just killed yours.", "You will read this later,", "and nothing will be missing."]
AFTER = "Back already, and not a word is missing."
SLOW = "Math.random = () => 4"
"""A wait of 2 s instead of up to 0.5: long enough for Ada's lines on any machine, and for an eye."""

Look = Callable[[int], Awaitable[None]]
"""Called where there is something to see, with how long one should look (ms)."""


async def look_away(_: int) -> None:
    """Nobody takes pictures."""


@dataclass(frozen=True, slots=True)
class Story:
    """Ada comes directly, Bob through a proxy, by which is known which process serves him."""

    service: Service
    proxy: Proxy
    ada: Visitor
    bob: Visitor
    look: Look = look_away

    async def tell(self) -> None:
        """All of it; each step waits until both pages show it."""
        await self.ada.visit(self.service.url, CHANNEL, name="Ada")
        await self.bob.page.add_init_script(SLOW)
        await self.bob.visit(f"http://127.0.0.1:{self.proxy.port}", CHANNEL, name="Bob")
        await self.part()
        await expect(self.ada.page.locator(".people")).to_contain_text("Bob")
        await self.look(3000)
        said: list[str] = []
        for speaker, line in zip((self.ada, self.bob, self.ada), BEFORE, strict=True):
            await self.say(speaker, line, said, 900)

        os.kill(self.serving(), signal.SIGKILL)
        await self.bob.has_link("connecting")
        await self.look(900)
        missed = list(said)
        for line in MEANWHILE:
            await self.ada.say(CHANNEL, line)
            missed.append(line)
            await self.ada.has_texts(CHANNEL, missed)
            await self.look(500)
        await self.bob.has_texts(CHANNEL, said)  # he is away still

        await self.bob.has_texts(CHANNEL, missed)
        await self.look(1500)
        await self.say(self.bob, AFTER, missed, 3000)

    async def say(self, speaker: Visitor, line: str, said: list[str], ms: int) -> None:
        await speaker.say(CHANNEL, line)
        said.append(line)
        for listener in (self.ada, self.bob):
            await listener.has_texts(CHANNEL, said)
        await self.look(ms)

    async def part(self) -> None:
        """The kernel chooses the worker: Ada moves until they are on two. Then all begins anew, with nothing counted."""
        for _ in range(40):
            if await self.ada.worker() != await self.bob.worker():
                break
            await self.ada.page.reload()
            await self.ada.has_joined(CHANNEL)
        assert await self.ada.worker() != await self.bob.worker()

    def serving(self) -> int:
        """The process at the other end of Bob's socket."""
        (pipe,) = [pipe for pipe in self.proxy.pipes if pipe.upgraded]
        found = self.service.pid_serving(pipe.far.get_extra_info("sockname")[1])
        assert found is not None
        return found


@contextlib.asynccontextmanager
async def staged(service: Service, ada: Visitor, bob: Visitor, look: Look = look_away) -> AsyncIterator[Story]:
    """The story on a service with several workers, which may be killed."""
    async with proxied(service.port) as proxy:
        yield Story(service, proxy, ada, bob, look)
