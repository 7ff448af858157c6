"""The story that the console tells: two browsers in a channel, the worker of one is killed, it resumes without a hole.

Told to the tests, which look at every word, and to `tests.browser.pictures`, which takes its pictures.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from playwright.async_api import expect

from tests.stage.browser import Visitor
from tests.stage.proxy import Proxy
from tests.stage.service import Service

CHANNEL = "room:42"
BEFORE = ["Morning, Bob!", "Hi Ada. Which worker are you on?", "Another one than you, look at the top."]
MEANWHILE = ["Somebody has just killed yours.", "You will read this later,", "and nothing will be missing."]
AFTER = "Back already, and not a word is missing."

Look = Callable[[str, int], Awaitable[None]]
"""Called where there is something to see, with what it is and how long one should look (ms)."""


async def look_away(_caption: str, _ms: int) -> None:
    """Nobody takes pictures."""


@dataclass(frozen=True, slots=True)
class Story:
    """Ada comes directly, Bob through a proxy, by which is known which process serves him.

    Attributes:
        wait: Bob's first wait in halves of a second, where it is otherwise a random part of one: long enough for Ada's
            lines on any machine.
    """

    service: Service
    proxy: Proxy
    ada: Visitor
    bob: Visitor
    look: Look = look_away
    wait: int = 4

    async def tell(self) -> None:
        """All of it; each step waits until both pages show it."""
        await self.ada.visit(self.service.url, CHANNEL, name="Ada")
        await self.bob.page.add_init_script(f"Math.random = () => {self.wait}")
        await self.bob.visit(f"http://127.0.0.1:{self.proxy.port}", CHANNEL, name="Bob")
        await self.part()
        await expect(self.ada.page.locator(".people")).to_contain_text("Bob")
        await self.look("Ada and Bob are in one channel, on two workers.", 1500)
        said: list[str] = []
        for speaker, line in zip((self.ada, self.bob, self.ada), BEFORE, strict=True):
            await self.say(speaker, line, said)
            await self.look("What one says, both have, in one order.", 900)

        os.kill(self.serving(), signal.SIGKILL)
        await self.bob.has_link("connecting")
        await self.look("kill -9: Bob's worker is gone, and his connection with it.", 1500)
        missed = list(said)
        for line in MEANWHILE:
            await self.ada.say(CHANNEL, line)
            missed.append(line)
            await self.ada.has_texts(CHANNEL, missed)
            await self.look("Ada goes on. Bob is away.", 700)
        await self.bob.has_texts(CHANNEL, said)  # he is away still

        await self.bob.has_texts(CHANNEL, missed)
        await self.look("Bob is back by himself: what he missed is replayed, in order, once.", 2500)
        await self.say(self.bob, AFTER, missed)
        await self.look("No hole, no duplicate.", 3000)

    async def say(self, speaker: Visitor, line: str, said: list[str]) -> None:
        await speaker.say(CHANNEL, line)
        said.append(line)
        for listener in (self.ada, self.bob):
            await listener.has_texts(CHANNEL, said)

    async def part(self) -> None:
        """The kernel chooses the worker: Ada comes anew until they are on two."""
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
