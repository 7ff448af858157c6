"""The command line: what it prints, where, and how it ends."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_serve import run_tocsin
from tests.stage.redis import RedisServer, free_port
from tests.stage.service import Service

KEY = "k3y-of-the-shop-0123456789"


@pytest.fixture(scope="module")
def service(redis_server: RedisServer) -> Iterator[Service]:
    """A service that asks for a key."""
    keys = {"shop": {"key": KEY, "publish": ["order:*"], "history": ["*"]}}
    with Service(redis_server.url, redis_prefix="cli", api_keys=json.dumps(keys)) as service:
        yield service


def test_version() -> None:
    done = run_tocsin("--version")
    assert (done.returncode, done.stdout) == (0, "tocsin 0.1.0\n")


def test_help_names_the_exit_codes() -> None:
    done = run_tocsin("serve", "--help")
    assert done.returncode == 0
    assert "3 the port is taken" in " ".join(done.stdout.split())


def test_bad_settings_end_with_2_and_a_line_each() -> None:
    done = run_tocsin("serve", "--port", "soon", prot="1", log_level="loud", api_keys='{"a": "s3cret"}')
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "tocsin: --port: got 'soon'; allowed is a whole number from 0 to 65535",
        "tocsin: TOCSIN_API_KEYS: entry 1: its key needs 16 to 512 printable ASCII characters without spaces",
        "tocsin: TOCSIN_LOG_LEVEL: got 'loud'; allowed is debug, info, warning, error",
        "tocsin: TOCSIN_PROT is no setting; did you mean TOCSIN_PORT?",
    ]


def test_publish_prints_the_id_of_the_message(service: Service) -> None:
    done = run_tocsin("publish", "order:1", "hello", url=service.url, api_key=KEY)
    assert (done.returncode, done.stderr) == (0, "")
    [message] = service.get("/api/v1/channels/order:1/messages", headers={"X-API-Key": KEY}).json()["messages"]
    assert message["data"] == "hello"
    assert done.stdout == f"{message['id']}\n"


def test_publish_takes_json_a_key_and_a_key_file(service: Service, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    command = ["publish", "order:2", '{"n": 1}', "--json", "--key", "order-2-0123456789", "--url", service.url]
    command += ["--api-key-file", str(tmp_path / "key")]
    first, second = run_tocsin(*command), run_tocsin(*command)
    assert second.stdout == f"{first.stdout.strip()} duplicate\n"
    [message] = service.get("/api/v1/channels/order:2/messages", headers={"X-API-Key": KEY}).json()["messages"]
    assert message["data"] == {"n": 1}


@pytest.mark.parametrize(
    ("arguments", "settings", "code", "words"),
    [
        (["order:1", "x"], {}, 1, "(unauthorized)"),
        (["order:1", "x"], {"api_key": "wrong-wrong-wrong-wrong"}, 1, "(unauthorized)"),
        (["room:1", "x"], {"api_key": KEY}, 1, "you may not publish in this channel (forbidden)"),
        (["a b", "x"], {"api_key": KEY}, 1, "a channel name has 1 to 128 of the characters"),
        (["order:1", "{", "--json"], {"api_key": KEY}, 2, "the message is not JSON"),
        (["order:1", "x"], {"api_key": "ключ"}, 2, "the API key has characters that no header may carry"),
        (["order:1", "x", "--url", "ftp://h"], {}, 2, "allowed is http://host:port or https://host"),
        (["order:1", "x", "--api-key-file", "/nowhere"], {}, 2, "cannot read the API key from /nowhere"),
    ],
)
def test_publish_says_in_one_line_why_not(
    service: Service, arguments: list[str], settings: dict[str, str], code: int, words: str
) -> None:
    done = run_tocsin("publish", *arguments, **{"url": service.url, **settings})
    assert (done.returncode, done.stdout) == (code, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("tocsin: ")
    assert words in line
    assert KEY not in line


def test_publish_to_nobody_ends_with_4() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = run_tocsin("publish", "lobby", "x", "--url", url, "--timeout", "0.5")
    assert done.returncode == 4
    [line] = done.stderr.splitlines()
    assert line.startswith(f"tocsin: {url} cannot be reached: ")
    assert line.endswith("Connection refused")


def test_publish_to_somebody_else_ends_with_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_answer_as_another, args=(server,))
        thread.start()
        done = run_tocsin("publish", "lobby", "x", "--url", f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join(10)
    assert done.returncode == 1
    assert done.stderr == "tocsin: HTTP 404, not from Tocsin (not_found)\n"


def _answer_as_another(server: socket.socket) -> None:
    server.settimeout(30)
    client, _ = server.accept()
    with client:
        client.recv(65_536)
        client.sendall(b"HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\nconnection: close\r\n\r\nlost")


def test_doctor_finds_a_redis_that_is_fit(redis_server: RedisServer) -> None:
    with RedisServer(maxmemory_policy="noeviction", client_output_buffer_limit="pubsub 256mb 64mb 60") as store:
        done = run_tocsin("doctor", redis_url=store.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "✗" not in done.stdout
    assert "the settings are valid" in done.stdout


def test_doctor_names_a_problem_and_ends_with_1() -> None:
    with RedisServer(maxmemory_policy="allkeys-lru") as store:
        done = run_tocsin("doctor", redis_url=store.url)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "✗" in done.stdout
    assert "allkeys-lru" in done.stdout


def test_doctor_says_why_redis_cannot_be_used() -> None:
    with RedisServer() as store:
        with store.client() as client:
            client.config_set("requirepass", "right")
        done = run_tocsin("doctor", redis_url=f"redis://:s3cret@127.0.0.1:{store.port}/0")
    assert done.returncode == 1
    assert f"Redis at redis://127.0.0.1:{store.port}/0 cannot be used: " in done.stdout
    assert "s3cret" not in done.stdout + done.stderr


def test_doctor_names_what_it_could_not_check_and_the_service_is_ready_without_it() -> None:
    with RedisServer() as store:
        with store.client() as client:
            client.execute_command("ACL", "SETUSER", "tocsin", "-config|get")
        done = run_tocsin("doctor", redis_url=store.url)
        with Service(store.url) as running:
            assert running.get("/readyz").json() == {"status": "ready", "reasons": []}
    assert done.returncode == 0, done.stdout + done.stderr
    assert "client-output-buffer-limit could not be checked" in done.stdout
    assert "maxmemory-policy is noeviction" in done.stdout


def test_doctor_knows_the_embedded_redis() -> None:
    done = run_tocsin("doctor")
    assert "an embedded Redis would run: " in done.stdout
