"""A real Redis of a test's own, alone, with replicas, or watched by Sentinels: started, killed, frozen, restarted.

The service connects as the user of `deploy/redis.acl`, the tests themselves as the default user, who may do all.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

RULES = Path(__file__).parents[2] / "deploy" / "redis.acl"
CREDENTIALS = "tocsin:of-the-tests"
"""Of the service's user; they stand before the host in `url`."""
_WIDE = ("~*:{*}:*", "~*:acks", "&*:{*}", "&*:control", "&*:control:*")
"""The keys and channels of the service under whatever prefix a test has chosen; all else of their form is held."""


def service_user(*, narrow: bool = False) -> list[str]:
    """Name and rules of the service's user as `deploy/redis.acl` has them, with a password; with `narrow` also its keys
    and channels are those, else what lies under any prefix.
    """
    [line] = [line for line in RULES.read_text("utf-8").splitlines() if line.startswith("user ")]
    _, name, *rules = line.split()
    user, _, password = CREDENTIALS.partition(":")
    assert name == user
    patterns = [rule for rule in rules if rule[0] in "~&"]
    assert patterns == ["~tocsin:*", "&tocsin:*"]
    if not narrow:
        rules = [rule for rule in rules if rule not in patterns] + list(_WIDE)
    if redis_version() >= (7, 2):
        rules.append("+waitaof")
    return [name, *(f">{password}" if rule == "#PASSWORD_SHA256" else rule for rule in rules)]


def redis_binary() -> str:
    """Path of redis-server; without one a laptop skips and CI fails."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("redis-server is missing: .ci/run must install it")
        pytest.skip("redis-server is not installed")
    return found


@cache
def redis_version() -> tuple[int, int]:
    """Major and minor version of the server that `redis_binary` finds."""
    text = subprocess.run([redis_binary(), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"v=(\d+)\.(\d+)", text)
    assert found is not None, text
    return int(found[1]), int(found[2])


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RedisServer:
    """One redis-server on a port of 127.0.0.1 with a data folder of its own; a context manager.

    `options` and `more` are command-line options (`appendonly="yes"`, underscores stand for hyphens). `narrow` holds
    the service to the prefix `tocsin`.
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        narrow: bool = False,
        options: Mapping[str, str] | None = None,
        **more: str,
    ) -> None:
        self.port = port or free_port()
        self.narrow = narrow
        self.folder = Path(tempfile.mkdtemp(prefix="tocsin-redis-"))
        self.options = {"save": "", "appendonly": "no", **(options or {}), **more}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Address for the service, with its user."""
        return self.address(CREDENTIALS)

    def address(self, credentials: str = "") -> str:
        """Address with `user:password`; without, that of the default user."""
        return f"redis://{credentials}{'@' * bool(credentials)}127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        """A synchronous client that does not retry; close it."""
        return redis.Redis(host="127.0.0.1", port=self.port, socket_timeout=5, retry=Retry(NoBackoff(), 0))

    def command(self) -> list[str]:
        """How it is started."""
        arguments = [redis_binary(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        for name, value in self.options.items():
            arguments += [f"--{name.replace('_', '-')}", value]
        return [*arguments, "--user", *service_user(narrow=self.narrow)]

    def start(self) -> Self:
        """Start it and wait until it answers."""
        # restore_signals: a write beyond `limit_files` must fail, not kill (SIGXFSZ).
        self.process = subprocess.Popen(
            self.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, restore_signals=False
        )
        deadline = time.monotonic() + 10
        with self.client() as client:
            while True:
                try:
                    if client.ping():
                        return self
                except redis.RedisError:
                    if self.process.poll() is not None or time.monotonic() > deadline:
                        raise
                    time.sleep(0.02)

    def follow(self, primary: RedisServer) -> None:
        """Become a replica of another server, and wait until it has all of it and says so at once: after the first
        synchronisation Redis may take a second for its first acknowledgement.
        """
        with primary.client() as client:
            client.config_set("repl-diskless-sync-delay", "0")
        with self.client() as client:
            client.replicaof("127.0.0.1", primary.port)

        def acknowledged(client: redis.Redis) -> bool:
            client.publish("synchronised", "")  # what a replica is given too
            info = client.info("replication")
            known = [one for one in info.values() if isinstance(one, dict) and one.get("port") == self.port]
            return any(one["state"] == "online" and client.wait(info["connected_slaves"], 5000) for one in known)

        primary._until(acknowledged)

    def lead(self) -> None:
        """Follow nobody."""
        with self.client() as client:
            client.replicaof("NO", "ONE")

    def _until(self, condition: Callable[[redis.Redis], object]) -> None:
        deadline = time.monotonic() + 10
        with self.client() as client:
            while not condition(client):
                if time.monotonic() > deadline:
                    raise TimeoutError("the server does not come to it")
                time.sleep(0.02)

    def limit_files(self, size: int = resource.RLIM_INFINITY) -> None:
        """From now on no file of it may grow beyond so many bytes, as if the disk were full (setrlimit(2))."""
        assert self.process is not None
        hard = resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (size, hard))

    def signal(self, number: int) -> None:
        """Send a signal: SIGSTOP freezes it, SIGCONT thaws it."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, and wait for the end."""
        self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
            self.process.wait(10)
        self.process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class SentinelServer(RedisServer):
    """One redis-sentinel that watches a primary by the name of `main`; a context manager.

    `down_after` is in ms: below a second and a half a Sentinel takes its own reconnecting for a loss, and replaces one
    primary after the other. `quorum` Sentinels must agree that the primary is gone.
    """

    def __init__(self, primary: RedisServer, *, quorum: int, down_after: int) -> None:
        super().__init__()
        self._lines = (
            f"port {self.port}",
            "bind 127.0.0.1",
            f"sentinel monitor main 127.0.0.1 {primary.port} {quorum}",
            f"sentinel down-after-milliseconds main {down_after}",
            "sentinel failover-timeout main 3000",
            "sentinel parallel-syncs main 1",
        )

    def command(self) -> list[str]:
        """How it is started: with a file of its own, where it keeps what it has learned."""
        configuration = self.folder / "sentinel.conf"
        if not configuration.exists():
            configuration.write_text("\n".join(self._lines) + "\n")
        return [redis_binary(), str(configuration), "--sentinel"]

    def knows(self) -> tuple[int, int, int]:
        """Port of the primary, number of its replicas and of the other Sentinels, as it sees them."""
        with self.client() as client:
            state = client.sentinel_master("main")
        return int(state["port"]), int(state["num-slaves"]), int(state["num-other-sentinels"])


