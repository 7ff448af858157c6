"""`tocsin subscribe`: what it shows and where, through faults, and how it ends."""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys

import httpx
import pytest

from tests.integration.test_serve import ROOT, run_tocsin
from tests.stage.redis import RedisServer, free_port
from tests.stage.service import Service
from tests.stage.terminal import Command, environment


@pytest.fixture
def room() -> str:
    """A channel of this test's own."""
    return f"cli:{secrets.token_hex(4)}"


def publish(service: Service, channel: str, *data: object) -> list[str]:
    """Publish and return the ids."""
    return [service.post(channel, {"data": item}).json()["id"] for item in data]


def test_it_begins_after_an_id_and_ends_by_ctrl_c_with_the_id_to_go_on_from(service: Service, room: str) -> None:
    first, *_ = publish(service, room, "seen", "one", {"n": 2})
    with Command("subscribe", room, "--since", first, url=service.url) as command:
        assert command.lines(2) == ["one", '{"n":2}']
        *_, last = publish(service, room, "líve\n\x1b[31mand red")
        assert command.lines(3)[2] == r"líve\n\x1b[31mand red"
        assert command.end(signal.SIGINT) == 0
        assert command.stderr == f"tocsin: go on with --since {last}\n"


def test_json_has_a_line_for_each_message_and_each_gap(service: Service, room: str) -> None:
    first, second = publish(service, room, "one", [1, {"a": None}])
    with Command("subscribe", room, "--history", "2", "--json", url=service.url) as command:
        one, two = map(json.loads, command.lines(2))
        assert one | {"at": 0} == {
            "type": "message", "channel": room, "id": first, "data": "one", "from": None, "user": None, "at": 0,
        }  # fmt: skip
        assert (two["id"], two["data"]) == (second, [1, {"a": None}])
        service.post(room, {"base64": "AAE="})
        assert json.loads(command.lines(3)[2])["base64"] == "AAE="
        with Command("subscribe", room, "--since", first.replace(first[:12], "0" * 12), url=service.url) as lost:
            lost.wait_for("gap (")
            assert lost.stdout == ""
            assert "tocsin: gap (diverged): messages are missing here; it goes on after " in lost.stderr
        httpx.delete(f"{service.url}/api/v1/channels/{room}/messages")
        gap = json.loads(command.lines(4)[3])
        assert (gap["type"], gap["channel"], gap["reason"]) == ("gap", room, "cleared")
        assert command.end(signal.SIGTERM) == 0
        assert f"go on with --since {gap['position']}" in command.stderr


def test_it_ends_when_nobody_reads_on_also_in_a_quiet_channel(service: Service, room: str) -> None:
    publish(service, room, "one", "two")
    done = subprocess.run(
        f"{sys.executable} -m app.cli subscribe {room} --history 2 | head -n 1",
        shell=True, cwd=ROOT, env=environment(url=service.url), capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert done.stdout == "one\n"
    [line] = done.stderr.splitlines()
    assert line.startswith("tocsin: go on with --since ")


def test_it_resumes_through_a_restart_of_the_service_without_a_hole(redis_server: RedisServer, room: str) -> None:
    with Service(redis_server.url, redis_prefix="cli-restart") as service:
        begin = publish(service, room, "0")
        with Command("subscribe", room, "--since", *begin, url=service.url) as command:
            publish(service, room, "1")
            command.lines(1)
            service.stop()
            command.wait_for("; trying again in ")
            service.start()
            publish(service, room, "2", "3")
            assert command.lines(3) == ["1", "2", "3"]
            assert "tocsin: connected again\n" in command.stderr
            assert command.end(signal.SIGTERM) == 0


def test_on_a_terminal_it_shows_when_and_who_gaps_loudly_and_its_state(service: Service, room: str) -> None:
    ids = publish(service, room, "hi \x1b]0;owned\x07 there")
    since = f"{'0' * 12}-7"
    with Command("subscribe", room, "--since", since, url=service.url, terminal=True) as command:
        command.wait_for("gap (diverged): messages are missing here")
        publish(service, room, "hi \x1b]0;owned\x07 there")
        command.wait_for(r"hi \x1b]0;owned\x07 there")
        command.wait_for("● open")
        command.wait_for("1 messages")
        assert "\x07" not in command.stdout
        assert command.end(signal.SIGINT) == 0
        assert f"go on with --since {ids[0].replace('-1', '-2')}" in command.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["a b"], 1, "a channel name has 1 to 128 of the characters"),
        (["lobby", "--since", "yesterday"], 1, "(bad_position)"),
        (["lobby", "--token", "no.good.token"], 1, "(unauthorized)"),
    ],
)
def test_it_says_in_one_line_why_not(service: Service, arguments: list[str], code: int, words: str) -> None:
    done = run_tocsin("subscribe", *arguments, url=service.url)
    assert (done.returncode, done.stdout) == (code, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("tocsin: ")
    assert words in line


def test_without_a_service_it_gives_up_after_a_while_and_ends_with_4() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = run_tocsin("subscribe", "lobby", "--timeout", "0.5", url=url)
    assert done.returncode == 4
    assert done.stderr.splitlines()[-1].startswith(f"tocsin: {url} cannot be reached: ")


def test_ctrl_c_while_it_looks_for_the_service_ends_it() -> None:
    with Command("subscribe", "lobby", "--timeout", "60", url=f"http://127.0.0.1:{free_port()}") as command:
        command.wait_for("trying again")
        assert command.end(signal.SIGINT) == 0
        assert "Traceback" not in command.stderr
