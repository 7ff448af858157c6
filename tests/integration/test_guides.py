"""The guides' snippets do what the guides say, as they stand; those of pages run in tests/browser/test_guides.py."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect

import tocsin
from tests.integration.test_readme import ROOT, blocks, on_stage
from tests.stage.redis import RedisServer, free_port
from tests.stage.service import NO_TLS, Service, until

GUIDES = ROOT / "docs" / "guides"
SECRET = "a-secret-of-the-guides-alone-0123456789"


def files(name: str, folder: Path, service: Service) -> Path:
    """The Python blocks of a guide that name a file, as these files."""
    for block in blocks(on_stage((GUIDES / name).read_text("utf-8"), service), "python"):
        title = re.match(r"# (\w+\.py)\n", block)
        assert title is not None, block
        (folder / title[1]).write_text(block)
    return folder


def environment(folder: Path, **more: str) -> dict[str, str]:
    paths = [str(folder), *sys.path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1", **more}


@contextlib.contextmanager
def running(folder: Path, *arguments: str, **more: str) -> Iterator[subprocess.Popen[str]]:
    """A Python program; ended by whatever means. What it says is in `said` beside it."""
    with (folder / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, env=environment(folder, **more),
            stdout=said, stderr=said, text=True,
        )  # fmt: skip
        try:
            yield process
        finally:
            process.terminate()
            process.wait(20)


def says(folder: Path, words: str) -> None:
    until(lambda: words in (folder / "said").read_text(), 20, f"{words!r} is said")


def run(folder: Path, *arguments: str, **more: str) -> str:
    """A Python program to its end; its output."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment(folder, **more), capture_output=True, text=True,
        timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextlib.contextmanager
def served(folder: Path, application: str, workers: int = 1, **more: str) -> Iterator[int]:
    """The application under uvicorn; its port, when it answers."""
    port = free_port()
    with running(folder, "-m", "uvicorn", application, "--port", str(port), "--workers", str(workers), **more):
        until(lambda: httpx.get(f"http://127.0.0.1:{port}/docs", verify=NO_TLS).status_code == 200, 40, application)
        yield port


def channel_in(folder: Path, file: str) -> str:
    found = re.search(r"room:[0-9a-f]+:4\d", (folder / file).read_text())
    assert found is not None
    return found[0]


def test_python_hears_speaks_and_goes_on(service: Service, tmp_path: Path) -> None:
    folder = files("python.md", tmp_path, service)
    channel = channel_in(folder, "bot.py")
    with running(folder, "bot.py") as bot:
        says(folder, "published ")
        service.post(channel, {"data": {"text": "from elsewhere"}})
        says(folder, "{'text': 'from elsewhere'}")
        service.post(channel, {"data": {"text": "stop"}})
        assert bot.wait(20) == 0
    assert run(folder, "notify.py").startswith("published ")

    def hears() -> bool:
        service.post(channel, {"data": "tick"})
        return "tick" in (folder / "said").read_text()

    with running(folder, "follower.py") as follower:
        until(hears, 20, "a message")
        service.post(channel, {"data": "stop"})
        assert follower.wait(20) == 0
        service.post(channel, {"data": "meanwhile"})
    with running(folder, "follower.py") as follower:
        says(folder, "meanwhile")
        service.post(channel, {"data": "stop"})
        assert follower.wait(20) == 0
        assert (folder / "said").read_text().splitlines()[-2:] == ["meanwhile", "stop"]


def guarded(redis_server: RedisServer, proxies: str = "") -> Service:
    """A service as the FastAPI guide runs it."""
    text = (GUIDES / "fastapi.md").read_text("utf-8")
    keys = re.search(r"TOCSIN_API_KEYS='([^']*)'", text)
    assert keys is not None
    return Service(redis_server.url, redis_prefix="guide", jwt_secret=SECRET, api_keys=keys[1], trusted_proxies=proxies)


def test_a_fastapi_app_mints_tokens_and_publishes_from_a_route(redis_server: RedisServer, tmp_path: Path) -> None:
    with guarded(redis_server) as service:
        folder = files("fastapi.md", tmp_path, service)
        with served(folder, "shop:app", TOCSIN_JWT_SECRET=SECRET) as port:
            asyncio.run(_order_and_hear(f"http://127.0.0.1:{port}", f"ws://127.0.0.1:{service.port}/ws"))