class Watched:
    """A primary with replicas, and Sentinels that replace it when it is gone; a context manager."""

    def __init__(
        self,
        *,
        replicas: int = 1,
        sentinels: int = 3,
        down_after: int = 1500,
        options: Mapping[str, str] | None = None,
    ) -> None:
        options = {"repl_diskless_sync_delay": "0", **(options or {})}
        self.servers = [RedisServer(options=options) for _ in range(replicas + 1)]
        self.sentinels = [
            SentinelServer(self.servers[0], quorum=sentinels // 2 + 1, down_after=down_after) for _ in range(sentinels)
        ]

    @property
    def url(self) -> str:
        """Address for the service, with its user at the primary."""
        return self.address(CREDENTIALS)

    def address(self, credentials: str = "") -> str:
        """Address with `user:password` at the primary."""
        hosts = ",".join(f"127.0.0.1:{one.port}" for one in self.sentinels)
        return f"redis+sentinel://{credentials}{'@' * bool(credentials)}{hosts}/main"

    @property
    def primary(self) -> RedisServer:
        """The server that most Sentinels name."""
        named = sorted(one.knows()[0] for one in self.sentinels)[len(self.sentinels) // 2]
        return next(one for one in self.servers if one.port == named)

    def wait_for_another(self, than: RedisServer, seconds: float = 20) -> RedisServer:
        """Wait until most Sentinels name another primary."""
        deadline = time.monotonic() + seconds
        while (primary := self.primary) is than:
            if time.monotonic() > deadline:
                raise TimeoutError("the Sentinels have replaced nobody")
            time.sleep(0.05)
        return primary

    def wait_until_whole(self, seconds: float = 30) -> None:
        """Wait until one server leads, the others have all of it, and the Sentinels see this and each other."""
        deadline = time.monotonic() + seconds
        while not self._is_whole():
            if time.monotonic() > deadline:
                raise TimeoutError("the Sentinels do not find each other, or a replica its primary")
            time.sleep(0.05)

    def _is_whole(self) -> bool:
        known = (self.primary.port, len(self.servers) - 1, len(self.sentinels) - 1)
        if any(sentinel.knows() != known for sentinel in self.sentinels):
            return False
        with self.primary.client() as client:
            info = client.info("replication")
        online = [one for one in info.values() if isinstance(one, dict) and one.get("state") == "online"]
        return info["role"] == "master" and len(online) == len(self.servers) - 1

    def __enter__(self) -> Self:
        """Start all, and wait until the Sentinels know them and each other."""
        try:
            for server in self.servers:
                server.start()
            for server in self.servers[1:]:
                server.follow(self.servers[0])
            for sentinel in self.sentinels:
                sentinel.start()
            self.wait_until_whole()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """Kill all."""
        for server in (*self.sentinels, *self.servers):
            server.__exit__(None, None, None)
