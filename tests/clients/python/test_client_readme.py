"""The README's snippets run as they stand, in their order, on a real service."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import tomllib
from pathlib import Path
from typing import Any

import httpx

import tocsin
from tests.clients.python.stage import token, url
from tests.integration.test_readme import blocks, on_stage
from tests.stage.service import Service

ROOT = Path(__file__).parents[3]
CLIENT = ROOT / "clients" / "python"
README = (CLIENT / "README.md").read_text("utf-8")


async def order(names: dict[str, Any]) -> None:
    """The application's lifespan, a listener and a request."""
    app, listener = names["app"], asyncio.Queue[tocsin.Event]()
    names["listeners"].add(listener)
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://app") as http:
        answer = await http.post("/orders")
        event = await asyncio.wait_for(listener.get(), 5)
        assert isinstance(event, tocsin.Message)
        assert answer.json() == {"id": event.id}


def test_the_snippets_run(guarded: Service) -> None:
    first, *rest = blocks(on_stage(README, guarded).replace('"eyJ..."', "make_token()"), "python")
    assert len(rest) >= 6
    exec(compile(first, "README, first block", "exec"), {})
    names: dict[str, Any] = {"tocsin": tocsin, "make_token": lambda: token(60)}

    async def run() -> None:
        async with tocsin.connect(url(guarded)) as names["client"]:
            for number, block in enumerate(rest, 2):
                code = compile(block, f"README, block {number}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
                done = eval(code, names)
                if inspect.isawaitable(done):
                    await done
            async with names["connecting"] as client:
                assert client.user == "ada"
            await order(names)

    asyncio.run(run())
    assert names["saved"]
    assert [outcome.duplicate for outcome in names["outcomes"]] == [False, False]


def test_the_first_one_is_short() -> None:
    [first, *_] = blocks(README, "python")
    assert len([line for line in first.splitlines() if line.strip()]) <= 10


def test_every_name_of_the_readme_exists() -> None:
    for name in set(re.findall(r"tocsin\.([A-Z]\w+)", README)):
        assert hasattr(tocsin, name), name
    for name in tocsin.__all__:
        assert hasattr(tocsin, name), name


def test_the_client_has_version_and_license_of_the_service() -> None:
    own, service = (
        tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"] for folder in (CLIENT, ROOT)
    )
    assert own["version"] == service["version"] == tocsin.__version__
    assert own["requires-python"] == service["requires-python"]
    assert (CLIENT / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
