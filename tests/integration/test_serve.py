"""`tocsin serve`: refusals in one line, workers that come back, a Redis that outlives them, an end that is clean."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import pytest

from tests.stage.redis import RedisServer, free_port, redis_binary
from tests.stage.service import NO_TLS, children, command_line, until
from tests.stage.terminal import environment

pytestmark = pytest.mark.timeout(120)  # several starts of several processes

ROOT = Path(__file__).parents[2]


def run_tocsin(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """One command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments],
        env=environment(**settings),
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=50,
        check=False,
    )


class Tocsin:
    """`tocsin serve` in a session of its own; a context manager. `folder` keeps its data and its log."""

    def __init__(self, folder: Path, *, workers: int = 2, command: tuple[str, ...] = (), **settings: str) -> None:
        redis_binary()
        self.port = free_port()
        self.folder = folder
        self.workers = workers
        self.command = command or ("-m", "app.cli", "serve", "--workers", str(workers), "--port", str(self.port))
        self.settings = {"data_dir": str(folder / "data"), "drain_seconds": "0.5", **settings}
        self.log = folder / "serve.log"
        self.process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, stdout: int | None = None) -> Self:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.command],
                env=environment(**self.settings),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log if stdout is None else stdout,
                stderr=log,
                start_new_session=True,
            )
        return self

    def __enter__(self) -> Self:
        self.start()
        try:
            until(self.all_ready, 45, "readiness of all workers")
        except TimeoutError:
            print(self.log.read_text())
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(self.log.read_text())
        self.kill()

    def kill(self) -> None:
        """End whatever is left of it: the service, its workers, its Redis."""
        store = self.redis_pid()
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        if store is not None and "tocsin-" in command_line(store):
            os.kill(store, signal.SIGKILL)

    def all_ready(self) -> bool:
        """Whether every worker says that it is ready."""
        text = httpx.get(f"{self.url}/metrics", verify=NO_TLS).text
        ready = [line for line in text.splitlines() if line.startswith("tocsin_ready{")]
        return len(ready) >= self.workers and all(line.endswith(" 1.0") for line in ready)

    def worker_pids(self) -> set[int]:
        """Process ids of the workers."""
        return {pid for pid in children(self.process.pid) if "spawn_main" in command_line(pid)}

    def redis_pid(self) -> int | None:
        """Process id of the embedded Redis while there is one."""
        with contextlib.suppress(OSError):
            return int((self.folder / "data" / "redis.pid").read_text().split()[0])
        return None

    def publish(self, data: Any) -> str:
        """Publish in `lobby` and return the id."""
        answer = httpx.post(f"{self.url}/api/v1/channels/lobby/messages", json={"data": data}, timeout=10)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def read(self, field: str = "data") -> list[Any]:
        """What the log of `lobby` has: this field of each message."""
        answer = httpx.get(f"{self.url}/api/v1/channels/lobby/messages", timeout=10)
        assert answer.status_code == 200, answer.text
        return [message[field] for message in answer.json()["messages"]]


@pytest.fixture(scope="module")
def tocsin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tocsin]:
    """Two workers and an embedded Redis, for tests that leave it whole."""
    with Tocsin(tmp_path_factory.mktemp("tocsin")) as service:
        yield service


def test_it_serves_with_a_redis_of_its_own_and_stops_clean(tmp_path: Path) -> None:
    """SIGTERM ends the workers, then Redis; exit code 0; the messages are there after the next start."""
    with Tocsin(tmp_path) as service:
        service.publish("kept")
        store = service.redis_pid()
        workers = service.worker_pids()
        assert store is not None
        assert len(workers) == 2
        service.process.terminate()
        assert service.process.wait(20) == 0
        assert [command_line(pid) for pid in (*workers, store)] == ["", "", ""]
        assert service.redis_pid() is None
        assert '"event": "stopped"' in service.log.read_text()
    with Tocsin(tmp_path, workers=1) as service:
        assert service.read() == ["kept"]


