"""Who takes part: how each server is started and spoken to. Each is set up as its own documentation does it well."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from bench.install import ROOT, SERVERS, floor_program, node_server, rival_python

Command = Callable[[int, int], list[str]]
"""Port and number of workers -> the command line. Installs what it needs; raises `Missing`."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One server of the comparison.

    Attributes:
        name: as `--only` takes it.
        title: as the tables show it.
        redis: whether it uses one.
        path: where its WebSocket is.
        speech: options of the load program for its protocol.
        environment: port, workers and Redis URL -> variables.
    """

    name: str
    title: str
    command: Command
    redis: bool = True
    path: str = "/ws"
    speech: tuple[str, ...] = ()
    environment: Callable[[int, int, str], Mapping[str, str]] = field(default=lambda _p, _w, url: {"REDIS_URL": url})

    @property
    def ours(self) -> bool:
        """Whether it is this service."""
        return self.name.startswith("tocsin")


def _tocsin(_port: int, _workers: int) -> list[str]:
    script = Path(sys.executable).with_name("tocsin")
    start = [str(script)] if script.exists() else [sys.executable, "-c", "from app.cli import main; main()"]
    return [*start, "serve"]


def _tocsin_environment(port: int, workers: int, url: str) -> dict[str, str]:
    wanted = {
        "TOCSIN_HOST": "127.0.0.1",
        "TOCSIN_PORT": str(port),
        "TOCSIN_WORKERS": str(workers),
        "TOCSIN_REDIS_URL": url,
        "TOCSIN_LOG_LEVEL": "warning",
        "TOCSIN_PUBLISH_RATE": "0",  # the publishers of a benchmark are the abuse that the limit is for
        "TOCSIN_COMMAND_RATE": "0",  # likewise
        "TOCSIN_FRAME_RATE": "0",
    }
    known = _settings()
    return {name: value for name, value in wanted.items() if not known or name in known}


@lru_cache(maxsize=1)
def _settings() -> frozenset[str]:
    """The variables that this version of the service has: an unknown one would be refused. Empty: it cannot be asked,
    and its own start will say why.
    """
    program = "from app.settings import Settings; print(*Settings.model_fields)"
    asked = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    return frozenset(f"TOCSIN_{name.upper()}" for name in asked.stdout.split())


def _uvicorn(python: Path | str, app: str, port: int, *more: str) -> list[str]:
    """Uvicorn as a fair deployment has it: uvloop, httptools, no log line per request."""
    return [
        str(python), "-m", "uvicorn", app, "--port", str(port), "--loop", "uvloop", "--http", "httptools",
        "--no-access-log", "--log-level", "warning", *more,
    ]  # fmt: skip


def _portable(port: int, workers: int) -> list[str]:
    return _uvicorn(sys.executable, "app.main:app", port, "--workers", str(workers))


def _rival(module: str) -> Command:
    def command(port: int, _workers: int) -> list[str]:
        return _uvicorn(rival_python(), f"{module}:app", port, "--app-dir", str(SERVERS))

    return command


NATIVE = (
    "-r", "tocsin.v1", "-w", '"type":"subscribed"', "-a", '{"type":"published","ref":', "-S", ',"since":"',
    "-f", '{"type":"publish","ref":%R,"channel":"bench","data":"%M"}',
)  # fmt: skip
SOCKET_IO = ("-g", "40", "-k", "2=3", "-f", '42["m","%M"]')
SOCKET_IO_PATH = "/socket.io/?EIO=4&transport=websocket"

CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("tocsin", "**Tocsin**", _tocsin, environment=_tocsin_environment),
        Contender("tocsin-portable", "Tocsin, portable path", _portable, environment=_tocsin_environment),
        Contender(
            "tocsin-native", "Tocsin, `tocsin.v1`", _tocsin, environment=_tocsin_environment,
            speech=(*NATIVE, "-g", '{"type":"subscribe","ref":1,"channel":"bench"%S}'),
        ),
        Contender(
            "tocsin-native-own", "Tocsin, `tocsin.v1`, a channel each", _tocsin, environment=_tocsin_environment,
            speech=(*NATIVE, "-g", '{"type":"subscribe","ref":1,"channel":"bench:%N"%S}'),
        ),
        Contender(
            "tocsin-native-members", "Tocsin, `tocsin.v1`, members", _tocsin, environment=_tocsin_environment,
            speech=(*NATIVE, "-g",
                    '{"type":"subscribe","ref":1,"channel":"bench:%C","presence":{"info":{}}%S}'),
        ),
        Contender(
            "floor-send", "C, one `send()` per message and socket", lambda p, _: [str(floor_program()), str(p), "send"],
            redis=False,
        ),
        Contender(
            "floor-join", "C, joined: one `send()` per turn and socket",
            lambda p, _: [str(floor_program()), str(p), "join"], redis=False,
        ),
        Contender(
            "socketio", "Socket.IO 4 + Redis adapter (Node)", lambda p, _: ["node", str(node_server()), str(p)],
            path=SOCKET_IO_PATH, speech=SOCKET_IO,
            environment=lambda _p, _w, url: {"REDIS_URL": url, "NODE_ENV": "production"},
        ),
        Contender("websockets", "`websockets` `broadcast()`, no Redis",
            lambda p, _: [str(rival_python()), str(SERVERS / "websockets_broadcast.py"), str(p)], redis=False,
        ),
        Contender("fastapi-tutorial", "FastAPI ConnectionManager, no Redis", _rival("fastapi_tutorial"), redis=False),
        Contender("fastapi-redis", "FastAPI + Redis Pub/Sub + `gather`", _rival("fastapi_redis")),
        Contender(
            "fastapi-publish", "FastAPI + Redis, publishers only publish", _rival("fastapi_redis"),
            speech=("-U", "/publish"),
        ),
        Contender("fastapi-receive", "FastAPI, a `receive_text` loop", _rival("fastapi_receive"), redis=False),
        Contender(
            "python-socketio", "python-socketio + Redis manager", _rival("python_socketio"), path=SOCKET_IO_PATH,
            speech=SOCKET_IO,
        ),
    )
}  # fmt: skip


def load_processes() -> int:
    """How many load processes this machine has room for beside a server and a Redis."""
    return max(1, min(4, len(os.sched_getaffinity(0)) - 2))
