"""A real service of a test's own: uvicorn with several workers on a real Redis."""

from __future__ import annotations

import contextlib
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import websockets
from websockets.asyncio.client import ClientConnection

from tests.stage.redis import free_port

NO_TLS = ssl.create_default_context()
"""Given to httpx, which would read all certificates of the machine for each request to a plain address."""
FAST = ("--ws", "app.sockets.uvicorn:WebSocketProtocol", "--http", "app.sockets.handshake:HttpProtocol")


def until(condition: Callable[[], Any], seconds: float = 15.0, what: str = "the condition") -> Any:
    """Poll a condition until it is true and return its value; an error of the network counts as false.

    Raises:
        TimeoutError: it did not become true in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(httpx.HTTPError, OSError):
            value = condition()
            if value:
                return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come true in {seconds} s")
        time.sleep(0.03)


class Service:
    """`uvicorn app.main:app --workers N` on 127.0.0.1; a context manager.

    `fast` chooses the socket kind, `patience` is how long uvicorn lets a worker stand still before it kills it
    (seconds), `settings` and `more` are TOCSIN_* variables without the prefix, in lower case.
    """

    def __init__(
        self,
        redis_url: str,
        *,
        workers: int = 1,
        fast: bool = True,
        patience: int = 5,
        settings: Mapping[str, str] | None = None,
        **more: str,
    ) -> None:
        settings = {**(settings or {}), **more}
        self.port = free_port()
        self.patience = patience
        self.workers = workers
        self.fast = fast
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TOCSIN_")},
            "TOCSIN_REDIS_URL": redis_url,
            "TOCSIN_WORKERS": str(workers),
            "TOCSIN_DRAIN_SECONDS": "0.5",
            "TOCSIN_PUBLISH_RATE": "0",  # the tests of rates set their own
            "TOCSIN_COMMAND_RATE": "0",
            **{f"TOCSIN_{name.upper()}": value for name, value in settings.items()},
        }
        token = settings.get("metrics_token")
        self._metrics_headers = {"authorization": f"Bearer {token}"} if token else {}
        self.process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.NamedTemporaryFile(prefix="tocsin-service-", suffix=".log", delete=False)  # noqa: SIM115 - lives as long as the service

    @property
    def url(self) -> str:
        """Address for HTTP."""
        return f"http://127.0.0.1:{self.port}"

    def ws(self, channel: str = "lobby", query: str = "") -> str:
        """Address for a plain socket."""
        return f"ws://127.0.0.1:{self.port}/ws?channel={channel}{query}"

    def log(self) -> str:
        """What the service has said so far."""
        return Path(self._log.name).read_text(errors="replace")

    def start(self, *, ready: bool = True) -> Self:
        """Start it; with `ready` wait until every worker can serve."""
        command = [sys.executable, "-m", "uvicorn", "app.main:app", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", str(self.workers), "--loop", "uvloop", "--http", "httptools", "--no-access-log"]
        command += ["--no-proxy-headers"]  # uvicorn would believe whoever comes from this machine
        command += ["--timeout-worker-healthcheck", str(self.patience)]
        command += FAST if self.fast else ()
        self.process = subprocess.Popen(
            command,
            env=self.environment,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=Path(__file__).parents[2],
            start_new_session=True,
        )
        if ready:
            try:
                until(self.all_ready, 90, "readiness of all workers")
            except BaseException:
                print(self.log())
                self.end()
                raise
        return self

    def all_ready(self) -> bool:
        """Whether every worker holds a lease and says that it is ready."""
        return sum(self.metric("ready").values()) >= self.workers

    def get(self, path: str, **options: Any) -> httpx.Response:
        """One request on a connection of its own (any worker may answer)."""
        return httpx.get(self.url + path, timeout=10, verify=NO_TLS, **options)

    def post(self, channel: str, body: Any, **options: Any) -> httpx.Response:
        """Publish by REST."""
        path = f"{self.url}/api/v1/channels/{channel}/messages"
        return httpx.post(path, json=body, timeout=10, verify=NO_TLS, **options)

    def metric(self, name: str) -> dict[str, float]:
        """One metric by worker label."""
        found = {}
        for line in self.get("/metrics", headers=self._metrics_headers).text.splitlines():
            if line.startswith(f"tocsin_{name}{{"):
                labels, value = line.rsplit(" ", 1)
                found[labels.split('worker="')[1].split('"')[0]] = float(value)
        return found

    def worker_pids(self) -> list[int]:
        """Process ids of the workers (the process itself when there is one)."""
        assert self.process is not None
        if self.workers == 1:
            return [self.process.pid]
        return [pid for pid in children(self.process.pid) if "resource_tracker" not in command_line(pid)]

    def pid_serving(self, port: int) -> int | None:
        """The worker at the other end of a connection from our TCP port; None when it is gone."""
        inode = _inode(self.port, port)
        for pid in self.worker_pids() if inode else ():
            with contextlib.suppress(OSError):
                for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                    if str(descriptor.readlink()) == f"socket:[{inode}]":
                        return pid
        return None

    def pids_connected(self) -> set[int]:
        """The workers with a connection to anybody."""
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        peers = [int(each[2].split(":")[1], 16) for each in lines if each[1].endswith(f":{self.port:04X}")]
        return {pid for peer in peers if peer and (pid := self.pid_serving(peer)) is not None}

    @contextlib.asynccontextmanager
    async def connect(self, channel: str = "lobby", query: str = "", **options: Any) -> AsyncIterator[ClientConnection]:
        """A plain client. What it has not read does not keep it from closing."""
        address = self.ws(channel, query)
        async with websockets.connect(address, compression=None, max_queue=None, **options) as client:
            yield client

    def stop(self, seconds: float = 25) -> int:
        """SIGTERM; returns the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(self.log())
        self.end()

    def end(self) -> None:
        """Stop it by whatever means, and forget its log."""
        assert self.process is not None
        if self.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.stop(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(5)
        self._log.close()
        Path(self._log.name).unlink()


def _inode(port: int, peer: int) -> str | None:
    """The kernel's number of the TCP socket on `port` that is connected to `peer`."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(f":{port:04X}") and fields[2].endswith(f":{peer:04X}"):
            return fields[9]
    return None


def children(pid: int) -> list[int]:
    """Child processes, by /proc."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def command_line(pid: int) -> str:
    """How a process was started; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""
