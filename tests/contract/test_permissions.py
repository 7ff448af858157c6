"""The rights of the service at its Redis: `deploy/redis.acl` is enough, and no more than that."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.exceptions import NoPermissionError

from app.brokers import WRITTEN, AckLevel
from app.brokers.examine import Finding, Level
from app.brokers.redis import RedisBroker
from app.core.messages import Position
from tests.contract.stage import RULES, Ear, connected, until
from tests.stage.redis import RedisServer, redis_version, service_user

APP = Path(__file__).parents[2] / "app"
REPLICATED, FSYNCED = AckLevel(replicas=1), AckLevel(fsynced=True)


@pytest.fixture
def narrow() -> Iterator[RedisServer]:
    """A Redis whose user for the service has the keys of `deploy/redis.acl` and no others."""
    with RedisServer(narrow=True) as server:
        yield server


def allowed() -> set[str]:
    """The commands of the user, `config|get` in Redis's own form."""
    return {rule[1:] for rule in service_user() if rule.startswith("+")}


def refused(server: RedisServer) -> list[str]:
    """What Redis has refused to somebody, by its own log."""
    with server.client() as client:
        return [f"{one['username']}: {one['object']}" for one in client.acl_log()]


async def test_everything_the_broker_does_is_allowed(narrow: RedisServer) -> None:
    with RedisServer(narrow=True) as replica:
        replica.follow(narrow)
        async with connected(narrow.url, "tocsin", ack=REPLICATED) as stage:
            await stage.subscribe("room")
            first = await stage.publish("room", b"a", key="k" * 16)
            await stage.publish("room", b"b")
            await stage.send("room", b"c", ephemeral=True)
            await until(lambda: len(stage.ear.items) == 3)
            await stage.broker.read("room", first, 10)
            await stage.broker.read_tops([("room", first), ("other", None)])
            await stage.broker.extract("room", None, None, 10, 1024)
            await stage.broker.clear("room")
            await stage.broker.tell(b"{}")
            stage.broker.unsubscribe("room")
            await stage.broker.read("room", Position("0" * 12, 1), 10)
            worse = [one for one in await stage.broker.examine() if one.level is not Level.FINE]
            assert ["client-output-buffer-limit" in one.sentence for one in worse] == [True]
        with narrow.client() as client:
            assert all(key.startswith(b"tocsin:") for key in client.keys("*"))
    assert refused(narrow) == []


def test_every_command_of_a_script_is_allowed() -> None:
    named = {
        name.lower()
        for path in APP.rglob("*.lua")
        for name in re.findall(r"redis\.p?call\(\s*'([A-Z]+)'", path.read_text("utf-8"))
    }
    assert {"xadd", "info"} <= named
    assert named <= allowed()


def test_nothing_dangerous_is_allowed_but_to_look() -> None:
    with RedisServer() as server, server.client() as client:
        dangerous = {
            name.decode()
            for category in ("dangerous", "admin")
            for name in client.execute_command("ACL", "CAT", category)
        }
    assert {"keys", "flushall"} <= dangerous
    found = {name for name in allowed() if name in dangerous or name.partition("|")[0] in dangerous}
    assert found - {"client|setname"} == {"info", "config|get"}


@pytest.mark.parametrize(
    "command",
    [
        "GET other:key",
        "SET tocsin other",
        "PUBLISH other x",
        "SUBSCRIBE other",
        "PSUBSCRIBE tocsin:*",
        "KEYS tocsin:*",
        "SCAN 0",
        "FLUSHALL",
        "FLUSHDB",
        "SWAPDB 0 1",
        "CONFIG SET maxmemory 1",
        "CONFIG REWRITE",
        "CLIENT LIST",
        "CLIENT KILL TYPE pubsub",
        "SCRIPT FLUSH",
        "MONITOR",
        "REPLICAOF NO ONE",
        "SHUTDOWN NOSAVE",
        "ACL LIST",
        "EVAL return(redis.call('KEYS','*')) 0",
        "EVAL return(redis.call('GET','other:key')) 0",
    ],
)
def test_what_the_service_never_does_is_refused(redis_server: RedisServer, command: str) -> None:
    # Under a wide prefix too: these are not of the form of its keys, or not commands of its.
    with (
        redis.Redis.from_url(redis_server.url) as client,
        pytest.raises((NoPermissionError, redis.ResponseError)) as no,
    ):
        client.execute_command(*command.split())
    assert re.search("no permissions|No permissions|can't run|can't access", str(no.value))


async def findings(server: RedisServer, prefix: str, without: str, ack: AckLevel = WRITTEN) -> list[Finding]:
    """What the check says of a store whose user lacks a right; the broker's problems must be the findings'."""
    with server.client() as client:
        user, *rules = service_user()
        client.execute_command("ACL", "SETUSER", "limited", *rules, f"-{without}")
    assert user == "tocsin"
    password = next(rule[1:] for rule in rules if rule.startswith(">"))
    broker = RedisBroker(server.address(f"limited:{password}"), prefix, RULES, ack=ack)
    broker.start(Ear(), "inc1")
    try:
        await until(lambda: "the store has not been checked yet" not in broker.problems())
        found = await broker.examine()
        await until(
            lambda: broker.problems() == [one.sentence for one in found if one.level is Level.PROBLEM], seconds=15
        )
    finally:
        await broker.close()
    return found


async def test_without_config_the_policy_is_read_from_info_and_what_is_not_seen_is_named(
    own_server: RedisServer, prefix: str
) -> None:
    found = {one.sentence: one for one in await findings(own_server, prefix, "config")}
    assert "maxmemory-policy is noeviction" in found
    assert [one.sentence for one in found.values() if one.level is not Level.FINE] == [
        "client-output-buffer-limit could not be checked"
    ]
    with own_server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    worse = [one for one in await findings(own_server, prefix, "config") if one.level is Level.PROBLEM]
    assert ["allkeys-lru" in one.sentence for one in worse] == [True]


async def test_replicated_needs_no_config(own_server: RedisServer, prefix: str) -> None:
    with RedisServer() as replica:
        replica.follow(own_server)
        found = await findings(own_server, prefix, "config", REPLICATED)
    assert not any(one.level is Level.PROBLEM for one in found)
    assert any("TOCSIN_ACK=replicated:1" in one.sentence for one in found)


async def test_fsynced_without_config_is_promised_only_where_redis_itself_tells(prefix: str) -> None:
    with RedisServer(appendonly="yes", appendfsync="always") as server:
        problems = [one for one in await findings(server, prefix, "config", FSYNCED) if one.level is Level.PROBLEM]
    if redis_version() >= (7, 2):
        assert problems == []
    else:
        assert ["config|get" in one.advice for one in problems] == [True]
