"""Takes the pictures of docs/pictures, of a real service in a real browser: `python -m tests.browser.pictures`.

The story of `tests.browser.story` becomes the animation, and its end the picture of Talk.
"""

from __future__ import annotations

import asyncio
import io
import math
from pathlib import Path

import httpx
from PIL import Image, ImageDraw, ImageFont  # of the tools of development alone
from playwright.async_api import Browser, Page

from tests.browser.story import CHANNEL, Story
from tests.stage.browser import Visitor, open_browser
from tests.stage.proxy import proxied
from tests.stage.redis import RedisServer
from tests.stage.service import NO_TLS, Service

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
WINDOW = (704, 600)  # CSS pixels of each of the two
MARGIN, STRIP = 16, 44  # around the windows, and for the words above them
WIDTH = 1120  # pixels of the animation
COLORS = 96  # of a still picture: small files, and no difference to the eye on pages like these
GROUND, INK = "#e4e4e0", "#1a1c1e"
LISTENERS = 40  # sockets while Watch is looked at
SECONDS = 45  # so long


async def shot(page: Page) -> Image.Image:
    return Image.open(io.BytesIO(await page.screenshot(animations="disabled", caret="hide"))).convert("RGB")


class Film:
    """The two windows beside each other with a line of words above, frame by frame."""

    def __init__(self, left: Visitor, right: Visitor) -> None:
        self.pages = (left.page, right.page)
        self.frames: list[Image.Image] = []
        self.times: list[int] = []
        self.font = ImageFont.load_default(22)

    async def look(self, caption: str, ms: int) -> None:
        """One frame, to be looked at for `ms`."""
        width, height = WINDOW
        frame = Image.new("RGB", (2 * width + 3 * MARGIN, height + STRIP + 2 * MARGIN), GROUND)
        for at, page in enumerate(self.pages):
            frame.paste(await shot(page), (MARGIN + at * (width + MARGIN), STRIP + MARGIN))
        ImageDraw.Draw(frame).text((MARGIN, MARGIN), caption, INK, self.font)
        self.frames.append(frame.resize((WIDTH, frame.height * WIDTH // frame.width), Image.Resampling.LANCZOS))
        self.times.append(ms)

    def save(self, path: Path) -> None:
        first, *rest = self.frames
        first.save(path, save_all=True, append_images=rest, duration=self.times, loop=0, quality=72, method=6)


async def save_both(page: Page, name: str) -> None:
    """A page as it is, light and dark."""
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme)
        await page.wait_for_timeout(200)
        picture = (await shot(page)).quantize(COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        picture.save(FOLDER / f"{name}-{scheme}.png", optimize=True)


async def take_talk(browser: Browser, service: Service) -> None:
    ada, bob = [await Visitor.arrive(browser, width=WINDOW[0], height=WINDOW[1]) for _ in range(2)]
    film = Film(ada, bob)

    async def look(caption: str, ms: int) -> None:
        if not film.frames:
            await ada.page.wait_for_timeout(3000)  # until it is told that earlier connections have left
        await film.look(caption, ms)

    async with proxied(service.port) as proxy:
        await Story(service, proxy, ada, bob, look, wait=12).tell()
        film.save(FOLDER / "resume.webp")
        await bob.page.get_by_label("Channel to join").fill("alerts")
        await bob.page.get_by_role("button", name="Join").click()
        await bob.has_joined("alerts")
        await bob.page.go_back()
        await bob.page.set_viewport_size({"width": 1280, "height": 720})
        await bob.page.wait_for_timeout(3000)  # likewise
        await save_both(bob.page, "talk")


async def take_watch(browser: Browser, service: Service) -> None:
    visitor = await Visitor.arrive(browser, width=1280, height=860)
    await visitor.page.goto(f"{service.url}/#/watch")
    loop = asyncio.get_running_loop()
    ends = loop.time() + SECONDS
    async with asyncio.TaskGroup() as group, httpx.AsyncClient(verify=NO_TLS) as client:

        async def listen() -> None:
            async with service.connect(CHANNEL) as socket, asyncio.timeout_at(ends + 5):
                async for _ in socket:
                    pass

        listeners = [group.create_task(listen()) for _ in range(LISTENERS)]
        while (left := ends - loop.time()) > 0:  # by no law but that there is something to see
            count = round(12 + 8 * math.sin(left / 4) + 3 * math.sin(left))
            messages = [{"channel": CHANNEL, "data": number} for number in range(count)]
            await client.post(f"{service.url}/api/v1/messages", json={"messages": messages})
            await asyncio.sleep(0.5)
        await save_both(visitor.page, "watch")
        for listener in listeners:
            listener.cancel()


async def take() -> None:
    FOLDER.mkdir(exist_ok=True)
    with RedisServer() as redis_server, Service(redis_server.url, workers=4, node="web1") as service:
        async with open_browser() as browser:
            await take_talk(browser, service)
            await take_watch(browser, service)
    for path in sorted(FOLDER.iterdir()):
        print(f"{path.relative_to(FOLDER.parents[1])}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    asyncio.run(take())
