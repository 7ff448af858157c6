"""The steps of presence against a small model, in any order: workers that die, come back and repeat themselves."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from app.brokers import Attendee, Fate
from app.brokers import presence as module
from app.brokers.presence import RedisPresence
from tests.contract.stage import Stage, connected, until
from tests.stage.redis import RedisServer

WORKERS = 3
ROOM = "room"

worker = st.integers(0, WORKERS - 1)
client = st.integers(0, 3)
member = st.sampled_from(["ada", "bob", "e v\0e", ""])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("attend"), worker, st.lists(st.tuples(client, member, client)), st.lists(client)),
        st.tuples(st.just("attend"), worker, st.lists(st.tuples(client, member, client), min_size=2), st.just([])),
        st.tuples(st.just("repeat")),
        st.tuples(st.just("leave late"), worker, st.lists(client, min_size=1)),
        st.tuples(st.just("beat"), worker),
        st.tuples(st.just("lapse"), worker),
        st.tuples(st.just("clear up"), worker, worker),
        st.tuples(st.just("die"), worker, worker),
        st.tuples(st.just("claim lapses"), worker),
        st.tuples(st.just("reap again"), worker),
    ),
    min_size=10,
    max_size=40,
)


@dataclass
class Worker:
    """A worker as the model has it: it learns of its death only by its next beat."""

    number: int
    life: int = 0
    leased: bool = False
    buried: bool = False
    here: dict[str, Attendee] = field(default_factory=dict)

    @property
    def incarnation(self) -> str:
        return f"w{self.number}.{self.life}"


class Play:
    """The same step on the store and on the model."""

    def __init__(self, stage: Stage, store: redis.Redis, prefix: str) -> None:
        self.stage, self.store, self.prefix = stage, store, prefix
        self.presence = RedisPresence(stage.broker.script, prefix)
        self.workers = [Worker(number) for number in range(WORKERS)]
        self.members: dict[str, tuple[str, Attendee]] = {}
        self.claims: dict[str, str] = {}
        self.last: tuple[str, list[Attendee], list[str]] | None = None

    async def perform(self, step: tuple[Any, ...]) -> None:
        match step:
            case ("attend", number, joins, leaves):
                one = self.workers[number]
                come = {
                    f"c{number}.{who}": Attendee(f"c{number}.{who}", name, b"%d" % info) for who, name, info in joins
                }
                go = [f"c{number}.{who}" for who in dict.fromkeys(leaves) if f"c{number}.{who}" not in come]
                one.here.update(come)
                for who in go:
                    one.here.pop(who, None)
                await self.presence.register(one.incarnation, [ROOM], here=True)
                await self.attend(one.incarnation, list(come.values()), go)
            case ("repeat",) if self.last is not None and self.last[0] in {one.incarnation for one in self.workers}:
                self.workers[int(self.last[0][1])].here.update({one.client: one for one in self.last[1]})
                for who in self.last[2]:
                    self.workers[int(self.last[0][1])].here.pop(who, None)
                await self.attend(*self.last)
            case ("beat", number):
                await self.beat(self.workers[number])
            case ("lapse", number):
                self.store.delete(f"{self.prefix}:{{workers}}:lease:{self.workers[number].incarnation}")
                self.workers[number].leased = False
            case ("clear up", number, by):
                await self.clear_up(self.workers[number], self.workers[by].incarnation)
            case ("claim lapses", number):
                self.lapse_claim(self.workers[number].incarnation)
            case ("die", number, by):
                await self.perform(("lapse", number))
                await self.perform(("clear up", number, by))
            case ("leave late", number, leaves) if self.workers[number].life:
                # What an earlier incarnation sent arrives only now: it must not touch the new one's members.
                late = f"w{number}.{self.workers[number].life - 1}"
                await self.presence.attend(ROOM, late, [], [f"c{number}.{who}" for who in leaves])
            case ("reap again", number) if self.workers[number].buried:
                await self.reap(self.workers[number].incarnation)

    async def attend(self, incarnation: str, joins: list[Attendee], leaves: list[str]) -> None:
        self.last = (incarnation, joins, leaves)
        await self.presence.attend(ROOM, incarnation, joins, leaves)
        self.members.update({one.client: (incarnation, one) for one in joins})
        for who in leaves:
            if who in self.members and self.members[who][0] == incarnation:
                del self.members[who]

    async def beat(self, one: Worker) -> None:
        keys = [
            f"{self.prefix}:{{workers}}:{key}"
            for key in ("all", "dead", "reign", f"rooms:{one.incarnation}", "refused-revision")
        ]
        arguments: list[bytes | str | int] = [
            f"{self.prefix}:{{workers}}:lease:",
            one.incarnation,
            "node",
            60_000,
            -1,
            9,
            b"{}",
        ]
        answer = await self.stage.broker.script("beat", keys, arguments)
        assert (answer == b"DEAD") == one.buried
        if not one.buried:
            one.leased = True
            return
        ghost = one.incarnation
        one.life, one.buried = one.life + 1, False
        await self.beat(one)
        await self.presence.register(one.incarnation, [ROOM], here=True)
        await self.attend(one.incarnation, list(one.here.values()), [])
        await self.reap(ghost)

    async def clear_up(self, one: Worker, by: str) -> None:
        fate = await self.presence.bury(one.incarnation, by)
        taken = self.claims.get(one.incarnation, by) != by
        assert fate is (Fate.ALIVE if one.leased else Fate.TAKEN if taken else Fate.DEAD)
        if fate is Fate.DEAD:
            one.buried = True
            self.claims[one.incarnation] = by
            done: list[str] = []
            while done := await self.presence.estate(one.incarnation, done):
                assert done == [ROOM]
                await self.reap(one.incarnation)

    def lapse_claim(self, incarnation: str) -> None:
        self.store.delete(f"{self.prefix}:{{workers}}:reaper:{incarnation}")
        self.claims.pop(incarnation, None)

    async def reap(self, incarnation: str) -> None:
        theirs = [who for who, (owner, _) in self.members.items() if owner == incarnation]
        assert await self.presence.reap(ROOM, incarnation) == len(theirs)
        for who in theirs:
            del self.members[who]

    def check(self) -> None:
        """What lies in the store is what the model has, and one hash is the sum of the other."""
        stored: Any = self.store.hgetall(f"{self.prefix}:{{{ROOM}}}:members")
        wanted = {
            who.encode(): b"%d %d %b%b%b" % (len(owner), len(one.member), owner.encode(), one.member.encode(), one.info)
            for who, (owner, one) in self.members.items()
        }
        assert stored == wanted
        users: Any = self.store.hgetall(f"{self.prefix}:{{{ROOM}}}:users")
        counts = Counter(one.member for _, one in self.members.values())
        assert {name.decode(): int(user.split()[0]) for name, user in users.items()} == counts

    async def check_told(self) -> None:
        """Who listens has the same picture: each joins once, and leaves once."""
        await self.stage.publish(ROOM, b"the end")
        await until(lambda: self.stage.ear.items)
        here: dict[str, bytes] = {}
        for _, item in self.stage.ear.attendances:
            assert len({one.member for one in (*item.joined, *item.left)}) == len(item.joined) + len(item.left)
            for one in item.joined:
                assert one.member not in here
                here[one.member] = one.info
            for one in item.left:
                del here[one.member]
            assert item.count == len(here)
            assert item.joined == () or not item.reaped
        assert set(here) == {one.member for _, one in self.members.values()}


@pytest.fixture(scope="module", autouse=True)
def _steps_are_small(redis_server: RedisServer) -> Iterator[None]:
    """A room of a few clients takes several steps of HSCAN, and who clears up keeps that to itself for a whole run."""
    with redis_server.client() as store, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "STEP", 2)
        patch.setattr(module, "CLAIM_MS", 60_000)
        before: dict[str, str] = store.config_get("hash-max-*-entries")
        for name in before:
            store.config_set(name, 2)
        yield
        for name, value in before.items():
            store.config_set(name, value)


@settings(max_examples=100, deadline=None)
@given(steps=STEPS)
def test_the_steps_do_what_the_rules_say(redis_server: RedisServer, steps: list[tuple[Any, ...]]) -> None:
    asyncio.run(play(redis_server, steps))


async def play(server: RedisServer, steps: list[tuple[Any, ...]]) -> None:
    prefix = f"model-{secrets.token_hex(6)}"
    async with connected(server.url, prefix) as stage:
        with server.client() as store:
            await stage.subscribe(ROOM)
            acts = Play(stage, store, prefix)
            for one in acts.workers:
                await acts.beat(one)
            replid, since = bytes(store.get(f"{prefix}:{{workers}}:reign") or b"").split()
            store.set(f"{prefix}:{{workers}}:reign", b"%b %d" % (replid, int(since) - 3_600_000))
            for step in steps:
                await acts.perform(step)
                acts.check()
            await acts.check_told()
