"""The start-up check: may this Redis keep a channel's history, and would it let us tell anyone?

What is a problem keeps the worker from being ready; what is only unwise is a warning.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from app.brokers import AckLevel
from app.brokers.acks import fsyncs_always
from app.brokers.commands import Commands
from app.brokers.link import Refusal
from app.core.errors import TocsinError

_PUBSUB_HARD_LIMIT = 64 * 1_048_576
_OLDEST = (6, 2)
_PROBE_MS = 60_000


class Level(StrEnum):
    """How bad a finding is; a problem keeps the worker from being ready."""

    PROBLEM = "problem"
    WARNING = "warning"
    FINE = "fine"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: what is so, and what to do about it (empty when fine)."""

    level: Level
    sentence: str
    advice: str = ""


async def examine(commands: Commands, prefix: str, nonce: Callable[[], bytes]) -> list[Finding]:
    """Look at everything that can be known before the first client comes. Never raises for what it finds.

    Args:
        commands: a connected line.
        prefix: of keys and Pub/Sub channels, without the colon.
        nonce: another one with each call.

    Raises:
        Unavailable: the store went away meanwhile.
    """
    findings = [*await _read_info(commands), *await _read_settings(commands)]
    if not any(finding.level is Level.PROBLEM for finding in findings):  # a trial would only fail for the same reason
        findings.append(await _run_scripts(commands, prefix, nonce))
    return findings


async def _ask(question: Awaitable[Any]) -> Any | Refusal:
    try:
        return await question
    except Refusal as refusal:
        return refusal


async def _info(commands: Commands, section: str) -> dict[str, str] | Refusal:
    reply = await _ask(commands.call("INFO", section))
    if isinstance(reply, Refusal):
        return reply
    lines = (line.partition(":") for line in reply.decode("utf-8", "replace").splitlines())
    return {name: value.strip() for name, colon, value in lines if colon}


async def _read_info(commands: Commands) -> list[Finding]:
    """INFO server and replication."""
    server = await _info(commands, "server")
    replication = await _info(commands, "replication")
    if isinstance(server, Refusal) or isinstance(replication, Refusal):
        return [
            Finding(
                Level.PROBLEM,
                "Redis does not let this user run INFO, so no message can be published",
                "allow it: ACL SETUSER <user> +info",
            )
        ]
    findings = []
    version = server.get("redis_version", "")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < _OLDEST:
        findings.append(
            Finding(Level.PROBLEM, f"Redis {version or '?'} is too old", "use Redis 6.2 or newer, or Valkey")
        )
    else:
        findings.append(Finding(Level.FINE, f"Redis {version}"))
    if replication.get("role") != "master":
        findings.append(Finding(Level.PROBLEM, "this Redis is a replica", "give the address of the primary"))
    if not replication.get("master_replid"):
        findings.append(
            Finding(Level.PROBLEM, "this Redis hides its replication id", "use one whose INFO shows master_replid")
        )
    return findings


async def _read_settings(commands: Commands) -> list[Finding]:
    """CONFIG GET, where it is allowed; the eviction policy also from INFO memory."""
    findings = []
    policy = await _setting(commands, "maxmemory-policy")
    if policy is None:
        memory = await _info(commands, "memory")
        policy = None if isinstance(memory, Refusal) else memory.get("maxmemory_policy")
    if policy is None:
        findings.append(
            Finding(Level.WARNING, "maxmemory-policy could not be checked", "make sure that it is noeviction")
        )
    elif policy != "noeviction":
        findings.append(
            Finding(
                Level.PROBLEM,
                f"maxmemory-policy is {policy}: Redis would drop history unseen",
                "CONFIG SET maxmemory-policy noeviction",
            )
        )
    else:
        findings.append(Finding(Level.FINE, "maxmemory-policy is noeviction"))
    limit = await _setting(commands, "client-output-buffer-limit")
    hard = _pubsub_limit(limit) if limit is not None else None
    if hard is None:
        findings.append(
            Finding(
                Level.WARNING,
                "client-output-buffer-limit could not be checked",
                "make sure that its hard limit for pubsub is 64 MB or more",
            )
        )
    elif 0 < hard < _PUBSUB_HARD_LIMIT:
        findings.append(
            Finding(
                Level.WARNING,
                f"client-output-buffer-limit for pubsub is {hard // 1_048_576} MB: "
                "a worker that lags behind is cut off early",
                'CONFIG SET client-output-buffer-limit "pubsub 256mb 64mb 60"',
            )
        )
    else:
        findings.append(Finding(Level.FINE, "client-output-buffer-limit for pubsub is wide enough"))
    return findings


