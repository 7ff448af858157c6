"""The processes that serve, by uvicorn: one worker in this process, or several under a supervisor.

Leans on `uvicorn.supervisors.multiprocess`, whose version is pinned. Nothing here knows Redis or the command line.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import wait

import structlog
import uvicorn
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from app import logs
from app.settings import Settings

KILL_SECONDS = 4
"""What a worker has beyond uvicorn's own grace before it is killed."""
TRIES = 3
"""How often in a row a worker may be killed from outside before any has served."""
_STRUCK = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT)

_log = structlog.stdlib.get_logger(__name__)


class Config(uvicorn.Config):
    """uvicorn's configuration; it is what a spawned worker gets, and `load` is where its life begins."""

    def load(self) -> None:
        """Prepare the process if it is a worker, then import the application."""
        if (parent := multiprocessing.parent_process()) is not None:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closing terminal sends it to all; the supervisor decides
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # uvicorn listens
            settings = Settings()
            logs.configure(settings.log_format, settings.log_level)
            threading.Thread(target=_end_with, args=(parent.sentinel,), name="orphan", daemon=True).start()
        super().load()


def _end_with(parent: int) -> None:
    """Drain when the supervisor is gone: nobody would ever stop a worker that it left behind."""
    wait([parent])
    os.kill(os.getpid(), signal.SIGTERM)


class Single(uvicorn.Server):
    """One worker in this process."""

    def __init__(self, config: Config, announce: Callable[[], None]) -> None:
        """`announce` is called once, when it serves."""
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to serve."""
        await super().startup(sockets)
        self._announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain and end."""
        _log.info("stopping")
        await super().shutdown(sockets)


@dataclass(slots=True)
class _Health:
    """What the supervisor knows of a worker: when (monotonic) it asked without an answer yet, whether it has served,
    how many workers in a row ended in its place without serving, when it may be replaced.
    """

    asked: float | None = None
    served: bool = False
    failures: int = 0
    retry_at: float | None = None


class Supervisor(Multiprocess):
    """uvicorn's supervisor, except that it never waits for one worker: a frozen one must not delay a signal, nor the
    replacement of another.
    """

    def __init__(self, config: Config, sockets: list[socket.socket], announce: Callable[[], None]) -> None:
        """`announce` is called once, when all workers serve."""
        super().__init__(config, sockets)
        self.failed = False
        self._announce = announce
        self._announced = False
        self._known: dict[Process, _Health] = {}

    def init_processes(self) -> None:
        """Start the workers."""
        with _spawning():
            super().init_processes()

    def keep_subprocess_alive(self) -> None:
        """Look at every worker and replace those that ended or hang; one that cannot even start ends the service."""
        now = time.monotonic()
        self._known = {worker: self._known.get(worker, _Health()) for worker in self.processes}
        for index, worker in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            health = self._known[worker]
            if health.retry_at is None:
                if worker.process.is_alive() and not self._hangs(worker, health, now):
                    continue
                struck = worker.exitcode in _STRUCK  # it says nothing about whether the application can start
                worker.kill()
                worker.process.join()
                if not self._announced and not (struck and health.failures < TRIES):
                    _log.error("a worker could not start", pid=worker.pid, exit_code=worker.exitcode)
                    self.failed = True
                    self.should_exit.set()
                    return
                health.failures = 0 if health.served else health.failures + 1
                health.retry_at = now + (min(2.0**health.failures, 30.0) if health.failures else 0.0)
                _log.warning("a worker ended and is replaced", pid=worker.pid, exit_code=worker.exitcode)
            if now >= health.retry_at:
                self.processes[index] = self._replace(health)
        if not self._announced and all(health.served for health in self._known.values()):
            self._announced = True
            self._announce()

    def _replace(self, health: _Health) -> Process:
        with _spawning():
            worker = Process(self.config, self.sockets)
            worker.start()
        self._known[worker] = _Health(failures=health.failures)
        return worker

    def _hangs(self, worker: Process, health: _Health, now: float) -> bool:
        """Take the answer to the last question and ask the next one, without waiting for it."""
        try:
            while worker.parent_conn.poll(0):
                health.served = bool(worker.parent_conn.recv()) or health.served
                health.asked = None
            if health.asked is None:
                worker.parent_conn.send(b"ping")
                health.asked = now
        except (OSError, EOFError):
            return False  # it is ending: seen on the next turn
        return now - health.asked > self.config.timeout_worker_healthcheck

    def join_all(self) -> None:
        """Wait for the workers' drain; one that does not end in time is killed."""
        deadline = time.monotonic() + (self.config.timeout_graceful_shutdown or 0) + KILL_SECONDS
        for worker in self.processes:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.exitcode is None:
                _log.warning("a worker did not stop in time and is killed", pid=worker.pid)
                worker.process.kill()
                worker.process.join()

    def handle_int(self) -> None:
        """Ctrl-C: stop. The workers in a terminal have heard it too."""
        self.handle_term()

    def handle_term(self) -> None:
        """Stop."""
        _log.info("stopping")
        self.should_exit.set()

    def handle_hup(self) -> None:
        """Replace the workers one by one; but a terminal that closes means stop."""
        if sys.stdin is not None and sys.stdin.isatty():
            self.handle_term()
        else:
            super().handle_hup()


@contextmanager
def _spawning() -> Iterator[None]:
    """While workers are spawned: they inherit that Ctrl-C has to wait (until uvicorn listens to it; else each would
    print a traceback), and do not import our `__main__`, which is the command line.
    """
    main = vars(sys.modules["__main__"])
    kept = {name: main.get(name) for name in ("__spec__", "__file__")}
    resource_tracker.ensure_running()  # each spawn would start it, and it leaves Ctrl-C unblocked
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    main.update(__spec__=None, __file__=None)
    try:
        yield
    finally:
        main.update(kept)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
