"""The start-up check: what makes a Redis unfit is named before the first client comes."""

from __future__ import annotations

import pytest

from app.brokers.examine import Level
from app.brokers.redis import RedisBroker
from tests.contract.stage import RULES, Ear, Stage, until
from tests.stage.redis import RedisServer


async def test_a_fit_store_has_only_the_default_buffer_limit_against_it(stage: Stage, prefix: str) -> None:
    findings = await stage.broker.examine()
    worse = [finding for finding in findings if finding.level is not Level.FINE]
    assert [finding.level for finding in worse] == [Level.WARNING]
    assert "client-output-buffer-limit" in worse[0].sentence
    assert worse[0].advice


async def test_the_trial_leaves_nothing_behind(stage: Stage, redis_server: RedisServer, prefix: str) -> None:
    await stage.broker.examine()
    with redis_server.client() as client:
        assert client.keys(f"{prefix}:*") == []


async def test_an_evicting_policy_is_a_problem_until_it_is_put_right(own_server: RedisServer, prefix: str) -> None:
    with own_server.client() as client:
        client.config_set("maxmemory-policy", "volatile-lru")
        broker = RedisBroker(own_server.url, prefix, RULES, probe_seconds=0.1)
        broker.start(Ear(), "inc1")
        try:
            await until(lambda: any("volatile-lru" in sentence for sentence in broker.problems()))
            client.config_set("maxmemory-policy", "noeviction")
            await until(lambda: not broker.problems())
        finally:
            await broker.close()


@pytest.mark.parametrize(
    ("permissions", "level", "words"),
    [
        ("+@all -info", Level.PROBLEM, "INFO"),
        ("+@all -config", Level.WARNING, "could not be checked"),
        ("+@all -xadd", Level.PROBLEM, "trial message"),
        ("+@all resetchannels", Level.PROBLEM, "trial message"),
    ],
)
async def test_missing_permissions_are_named(
    own_server: RedisServer, prefix: str, permissions: str, level: Level, words: str
) -> None:
    with own_server.client() as client:
        client.execute_command("ACL", "SETUSER", "limited", "on", ">secret", "~*", "&*", *permissions.split())
    url = own_server.address("limited:secret")
    broker = RedisBroker(url, prefix, RULES, probe_seconds=0.1)
    broker.start(Ear(), "inc1")
    try:
        await until(lambda: "the store has not been checked yet" not in broker.problems())
        findings = await broker.examine()
        assert any(one.level is level and words in one.sentence and one.advice for one in findings)
        assert not any("secret" in one.sentence or "127.0.0.1" in one.sentence for one in findings)
        if level is Level.PROBLEM:
            assert any(words in sentence for sentence in broker.problems())
    finally:
        await broker.close()


async def test_a_replica_is_a_problem(own_server: RedisServer, prefix: str) -> None:
    with RedisServer() as primary, own_server.client() as client:
        client.replicaof("127.0.0.1", primary.port)
        broker = RedisBroker(own_server.url, prefix, RULES, probe_seconds=0.1)
        broker.start(Ear(), "inc1")
        try:
            await until(lambda: any("replica" in sentence for sentence in broker.problems()))
            client.replicaof("no", "one")
            await until(lambda: not broker.problems())
        finally:
            await broker.close()


async def test_no_store_at_all_is_a_problem_and_no_crash(prefix: str) -> None:
    with RedisServer() as gone:
        url = gone.url
    broker = RedisBroker(url, prefix, RULES)
    broker.start(Ear(), "inc1")
    try:
        assert len(broker.problems()) == 4
        assert not any("127.0.0.1" in sentence for sentence in broker.problems())
    finally:
        await broker.close()


async def test_a_refused_password_is_named(own_server: RedisServer, prefix: str) -> None:
    with own_server.client() as client:
        client.config_set("requirepass", "secret")
        broker = RedisBroker(own_server.address(":wrong"), prefix, RULES)
        broker.start(Ear(), "inc1")
        try:
            await until(lambda: any("password" in sentence for sentence in broker.problems()))
        finally:
            await broker.close()
