"""Revocations reach every worker's copy, once, whatever the store loses and whoever was away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from app.core.errors import Forbidden, TocsinError, Unavailable
from app.core.identity import Identity
from app.engine.refusals import FRESH_SECONDS, NOTICE, Refusals
from tests.contract.stage import Stage, connected, until
from tests.stage.redis import RedisServer


def who(user: str, token: str | None = None) -> Identity:
    return Identity(user, f"user/{user}", {}, token=token)


class Copy(Refusals):
    """One worker's copy, and whom it has sent away of those who are connected."""

    def __init__(self, stage: Stage, prefix: str) -> None:
        self.now = 1000.0
        self.online = [who("ada", "t1"), who("ada", "t2"), who("eve", "t3"), Identity()]
        self.gone: list[Identity] = []
        super().__init__(stage.broker, prefix, self._send, lambda: self.now)

    def _send(self, whom: Callable[[Identity], bool]) -> int:
        away = [one for one in self.online if whom(one)]
        self.gone += away
        return len(away)

    async def turn(self) -> None:
        """A second, with a beat that brings back another revision, or none."""
        await super().turn()
        await self.read()

    def users(self) -> list[str | None]:
        return [one.user for one in self.gone]


@asynccontextmanager
async def copies(server: RedisServer, prefix: str, count: int = 2) -> AsyncIterator[tuple[Stage, list[Copy]]]:
    async with connected(server.url, prefix) as stage:
        made = [Copy(stage, prefix) for _ in range(count)]
        for one in made:
            await one.read()
        yield stage, made


def refused(copy: Copy, identity: Identity) -> bool:
    try:
        copy.check(identity)
    except Forbidden:
        return True
    return False


async def test_a_revocation_is_told_and_read_and_ends(redis_server: RedisServer, prefix: str) -> None:
    async with copies(redis_server, prefix) as (stage, (one, other)):
        await one.refuse_user("ada", 60)
        await until(lambda: NOTICE in stage.ear.control)
        assert refused(one, who("ada"))
        assert not refused(other, who("ada"))
        await other.turn()
        assert refused(other, who("ada", "any"))
        assert not refused(other, who("eve"))
        assert one.users() == other.users() == ["ada", "ada"]
        for copy in (one, other):
            copy.now += 61
            assert not copy.refuses(who("ada"))


@pytest.mark.parametrize("seconds", [0, 0.001, 0.5])
async def test_a_short_refusal_disconnects_also_where_it_is_heard_late(
    redis_server: RedisServer, prefix: str, seconds: float
) -> None:
    async with copies(redis_server, prefix) as (_, (one, other)):
        await one.refuse_user("ada", seconds)
        await asyncio.sleep(seconds + 0.01)  # its end, in the time of Redis
        await other.turn()
        assert other.users() == ["ada", "ada"]
        other.now += 2
        assert not other.refuses(who("ada"))
        await other.turn()
        other.forget()
        await other.turn()
        assert other.users() == ["ada", "ada"], "once"


async def test_disconnected_again_after_the_first_refusal_has_ended(redis_server: RedisServer, prefix: str) -> None:
    async with copies(redis_server, prefix) as (_, (one, other)):
        await one.refuse_user("ada", 1)
        await other.turn()
        other.now += 1.5  # ended, and not yet forgotten
        await one.refuse_user("ada", 60)
        await other.read()
        assert other.users() == ["ada"] * 4


async def test_one_token_is_refused_and_the_user_is_not(redis_server: RedisServer, prefix: str) -> None:
    async with copies(redis_server, prefix) as (_, (one, other)):
        await one.refuse_token("t1", 4e9)
        await other.turn()
        assert other.gone == [who("ada", "t1")]
        assert refused(other, who("ada", "t1"))
        assert not refused(other, who("ada", "t2"))


async def test_what_the_store_has_lost_is_written_back_and_no_revision_comes_twice(
    own_server: RedisServer, prefix: str
) -> None:
    async with copies(own_server, prefix) as (stage, (one, other)):
        await one.refuse_user("ada", 60)
        await other.turn()
        with own_server.client() as client:
            client.flushall()
        fresh = Copy(stage, prefix)
        await fresh.refuse_user("eve", 60)
        assert not refused(fresh, who("ada"))
        await other.turn()  # up to the same number of changes as before, and yet not the same
        assert refused(other, who("eve"))
        await fresh.turn()
        assert refused(fresh, who("ada"))


async def test_a_copy_that_cannot_be_renewed_lets_nobody_in(own_server: RedisServer, prefix: str) -> None:
    async with copies(own_server, prefix) as (_, (one, other)):
        await one.refuse_user("ada", 60)
        await other.turn()
        with own_server.client() as client:
            client.set(other._keys[1], "x")
            client.delete(other._keys[0])
            client.lpush(other._keys[0], "of another type")
            for _ in range(3):
                other.now += FRESH_SECONDS / 2
                await other.turn()
            assert not other.known
            with pytest.raises(Unavailable):
                other.check(who("eve"))
            other.check(Identity())
            with pytest.raises(Forbidden):
                other.check(who("ada"))
            client.delete(*other._keys)
        await other.turn()
        assert other.known
        other.check(who("eve"))


async def test_without_the_store_nothing_is_promised(own_server: RedisServer, prefix: str) -> None:
    async with copies(own_server, prefix) as (_, (one, other)):
        other.forget()
        with pytest.raises(Unavailable):
            other.check(who("eve"))
        own_server.kill()
        with pytest.raises(TocsinError):
            await one.refuse_user("ada", 60)