def test_who_connects_and_says_nothing_is_sent_away(tmp_path: Path) -> None:
    with Tocsin(tmp_path, workers=1, handshake_seconds="0.5") as service:
        with socket.create_connection(("127.0.0.1", service.port), 10) as sock:
            assert sock.recv(1000).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert service.publish("the next one is served")


def test_ctrl_c_reaches_the_whole_group_and_still_ends_clean(tmp_path: Path) -> None:
    """No traceback, and Redis goes last."""
    with Tocsin(tmp_path) as service:
        store = service.redis_pid()
        assert store is not None
        os.killpg(service.process.pid, signal.SIGINT)
        assert service.process.wait(20) == 0
        assert command_line(store) == ""
        assert "Traceback" not in service.log.read_text()
        assert "embedded Redis ended" not in service.log.read_text()


def test_ctrl_c_while_it_starts_ends_it_clean(tmp_path: Path) -> None:
    service = Tocsin(tmp_path).start()
    try:
        until(service.worker_pids, 20, "the first worker")
        os.killpg(service.process.pid, signal.SIGINT)
        assert service.process.wait(20) == 0
        assert "Traceback" not in service.log.read_text()
        assert service.redis_pid() is None
    finally:
        service.kill()


def test_a_killed_worker_is_replaced_while_the_others_serve(tocsin: Tocsin) -> None:
    before = tocsin.worker_pids()
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    until(lambda: len(tocsin.worker_pids() - before) == 1, 30, "the replacement")
    until(tocsin.all_ready, 40, "readiness of all workers")
    assert victim not in tocsin.worker_pids()
    assert "a worker ended and is replaced" in tocsin.log.read_text()
    assert tocsin.publish("x")


def test_a_worker_that_is_killed_while_it_starts_is_replaced(tmp_path: Path) -> None:
    """A signal is no failure of the application to start."""
    service = Tocsin(tmp_path).start()
    try:
        victim = min(until(service.worker_pids, 20, "the first worker"))
        os.kill(victim, signal.SIGKILL)
        until(service.all_ready, 45, "readiness of all workers")
        assert victim not in service.worker_pids()
    finally:
        service.kill()


def test_a_killed_redis_is_started_again_with_its_messages(tocsin: Tocsin) -> None:
    kept = tocsin.publish("kept")
    store = tocsin.redis_pid()
    assert store is not None
    workers = tocsin.worker_pids()
    os.kill(store, signal.SIGKILL)
    until(lambda: tocsin.redis_pid() != store, 10, "the restart")
    # What other workers say in /metrics is a beat old: it may be of the time before.
    log = f"{tocsin.url}/api/v1/channels/lobby/messages"
    until(lambda: httpx.get(log, verify=NO_TLS).status_code == 200, 20, "an answer from the log")
    until(tocsin.all_ready, 20, "readiness of all workers")
    until(lambda: kept in httpx.get(log, verify=NO_TLS).text, 20, "the message that was kept")
    assert tocsin.worker_pids() == workers


def test_a_killed_supervisor_leaves_nothing_that_hinders_the_next(tmp_path: Path) -> None:
    """Its workers drain and end by themselves; the Redis that it left is ended by the next one, which has the data."""
    with Tocsin(tmp_path) as service:
        service.publish("kept")
        store = service.redis_pid()
        workers = service.worker_pids()
        assert store is not None
        service.process.kill()
        until(lambda: not any(map(command_line, workers)), 20, "the end of the workers")
        assert command_line(store)
        with Tocsin(tmp_path, workers=1) as successor:
            assert command_line(store) == ""
            assert successor.read() == ["kept"]


def test_a_frozen_worker_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with Tocsin(tmp_path, drain_seconds="0") as service:
        os.kill(min(service.worker_pids()), signal.SIGSTOP)
        service.process.terminate()
        assert service.process.wait(25) == 0
        assert "a worker did not stop in time and is killed" in service.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_one_worker_needs_no_supervisor(tmp_path: Path, number: int) -> None:
    with Tocsin(tmp_path, workers=1) as service:
        assert service.publish("x")
        assert not service.worker_pids()
        store = service.redis_pid()
        assert store is not None
        os.killpg(service.process.pid, number)
        assert service.process.wait(20) == 0
        assert command_line(store) == ""
        assert "Traceback" not in service.log.read_text()


