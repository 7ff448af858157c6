"""The commands of the documents do what stands under them, on a real service."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from websockets.sync.client import connect

from tests.stage.native import NATIVE
from tests.stage.service import Service

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "docs/protocol.md", "docs/guides/curl.md")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[tuple[list[str], str | None]]:
    """Each command of a block as arguments, with the answer that stands under it as a comment."""
    found: list[tuple[list[str], str | None]] = []
    for line in block.replace("\\\n", " ").splitlines():
        if line.startswith("# "):
            found[-1] = (found[-1][0], line.removeprefix("# "))
        elif line:
            found.append((shlex.split(line, comments=True), None))
    return found


def without_chance(answer: str) -> str:
    """An answer with epochs and times replaced: they differ with each run."""
    return re.sub(r'"at":\d+', '"at":0', re.sub(r"\b[0-9a-f]{12}-(\d+)", r"epoch-\1", answer))


def conversations(text: str) -> Iterator[list[tuple[str, list[str]]]]:
    """Each block of frames as what is sent ('' first) and what is then received."""
    for block in blocks(text, "text"):
        if block.startswith("< "):
            turns: list[tuple[str, list[str]]] = [("", [])]
            for line in block.splitlines():
                if line.startswith("> "):
                    turns.append((line.removeprefix("> "), []))
                else:
                    turns[-1][1].append(line.removeprefix("< "))
            yield turns


def curl_binary() -> str:
    found = shutil.which("curl")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("curl is missing")
        pytest.skip("curl is not installed")
    return found


def on_stage(text: str, service: Service) -> str:
    """The text with this service's address, in channels that nobody else uses."""
    mark = secrets.token_hex(4)
    return text.replace("127.0.0.1:8000", f"127.0.0.1:{service.port}").replace("room:4", f"room:{mark}:4")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_curl_answers_what_the_document_says(service: Service, name: str) -> None:
    text = on_stage((ROOT / name).read_text("utf-8"), service)
    asked = [one for block in blocks(text, "sh") for one in commands(block) if one[0][0] == "curl"]
    assert asked
    for arguments, expected in asked:
        options = ["--silent", "--show-error", "--max-time", "10", *([] if expected else ["--fail"])]
        done = subprocess.run(
            [curl_binary(), *options, *arguments[1:]], capture_output=True, text=True, timeout=20, check=False
        )
        assert done.returncode == 0, f"{shlex.join(arguments)}: {done.stderr}{done.stdout}"
        if expected is not None:
            assert without_chance(done.stdout) == without_chance(expected), shlex.join(arguments)


@pytest.mark.parametrize("name", ["README.md", "docs/protocol.md"])
def test_python_runs_as_it_stands(service: Service, name: str) -> None:
    shown = blocks(on_stage((ROOT / name).read_text("utf-8"), service), "python")
    assert shown
    for number, block in enumerate(shown, 1):
        exec(compile(block, f"{name}, block {number}", "exec"), {})


def test_native_conversations_run_as_they_stand(service: Service) -> None:
    """Frames of one turn may come in another order: an answer and one's own copy of a message race."""
    told = list(conversations(on_stage((ROOT / "docs" / "protocol.md").read_text("utf-8"), service)))
    assert len(told) >= 3
    epochs: dict[str, str] = {}  # of the document, and what stands for them here
    for turns in told:
        with connect(f"ws://127.0.0.1:{service.port}/ws", subprotocols=[NATIVE]) as socket:
            for sent, expected in turns:
                if sent:
                    socket.send(re.sub(r"\b[0-9a-f]{12}\b", lambda found: epochs.get(found[0], found[0]), sent))
                heard = sorted((orjson.loads(socket.recv(10)) for _ in expected), key=kind_of)
                for frame, wanted in zip(heard, sorted(map(orjson.loads, expected), key=kind_of), strict=True):
                    for name in ("id", "position"):
                        if wanted.get(name):
                            epochs[wanted[name].partition("-")[0]] = frame[name].partition("-")[0]
                    assert anonymous(frame) == anonymous(wanted)


def kind_of(frame: dict[str, Any]) -> str:
    return str(frame["type"])


def anonymous(frame: dict[str, Any]) -> dict[str, Any]:
    """A frame without what differs with each run."""
    changing = {"client", "from", "worker", "at"}
    text = orjson.dumps({name: value for name, value in frame.items() if name not in changing}).decode()
    text = re.sub(r'"(from|member)":"[^"]*"', r'"\1":""', without_chance(text))
    shown: dict[str, Any] = orjson.loads(text)
    return shown | dict.fromkeys(changing & set(frame))


def test_the_browser_code_is_that_of_the_page() -> None:
    """Which a test of the page runs in a browser; the block with the client runs in tests/browser/test_client.py."""
    page = (ROOT / "app" / "edge" / "page" / "try.js").read_text("utf-8")
    found = re.search(r"function tenLines\(.*?return `(.*?)`;\n}", page, re.DOTALL)
    assert found is not None
    expected = found[1].replace("${address}", "ws://127.0.0.1:8000/ws?channel=lobby").replace("${offer}", "")
    shown = blocks((ROOT / "README.md").read_text("utf-8"), "js")[0]
    assert shown.strip() == expected
    assert len(expected.splitlines()) == 10
