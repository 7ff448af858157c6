"""`tocsin publish` of lines: each once, as they come, and what is said of those that are refused."""

from __future__ import annotations

import json
import os
import secrets
import signal
from functools import partial
from pathlib import Path
from typing import Any

from tests.stage.redis import RedisServer
from tests.stage.service import Service, until
from tests.stage.terminal import Command

KEPT = '[{"channel": "*", "history": 50000}]'


def read(service: Service, channel: str) -> list[Any]:
    """The data of the whole log."""
    found: list[Any] = []
    since = ""
    while True:
        page = service.get(f"/api/v1/channels/{channel}/messages?limit=1000{since}").json()
        if not since:
            epoch = page["position"].partition("-")[0]
            since = f"&since={epoch}-0"
            continue
        found += [message["data"] for message in page["messages"]]
        if page["complete"]:
            return found
        since = f"&since={page['position']}"


def test_10000_lines_are_published_once_while_workers_are_killed(redis_server: RedisServer) -> None:
    with Service(redis_server.url, workers=2, redis_prefix="lines", channels=KEPT) as service:
        with Command("publish", "lines", url=service.url) as command:
            for start in range(0, 10_000, 1000):
                command.write("".join(f"line {number}\n" for number in range(start, start + 1000)))
                if start in {2000, 5000}:
                    until(partial(has, service, "lines", start), 20, "some lines are published")
                    os.kill(service.worker_pids()[0], signal.SIGKILL)
            assert command.end(seconds=50) == 0
            assert command.stdout == ""
            assert command.stderr.startswith("10,000 published, 0 refused")
        logged = read(service, "lines")
        assert len(logged) == 10_000
        assert set(logged) == {f"line {number}" for number in range(10_000)}


def has(service: Service, channel: str, count: int) -> bool:
    """Whether so many messages are in the log, at least."""
    page = service.get(f"/api/v1/channels/{channel}/messages?limit=1").json()
    return int(page["position"].rpartition("-")[2]) >= count


def test_a_line_is_published_when_it_is_there_not_when_many_are(service: Service) -> None:
    channel = f"cli:{secrets.token_hex(4)}"
    with Command("publish", channel, "--json", url=service.url) as command:
        for number in range(3):
            command.write(f'{{"n": {number}}}\n')
            until(partial(has, service, channel, number + 1), 20, "the line is published")
        command.write('{"n": 3}')  # no end of line before the end
        assert command.end() == 0
    assert read(service, channel) == [{"n": number} for number in range(4)]


def test_lines_that_are_refused_are_named_and_the_others_published(service: Service) -> None:
    channel = f"cli:{secrets.token_hex(4)}"
    with Command("publish", channel, "--json", url=service.url) as command:
        command.write(f'"first"\n{{"half": \n\n{json.dumps("x" * 70_000)}\n"last"\n')
        assert command.end() == 1
        lines = command.stderr.splitlines()
        assert lines[0].startswith("tocsin: line 2: not JSON: ")
        assert lines[1].startswith("tocsin: line 4: ")
        assert lines[1].endswith("(too_large)")
        assert lines[2:] == ["2 published, 2 refused"]
    assert read(service, channel) == ["first", "last"]


def test_the_same_input_with_the_same_key_is_published_once(service: Service, tmp_path: Path) -> None:
    channel = f"cli:{secrets.token_hex(4)}"
    said = []
    for lines in ("a\nb\n", "a\nb\nc\n"):
        with Command("publish", channel, "--key", "import-2026-11-22", url=service.url) as command:
            command.write(lines)
            assert command.end() == 0
            said.append(command.stderr)
    assert said == ["2 published, 0 refused\n", "3 published, 0 refused, 2 of them had been published before\n"]
    assert read(service, channel) == ["a", "b", "c"]


def test_on_a_terminal_a_bar_shows_how_far_it_is(service: Service) -> None:
    with Command("publish", f"cli:{secrets.token_hex(4)}", url=service.url, terminal=True) as command:
        command.write("one\ntwo\n")
        command.wait_for("2 published, 0 refused")
        assert "0:00:0" in command.stdout
        assert command.end() == 0


def test_when_the_service_goes_away_it_says_from_which_line_on(service: Service) -> None:
    arguments = ["publish", "lobby", "--timeout", "0.5", "--url", "http://127.0.0.1:1"]
    with Command(*arguments) as command:
        command.write("a\nb\n")
        assert command.end() == 4
        summary, reason = command.stderr.splitlines()
        assert summary == "0 published, 0 refused"
        assert reason.startswith("tocsin: stopped at line 1: ")