async def _setting(commands: Commands, name: str) -> str | None:
    """One value of CONFIG GET, or None where it is refused or unknown."""
    reply = await _ask(commands.call("CONFIG", "GET", name))
    return reply[1].decode() if isinstance(reply, list) and len(reply) == 2 else None


def _pubsub_limit(setting: str) -> int | None:
    """Hard limit in bytes for Pub/Sub clients in `normal 0 0 0 slave ... pubsub 33554432 8388608 60`."""
    words = setting.split()
    try:
        return int(words[words.index("pubsub") + 1])
    except (ValueError, IndexError):
        return None


async def _run_scripts(commands: Commands, prefix: str, nonce: Callable[[], bytes]) -> Finding:
    """Publish, read and clear in a channel that nobody uses: shows permissions, memory and disk."""
    channel = f"{prefix}:{{probe.{secrets.token_hex(8)}}}"
    keys = (f"{channel}:meta", f"{channel}:log", f"{channel}:key::probe")
    try:
        try:
            await commands.script(
                "publish",
                keys,
                (channel, 1, _PROBE_MS, _PROBE_MS, b"t{", b"probe", b"digest..", _PROBE_MS, nonce()),
            )
            await commands.script("sync", keys[:2], (channel, _PROBE_MS, "0", 0, 1, 1024, nonce()))
            await commands.script("clear", keys[:2], (channel, _PROBE_MS, nonce()))
        finally:
            await commands.call("DEL", *keys)
    except Refusal:
        return Finding(Level.PROBLEM, "Redis does not permit DEL", "allow this user all commands on its own prefix")
    except TocsinError as error:
        if not commands.link.up:
            raise
        return Finding(
            Level.PROBLEM,
            f"a trial message could not be published: {error.message}",
            f"allow this user the keys {prefix}:*, the channels {prefix}:*, and scripting, streams, hashes and INFO",
        )
    return Finding(Level.FINE, "a trial message was published, read and cleared")


async def examine_ack(commands: Commands, level: AckLevel) -> list[Finding]:
    """Whether this Redis can keep an acknowledgement level now. Never raises for what it finds.

    Raises:
        Unavailable: the store went away meanwhile.
    """
    if level.fsynced:
        return [await _examine_fsync(commands)]
    return [await _examine_replicas(commands, level.replicas)] if level.replicas else []


async def _examine_replicas(commands: Commands, wanted: int) -> Finding:
    reply = await _ask(commands.call("WAIT", 0, 1))  # none are asked for: nothing is waited for
    if isinstance(reply, Refusal) and reply.code == "NOPERM":
        return Finding(Level.PROBLEM, "Redis does not let this user run WAIT", "allow it: ACL SETUSER <user> +wait")
    info = await _info(commands, "replication")
    known = {} if isinstance(info, Refusal) else info
    online = sum("state=online" in value for name, value in known.items() if re.fullmatch(r"slave\d+", name))
    if online < wanted:
        return Finding(
            Level.PROBLEM,
            f"TOCSIN_ACK=replicated:{wanted} needs as many connected replicas, and this Redis has {online}",
            "connect replicas, or set TOCSIN_ACK=written",
        )
    return Finding(Level.FINE, f"{online} connected replicas for TOCSIN_ACK=replicated:{wanted}")


async def _examine_fsync(commands: Commands) -> Finding:
    reply = await _ask(commands.call("WAITAOF", 0, 0, 1))
    config = await _ask(commands.call("CONFIG", "GET", "*append*"))
    if isinstance(reply, Refusal) and reply.code == "NOPERM":
        return Finding(
            Level.PROBLEM, "Redis does not let this user run WAITAOF", "allow it: ACL SETUSER <user> +waitaof"
        )
    if isinstance(reply, Refusal):  # it does not know the command
        if fsyncs_always(config):
            return Finding(Level.FINE, "appendfsync is always: what this Redis answers is on its disk")
        return Finding(
            Level.PROBLEM,
            "TOCSIN_ACK=fsynced: before version 7.2 Redis cannot say what is on its disk, and it is not known to be "
            "set to write there before it answers",
            "use Redis 7.2 or newer, or set appendonly yes, appendfsync always, no-appendfsync-on-rewrite no "
            "(and allow this user config|get)",
        )
    persistence = await _info(commands, "persistence")
    if isinstance(persistence, Refusal) or persistence.get("aof_enabled") != "1":
        return Finding(
            Level.PROBLEM,
            "TOCSIN_ACK=fsynced needs an append-only file, and this Redis keeps none",
            "CONFIG SET appendonly yes, and in its configuration",
        )
    return Finding(Level.FINE, "this Redis says when a message is on its disk (WAITAOF)")
