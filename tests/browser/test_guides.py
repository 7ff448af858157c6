"""The guides' pages do what the guides say, in a real browser."""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Page

from tests.browser.conftest import Arrive
from tests.integration.test_container import find_tool
from tests.integration.test_guides import GUIDES, SECRET, files, guarded, served
from tests.integration.test_readme import blocks, on_stage
from tests.stage.redis import RedisServer, free_port
from tests.stage.service import NO_TLS, Service, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Told:
    """What a page has said in its console."""

    def __init__(self, page: Page) -> None:
        self.lines: list[str] = []
        page.on("console", lambda said: self.lines.append(said.text))
        page.on("pageerror", lambda error: self.lines.append(f"error: {error}"))

    async def has(self, words: str) -> str:
        await asyncio.to_thread(until, lambda: any(words in line for line in self.lines), 15, words)
        return next(line for line in self.lines if words in line)


def snippets(name: str, service: Service) -> list[str]:
    return blocks(on_stage((GUIDES / name).read_text("utf-8"), service), "js")


@asynccontextmanager
async def page_with(arrive: Arrive, url: str, script: str) -> AsyncIterator[Told]:
    """A page of the service's origin with this as its module."""
    page = (await arrive()).page
    told = Told(page)
    await page.goto(url)
    await page.add_script_tag(type="module", content=script)
    yield told
    await page.close()


async def test_a_plain_socket_needs_nothing(service: Service, arrive: Arrive) -> None:
    plain, _ = snippets("browser.md", service)
    async with page_with(arrive, f"{service.url}/livez", plain) as first:
        await first.has("hello")
        async with page_with(arrive, f"{service.url}/livez", plain) as second:
            await second.has("hello")
            await asyncio.to_thread(until, lambda: first.lines.count("hello") == 2, 15)


async def test_the_client_publishes_and_goes_on_where_the_page_was(service: Service, arrive: Arrive) -> None:
    _, whole = snippets("browser.md", service)
    async with page_with(arrive, f"{service.url}/livez", whole) as told:
        published = (await told.has("published ")).split()[1]
        assert published in await told.has("{text: hi}")
        assert "open " in told.lines


async def test_one_origin_carries_page_token_and_socket(
    redis_server: RedisServer, arrive: Arrive, tmp_path: Path
) -> None:
    nginx = find_tool("nginx")
    with guarded(redis_server, proxies="127.0.0.1") as service:
        folder = files("fastapi.md", tmp_path, service)
        with (
            served(folder, "shop:app", TOCSIN_JWT_SECRET=SECRET) as shop,
            _proxied(nginx, tmp_path, service, shop) as port,
        ):
            origin = f"http://127.0.0.1:{port}"
            (script,) = snippets("fastapi.md", service)
            page = (await arrive()).page
            told = Told(page)
            await page.set_extra_http_headers({"x-user": "ada"})
            await page.goto(f"{origin}/token")
            await page.add_script_tag(type="module", content=f"{script}\nconsole.log('subscribed');")
            await told.has("subscribed")
            async with httpx.AsyncClient(headers={"x-user": "ada"}, verify=NO_TLS) as ada:
                assert (await ada.post(f"{origin}/orders", params={"item": "tea"})).status_code == 201
            await told.has("tea ordered")
            await page.close()


@contextmanager
def _proxied(nginx: str, folder: Path, service: Service, shop: int) -> Iterator[int]:
    """Nginx with the guide's `location` before both; its port."""
    (location,) = re.findall(
        r"^```nginx\n(.*?)^```", (GUIDES / "fastapi.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    port = free_port()
    (folder / "nginx.conf").write_text(f"""
        daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
        events {{}}
        http {{
            access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
            fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
            server {{
                listen 127.0.0.1:{port};
                {location.replace("127.0.0.1:8000", f"127.0.0.1:{service.port}")}
                location / {{ proxy_pass http://127.0.0.1:{shop}; }}
            }}
        }}""")
    folder.chmod(0o755)
    process = subprocess.Popen([nginx, "-e", "stderr", "-p", folder, "-c", folder / "nginx.conf"])
    try:
        until(lambda: httpx.get(f"http://127.0.0.1:{port}/docs", verify=NO_TLS).status_code == 200, 20, "nginx")
        yield port
    finally:
        process.terminate()
        process.wait(10)
