"""Processes of a measurement: a Redis of its own, one server, and what the kernel says about them.

Linux only: processes are found in `/proc`.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.install import ROOT, WORK, Missing

START_SECONDS = 30.0
STOP_SECONDS = 3.0
HANDSHAKE = (
    "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class NotStarted(Exception):
    """A server did not accept a WebSocket in time; the text is the last line that it wrote."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue  # it has just ended
            children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for member in found:
        found.extend(children.get(member, ()))
    return found


def connections(pids: Sequence[int], port: int) -> list[int]:
    """Established connections to `port` per process, only processes that have any."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    wanted = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "01"}
    counts = []
    for pid in pids:
        held = 0
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                held += str(descriptor.readlink()) in wanted
            except OSError:
                continue
        counts.append(held)
    return [count for count in counts if count]


@contextmanager
def running(
    command: Sequence[str], *, environment: Mapping[str, str], log: Path, folder: Path = ROOT
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, so that Ctrl-C reaches only the bench; ended with all its descendants."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    members = family(process.pid)
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
    for pid in members[1:]:
        if _session(pid) == process.pid:  # not a stranger under a number used again
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


@contextmanager
def redis_server() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A Redis of this measurement's own, with the append-only file on as our compose file has it; and its URL.

    Raises:
        Missing: neither redis-server nor valkey-server is installed.
        NotStarted: it does not answer.
    """
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise Missing("redis-server is not installed")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="tocsin-bench-") as data:
        options = {"port": str(port), "bind": "127.0.0.1", "dir": data, "save": "", "appendonly": "yes"}
        command = [program, *(word for name, value in options.items() for word in (f"--{name}", value))]
        log = _log("redis")
        with running(command, environment={}, log=log) as process:
            wait_until(lambda: _answers(port, b"PING\r\n", b"+PONG"), process, log)
            yield process, f"redis://127.0.0.1:{port}/0"


@contextmanager
def server(
    name: str, command: Sequence[str], environment: Mapping[str, str], port: int, path: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A contender that accepts WebSockets on `path`.

    Raises:
        NotStarted: it ended, or accepted none within `START_SECONDS`.
    """
    log = _log(name)
    with running(command, environment=environment, log=log) as process:
        request = HANDSHAKE.format(path=path, port=port).encode()
        wait_until(lambda: _answers(port, request, b"HTTP/1.1 101"), process, log)
        yield process


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Ask until the answer is yes.

    Raises:
        NotStarted: the process ended or the time is over.
    """
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        ended = process.poll() is not None
        if ended or time.monotonic() > deadline:
            said = log.read_text(errors="replace").strip().splitlines()
            state = (
                f"ended with {process.returncode}" if ended else f"accepts no connection after {START_SECONDS:.0f} s"
            )
            raise NotStarted(f"{state}: {said[-1][:200] if said else 'it wrote nothing'}")
        time.sleep(0.05)


def _answers(port: int, request: bytes, start: bytes) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as peer:
            peer.sendall(request)
            return peer.recv(4096).startswith(start)
    except OSError:
        return False


def _log(name: str) -> Path:
    folder = WORK / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.log"
