"""`tocsin serve`: the machine's limits, the port, the embedded Redis, uvicorn with its workers; and the way back.

What can fail for the operator fails here first, in one line and with an exit code, before any worker exists. Workers
get the settings through the environment and nothing else. Redis is started before them and stopped after them.
"""

from __future__ import annotations

import ipaddress
import math
import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from errno import EADDRINUSE
from types import FrameType
from typing import NoReturn

import structlog
from rich.console import Console

from app import __version__, logs
from app.embedded import EmbeddedRedis, NoRedis
from app.exits import Exit
from app.processes import Config, Single, Supervisor
from app.settings import Settings

APPLICATION = "app.main:app"
PROTOCOL = "app.sockets.uvicorn:WebSocketProtocol"
HTTP = "app.sockets.handshake:HttpProtocol"
BACKLOG = 4096
"""Connections that wait in the kernel to be accepted (listen(2))."""
FILES = 65_535
"""Open files below which an operator is warned: each connection is one."""
GRACE_SECONDS = 8
"""What a worker has beyond the drain to end its connections."""
HEALTH_SECONDS = 30
"""A worker that does not answer the supervisor for so long is replaced."""

Address = tuple[socket.AddressFamily, str]
"""Family and numeric host."""

_log = structlog.stdlib.get_logger(__name__)


class CannotServe(Exception):
    """The service cannot start; the message is one sentence for the operator."""

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.code = code


def serve(settings: Settings, application: str = APPLICATION, protocol: str = PROTOCOL) -> Exit:
    """Run the service until SIGTERM or SIGINT, then drain. Must be called in the main thread.

    Args:
        settings: as read from the environment: the workers read it again.
        application: ASGI application, as `module:attribute`.
        protocol: uvicorn's WebSocket protocol class, likewise.
    """
    logs.configure(settings.log_format, settings.log_level)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _interrupt)
    redis = None if settings.redis_url else EmbeddedRedis(settings.data_dir)
    sockets: list[socket.socket] = []
    try:
        addresses = check_host(settings)
        raise_file_limit()
        sockets = listen(addresses, settings.port)
        if redis is not None:
            redis.start()
            os.environ["TOCSIN_REDIS_URL"] = redis.url
        return _run(settings, redis, sockets, application, protocol)
    except CannotServe as error:
        _complain(str(error))
        return error.code
    except NoRedis as error:
        _complain(str(error))
        return Exit.REDIS
    except KeyboardInterrupt:  # before the server had taken over the signals
        return Exit.DONE
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        for listener in sockets:
            listener.close()
        if redis is not None:
            redis.stop()


def check_host(settings: Settings) -> list[Address]:
    """The addresses of the host, if it is safe to listen there.

    Raises:
        CannotServe: the name is not known, or it is not loopback and nobody said who may come in.
    """
    try:
        found = socket.getaddrinfo(settings.host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CannotServe(Exit.USAGE, f"TOCSIN_HOST: {settings.host} is not a known host: {reason}") from None
    addresses: list[Address] = list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))
    if not settings.auth_configured and not settings.allow_anonymous:
        for _, address in addresses:
            if not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
                raise CannotServe(
                    Exit.USAGE,
                    f"TOCSIN_HOST: {settings.host} can be reached from other machines: set TOCSIN_API_KEYS or "
                    "TOCSIN_JWT_SECRET, or TOCSIN_ALLOW_ANONYMOUS=true to let everyone in",
                )
    return addresses


def listen(addresses: Sequence[Address], port: int) -> list[socket.socket]:
    """Listening sockets, one an address, all on one port. Who connects before the workers are there waits in them.

    Raises:
        CannotServe: the port is taken or not ours to take.
    """
    sockets: list[socket.socket] = []
    reason: OSError | None = None
    for family, address in addresses:
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and len(addresses) > 1:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            listener.bind((address, sockets[0].getsockname()[1] if sockets else port))
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            # A machine without IPv6 still has a name that says ::1.
            reason = error if reason is None or family == socket.AF_INET else reason
            continue
        sockets.append(listener)
    if reason is not None and (not sockets or reason.errno == EADDRINUSE):
        for listener in sockets:
            listener.close()
        place = f"{addresses[0][1]}:{port}"
        if reason.errno == EADDRINUSE:
            raise CannotServe(Exit.PORT, f"{place} is taken by another program: stop it, or set TOCSIN_PORT (--port)")
        raise CannotServe(Exit.PORT, f"cannot listen on {place}: {reason.strerror}")
    return sockets


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard one and return it; too few are worth a warning."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 1_048_576) if hard != resource.RLIM_INFINITY else 1_048_576
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (OSError, ValueError):  # macOS has a limit of its own below the hard one
            _log.debug("the limit of open files stays", soft=soft, hard=hard)
    if soft < FILES:
        _log.warning(
            "few open files are allowed: a worker can hold that many connections at most", files=soft, wise=FILES
        )
    return soft


def _run(
    settings: Settings, redis: EmbeddedRedis | None, sockets: list[socket.socket], application: str, protocol: str
) -> Exit:
    config = Config(
        application,
        host=settings.host,
        port=sockets[0].getsockname()[1],
        workers=settings.workers,
        loop="uvloop",
        http=HTTP,
        ws=protocol,
        ws_max_size=settings.max_message,
        ws_ping_interval=None,  # the service pings by itself
        ws_per_message_deflate=False,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        backlog=BACKLOG,
        timeout_graceful_shutdown=math.ceil(settings.drain_seconds) + GRACE_SECONDS,
        timeout_worker_healthcheck=HEALTH_SECONDS,
    )

    def announce() -> None:
        _announce(settings, redis, config.port)

    if settings.workers > 1:
        supervisor = Supervisor(config, sockets, announce)
        supervisor.run()
        failed = supervisor.failed
    else:
        server = Single(config, announce)

        def stop(_number: int, _frame: FrameType | None) -> None:
            server.should_exit = True

        # uvicorn raises the signal again after the drain: with these handlers that does not end us before Redis.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, stop)
        try:
            server.run(sockets)
            failed = False
        except SystemExit:  # uvicorn's way to say that the application did not start; it has logged why
            failed = True
    if failed:
        _complain("the workers could not start: the log says why")
        return Exit.REFUSED
    _log.info("stopped")
    return Exit.DONE


def _announce(settings: Settings, redis: EmbeddedRedis | None, port: int) -> None:
    """Say where the service is: to a person on a terminal, to the log elsewhere."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    store = f"{redis.engine}, embedded, data in {redis.folder}" if redis else settings.redis_address
    if not sys.stdout.isatty():
        _log.info("serving", url=f"http://{place}/", workers=settings.workers, redis=store)
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"\n  [bold]Tocsin {__version__}[/bold] rings\n")
    for name, value in {
        "page": f"[bold cyan]http://{place}/[/bold cyan]",
        "sockets": f"ws://{place}/ws",
        "workers": str(settings.workers),
        "Redis": store,
        "stop": "Ctrl-C",
    }.items():
        console.print(f"  [dim]{name:<8}[/dim] {value}")
    console.print()


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _complain(sentence: str) -> None:
    print(f"tocsin: {sentence}", file=sys.stderr)  # noqa: T201 - the operator's one line