async def _order_and_hear(shop: str, address: str) -> None:
    async with httpx.AsyncClient(base_url=shop, headers={"x-user": "ada"}, verify=NO_TLS) as ada:
        token = (await ada.get("/token")).text
        async with tocsin.connect(address, token=token) as client, client.subscribe("orders:ada") as orders:
            answer = await ada.post("/orders", params={"item": "tea"})
            assert answer.status_code == 201
            event = await asyncio.wait_for(anext(aiter(orders)), 10)
            assert isinstance(event, tocsin.Message)
            assert (event.id, event.data) == (answer.json()["id"], {"item": "tea", "state": "ordered"})
            with pytest.raises(tocsin.Forbidden):
                await client.subscribe("orders:bob")
        assert (await ada.get("/token", headers={"x-user": ""})).status_code == 200
    async with httpx.AsyncClient(base_url=shop, verify=NO_TLS) as nobody:
        assert (await nobody.get("/token")).status_code == 401


def test_the_tutorial_reaches_one_worker_and_tocsin_all(service: Service, tmp_path: Path) -> None:
    folder = files("one-of-n.md", files("connection-manager.md", tmp_path, service), service)
    with served(folder, "before:app") as port:
        assert run(folder, "count.py", ADDRESS=f"ws://127.0.0.1:{port}/ws/{{number}}") == "24 of 24 heard it\n"
    with served(folder, "before:app", workers=2) as port:
        heard = 0
        for _ in range(3):  # the kernel chooses the worker
            heard = int(run(folder, "count.py", ADDRESS=f"ws://127.0.0.1:{port}/ws/{{number}}").split()[0])
            if heard < 24:
                break
        assert 0 < heard < 24
    [expected] = re.findall(r"python count\.py\n# (.*)", (GUIDES / "one-of-n.md").read_text("utf-8"))
    assert run(folder, "count.py", ADDRESS=service.ws(f"room:{secrets.token_hex(4)}")) == f"{expected}\n"
    assert run(folder, "client.py") == "hello\n"


async def test_after_the_tutorial_a_route_publishes_to_every_socket(service: Service, tmp_path: Path) -> None:
    folder = files("connection-manager.md", tmp_path, service)
    channel = channel_in(folder, "after.py")
    module = types.ModuleType("after")
    exec(compile((folder / "after.py").read_text(), "after.py", "exec"), module.__dict__)
    transport = httpx.ASGITransport(app=module.app)
    async with (
        connect(service.ws(channel)) as one,
        connect(service.ws(channel)) as other,
        httpx.AsyncClient(transport=transport, base_url="http://shop", verify=NO_TLS) as visitor,
    ):
        assert (await visitor.post("/announce", params={"text": "we open"})).status_code == 200
        for socket in (one, other):
            assert await asyncio.wait_for(socket.recv(), 10) == "we open"
    await module.publisher.close()


def test_django_and_celery_publish_once(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for both: what is theirs is not tested here."""
    folder = files("django-celery.md", tmp_path, service)
    for name, content in _stand_ins().items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("TOCSIN_URL", "TOCSIN_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    modules: dict[str, types.ModuleType] = {}
    for name in ("live", "views", "tasks"):
        module = modules[name] = types.ModuleType(name)
        exec(compile((folder / f"{name}.py").read_text(), name, "exec"), module.__dict__)
        monkeypatch.setitem(sys.modules, name, module)
    order = secrets.randbelow(10**9)
    assert modules["views"].pay(None, order) == {"state": "paid"}
    task = types.SimpleNamespace(request=types.SimpleNamespace(id=secrets.token_hex(16)))
    first, second = (modules["tasks"].tell(task, order, "sent") for _ in range(2))
    assert first == second
    messages = service.get(f"/api/v1/channels/orders:{order}/messages").json()["messages"]
    assert [message["data"] for message in messages] == [{"state": "paid"}, {"state": "sent"}]
    modules["live"].publisher.close()


def _stand_ins() -> dict[str, dict[str, Any]]:
    transaction = types.SimpleNamespace(atomic=contextlib.nullcontext, on_commit=lambda call: call())
    return {
        "django": {},
        "django.db": {"transaction": transaction},
        "django.http": {"HttpRequest": object, "JsonResponse": dict},
        "celery": {"shared_task": lambda **_: lambda task: task},
    }


def test_the_index_has_every_guide() -> None:
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", (GUIDES / "README.md").read_text("utf-8")))
    assert linked == {path.name for path in GUIDES.glob("*.md")} - {"README.md"}
