"""The JavaScript client: its own tests in Node, on a real service; what is served is what its sources make."""

from __future__ import annotations

import gzip
import json
import re
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.protocols.native import Native
from tests.stage.node import CLIENT, ROOT, node_binary, run, tool
from tests.stage.redis import RedisServer
from tests.stage.service import Service, until
from tests.unit.test_native_codec import COMMANDS, describe

SERVED = ROOT / "app" / "edge" / "client" / "tocsin.js"
SECRET = "javascript-client-tests-only-0123456789"
APP = "http://app.test:8080"


@pytest.fixture(scope="module")
def guarded(redis_server: RedisServer) -> Iterator[Service]:
    """One that takes only tokens, has the ordinary rates and lets a page of another origin in."""
    settings = {
        "jwt_secret": SECRET,
        "allow_anonymous": "false",
        "publish_rate": "100",
        "origins": APP,
        "redis_prefix": "guarded",
    }
    with Service(redis_server.url, settings=settings) as running:
        yield running


@pytest.mark.parametrize("name", ["channel", "connection", "outbox"])
def test_state_machines(name: str) -> None:
    run(node_binary(), "--test", f"test/{name}.test.js")


def test_what_the_client_says_is_what_python_reads(tmp_path: Path) -> None:
    spoken = tmp_path / "spoken.json"
    run(node_binary(), "--test", "test/frames.test.js", TOCSIN_SPOKEN=str(spoken))
    frames: dict[str, str] = json.loads(spoken.read_text("utf-8"))
    meanings = {row["name"]: row["meaning"] for row in COMMANDS}
    assert {meanings[name]["command"] for name in frames} == {"subscribe", "unsubscribe", "publish"} | {
        "history", "presence", "authenticate", "ping"
    }  # fmt: skip
    for name, frame in frames.items():
        read, wanted = describe(Native().decode_text(frame.encode())), dict(meanings[name])
        read["ref"] = wanted["ref"]  # the client chooses it, and the key
        if wanted.get("command") == "publish" and wanted["key"] is None:
            read["key"] = None
        if isinstance(wanted.get("presence"), str) and wanted["presence"] != "watch":
            read["presence"], wanted["presence"] = json.loads(read["presence"]), json.loads(wanted["presence"])
        assert read == wanted, name


@pytest.mark.timeout(120)
def test_on_a_real_service(service: Service, guarded: Service) -> None:
    said = run(
        node_binary(),
        "--test",
        "test/service.test.js",
        TOCSIN_URL=service.url,
        TOCSIN_GUARDED_URL=guarded.url,
        TOCSIN_SECRET=SECRET,
    )
    assert "skipped 0" in said, said


def test_types_hold() -> None:
    run(tool("tsc"))


def test_served_module_is_what_the_sources_make(tmp_path: Path) -> None:
    made = tmp_path / "tocsin.js"
    build = json.loads((CLIENT / "package.json").read_text("utf-8"))["scripts"]["build"]
    name, *options = build.split()
    run(tool(name), *(option for option in options if not option.startswith("--outfile=")), f"--outfile={made}")
    assert SERVED.read_bytes() == made.read_bytes(), "npm run build, in clients/javascript"


def test_served_module_weighs_little(service: Service) -> None:
    answer = service.get("/client/tocsin.js")
    assert answer.content == SERVED.read_bytes()
    assert len(gzip.compress(answer.content, 9)) <= 6 * 1024


def test_served_module_may_be_loaded_by_pages_of_allowed_origins(service: Service, guarded: Service) -> None:
    answer = service.get("/client/tocsin.js")
    assert answer.headers["content-type"].startswith("text/javascript")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
    assert "access-control-allow-origin" not in answer.headers
    allowed = guarded.get("/client/tocsin.js", headers={"origin": APP})
    assert allowed.status_code == 200  # without a token: it is the same for all
    assert allowed.headers["access-control-allow-origin"] == APP
    foreign = guarded.get("/client/tocsin.js", headers={"origin": "http://elsewhere.test"})
    assert "access-control-allow-origin" not in foreign.headers


def test_served_module_is_sent_again_only_when_it_is_another(service: Service) -> None:
    tag = service.get("/client/tocsin.js").headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = service.get("/client/tocsin.js", headers={"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert service.get("/client/tocsin.js", headers={"if-none-match": '"other"'}).status_code == 200


def test_package_has_no_dependencies_and_its_lock_no_addresses() -> None:
    package = json.loads((CLIENT / "package.json").read_text("utf-8"))
    assert "dependencies" not in package
    lock = json.loads((CLIENT / "package-lock.json").read_text("utf-8"))
    assert all("resolved" not in entry for entry in lock["packages"].values())
    assert all("integrity" in entry for name, entry in lock["packages"].items() if name)
    assert all(entry.get("dev") or entry.get("optional") for name, entry in lock["packages"].items() if name)


def test_readme_runs_in_node_as_it_stands(service: Service) -> None:
    """It hears what is published, for as long as it runs."""
    readme = (CLIENT / "README.md").read_text("utf-8")
    (block,) = [
        found for found in re.findall(r"^```js\n(.*?)^```", readme, re.MULTILINE | re.DOTALL) if '"ws"' in found
    ]
    channel = f"js:{secrets.token_hex(4)}"
    program = "globalThis.crypto ??= (await import('node:crypto')).webcrypto;\n"  # Node 18
    program += block.replace("127.0.0.1:8000", f"127.0.0.1:{service.port}").replace("room:42", channel)
    command = [node_binary(), "--input-type=module", "--eval", program]
    with subprocess.Popen(command, cwd=CLIENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            heard = until(
                lambda: service.get(f"/api/v1/channels?prefix={channel}").json()["channels"] or process.poll()
            )
            assert heard == [{"channel": channel, "subscribers": 1}]
            service.post(channel, {"data": {"text": "hi"}})
            assert process.stdout is not None
            assert process.stdout.readline() == "{ text: 'hi' }\n"
        finally:
            process.kill()
