"""What `tocsin doctor` looks at: the settings, the machine, Redis."""

from __future__ import annotations

import asyncio
import resource
import secrets
import sys
import time
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from app.brokers.address import SENTINEL_SCHEME
from app.brokers.examine import Finding, Level
from app.brokers.redis import RedisBroker
from app.core.errors import TocsinError
from app.core.messages import Attendance, Cleared, Publication
from app.embedded import NoRedis, find_engine
from app.serve import BACKLOG, FILES, CannotServe, check_host
from app.settings import Settings


def examine(settings: Settings) -> list[Finding]:
    """Everything that can be found out without serving."""
    return [*_examine_settings(settings), *_examine_machine(), *_examine_redis(settings)]


def _examine_settings(settings: Settings) -> list[Finding]:
    try:
        check_host(settings)
    except CannotServe as error:
        return [Finding(Level.PROBLEM, str(error))]
    ways = [settings.token_rules and "a token", settings.api_keys and "an API key"]
    who = " or ".join(way for way in ways if way) or "nothing"
    if settings.allow_anonymous:
        who = "nothing (anonymous use is allowed)"
    return [Finding(Level.FINE, f"the settings are valid; clients of {settings.host}:{settings.port} need {who}")]


def _examine_machine() -> list[Finding]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = sys.maxsize if hard == resource.RLIM_INFINITY else hard
    findings = [
        Finding(Level.FINE, f"{'unlimited' if files == sys.maxsize else files} open files are allowed")
        if files >= FILES
        else Finding(
            Level.WARNING,
            f"{files} open files are allowed: a worker can hold that many connections at most",
            f"raise the hard limit to {FILES} or more: LimitNOFILE= in systemd, ulimits in compose, limits.conf",
        )
    ]
    try:
        waiting = int(Path("/proc/sys/net/core/somaxconn").read_text("ascii"))
    except (OSError, ValueError):  # not Linux
        return findings
    if waiting < BACKLOG:
        advice = f"sysctl -w net.core.somaxconn={BACKLOG}"
        sentence = f"the kernel lets {waiting} new connections wait: more at once are turned away"
        findings.append(Finding(Level.WARNING, sentence, advice))
    return findings


def _examine_redis(settings: Settings) -> list[Finding]:
    if settings.redis_url is None:
        try:
            engine = find_engine()
        except NoRedis as error:
            return [Finding(Level.PROBLEM, str(error))]
        return [Finding(Level.FINE, f"an embedded Redis would run: {engine} ({engine.path})")]
    url = settings.redis_url.get_secret_value()
    try:
        if url.startswith(f"{SENTINEL_SCHEME}://"):
            return asyncio.run(_ask(_broker(url, settings)))
        with Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5, retry=Retry(NoBackoff(), 0)) as client:
            client.ping()  # the broker does not say why it cannot connect: its words reach clients
    except (RedisError, ValueError) as error:
        return [Finding(Level.PROBLEM, f"Redis at {settings.redis_address} cannot be used: {error}")]
    return asyncio.run(_ask(_broker(url, settings)))


def _broker(url: str, settings: Settings) -> RedisBroker:
    return RedisBroker(
        url, settings.redis_prefix, settings.channels, ack=settings.ack, ack_timeout=settings.ack_timeout
    )


async def _ask(broker: RedisBroker) -> list[Finding]:
    broker.start(_Deaf(), f"doctor-{secrets.token_hex(8)}")
    deadline = time.monotonic() + 5
    try:
        while True:
            try:
                return await broker.examine()
            except TocsinError as error:  # not connected yet
                if time.monotonic() > deadline:
                    return [Finding(Level.PROBLEM, next(iter(broker.problems()), error.message))]
                await asyncio.sleep(0.05)
    finally:
        await broker.close()


class _Deaf:
    """A listener that needs no messages: the doctor subscribes to nothing."""

    def confirmed(self, channel: str) -> None: ...

    def received(self, channel: str, item: Publication | Cleared | Attendance) -> None: ...

    def drained(self) -> None: ...

    def settled(self) -> None: ...

    def told(self, message: bytes) -> None: ...

    def lost(self) -> None: ...