def test_a_given_redis_is_used_and_left_running(tmp_path: Path) -> None:
    with RedisServer() as store:
        with Tocsin(tmp_path, workers=1, redis_url=store.url) as service:
            assert service.publish("x")
            assert service.redis_pid() is None
            service.process.terminate()
            assert service.process.wait(20) == 0
        with store.client() as client:
            assert client.ping()


def test_a_redis_that_is_away_at_the_start_is_waited_for(tmp_path: Path) -> None:
    """No crash, no crash loop: alive, not ready, and then ready by itself."""
    store = RedisServer()
    service = Tocsin(tmp_path, workers=2, redis_url=store.url).start()
    try:
        until(lambda: httpx.get(f"{service.url}/livez", timeout=20).status_code == 200, 40, "life")
        assert httpx.get(f"{service.url}/readyz", timeout=20).status_code == 503
        workers = service.worker_pids()
        with store:
            until(service.all_ready, 30, "readiness")
            assert service.worker_pids() == workers
    finally:
        service.kill()


def test_on_a_terminal_it_says_where_it_is_and_how_to_stop_it(tmp_path: Path) -> None:
    parent, child = os.openpty()
    service = Tocsin(tmp_path, workers=1)
    try:
        service.start(stdout=child)
        os.close(child)
        said = bytearray()
        until(partial(_is_said, parent, said, b"Ctrl-C"), 40, "the banner")
        text = said.decode()
        for words in (f"http://127.0.0.1:{service.port}/", "workers", "redis-server", str(tmp_path / "data")):
            assert words in text
    finally:
        service.kill()
        os.close(parent)


def _is_said(descriptor: int, said: bytearray, words: bytes) -> bool:
    said += os.read(descriptor, 4096)
    return words in said


def refuse(*arguments: str, **settings: str) -> tuple[int, str]:
    """Exit code and the only line on stderr that is no log."""
    done = run_tocsin("serve", *arguments, **settings)
    assert done.stdout == ""
    [line] = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    return done.returncode, line


def test_a_taken_port_ends_the_start_with_3(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, line = refuse("--port", str(port), "--data-dir", str(tmp_path / "data"))
    assert code == 3
    assert line == f"tocsin: 127.0.0.1:{port} is taken by another program: stop it, or set TOCSIN_PORT (--port)"
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3"])
def test_an_open_door_ends_the_start_with_2(host: str) -> None:
    code, line = refuse("--host", host)
    assert code == 2
    assert line == (
        f"tocsin: TOCSIN_HOST: {host} can be reached from other machines: set TOCSIN_API_KEYS or TOCSIN_JWT_SECRET, "
        "or TOCSIN_ALLOW_ANONYMOUS=true to let everyone in"
    )


def test_a_redis_that_cannot_be_started_ends_the_start_with_5(tmp_path: Path) -> None:
    with (tmp_path / "not-a-folder").open("w"):
        code, line = refuse("--port", "0", "--data-dir", str(tmp_path / "not-a-folder"))
    assert code == 5
    assert line.startswith(f"tocsin: cannot use the data folder {tmp_path / 'not-a-folder'}: ")


@pytest.mark.parametrize(("workers", "module"), [("1", "nowhere"), ("2", "nowhere"), ("2", "stage.doomed")])
def test_an_application_that_cannot_start_ends_the_service_with_1(tmp_path: Path, workers: str, module: str) -> None:
    """No crash loop, also where something kills each worker."""
    program = (
        "import sys; from app.serve import serve; from app.settings import Settings;"
        f"sys.exit(serve(Settings(), 'tests.{module}:app'))"
    )
    service = Tocsin(tmp_path, command=("-c", program), port="0", workers=workers)  # type: ignore[arg-type]
    service.start()
    try:
        assert service.process.wait(90) == 1
        assert "tocsin: the workers could not start: the log says why" in service.log.read_text()
        assert service.redis_pid() is None
    finally:
        service.kill()
