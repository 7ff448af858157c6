"""The scripts against a small model of the rules, over thousands of random steps on a real server."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis

from app.core.continuity import Reading, Verdict
from app.core.errors import Conflict, Gone
from app.core.messages import Position, Published
from tests.contract.stage import Stage, connected
from tests.stage.redis import RedisServer, redis_version

KEEP = 10
"""Entries of a `short:` channel, approximately."""


@dataclass
class Oracle:
    """A channel as CONTINUITY has it, said in the plainest Python."""

    lineage: list[tuple[str, int]] = field(default_factory=list)
    top: int = 0
    tail: str = ""
    cleared: str | None = None
    settled: bool = False
    log: dict[int, tuple[str, bytes]] = field(default_factory=dict)
    keys: dict[str, tuple[Position, bytes]] = field(default_factory=dict)
    epochs: set[str] = field(default_factory=set)

    def settle(self, epoch: str) -> None:
        """`epoch` is what the store says; it must be the current one, or one never seen where a new one is due."""
        if self.lineage and self.settled:
            assert epoch == self.lineage[-1][0]
            return
        self.mint(epoch)
        if not self.lineage:
            self.top, self.tail, self.cleared, self.log = 0, epoch, None, {}
        self.lineage.append((epoch, self.top + 1))
        oldest = min(self.log, default=self.top + 1)
        while len(self.lineage) > 64 or (len(self.lineage) > 1 and self.lineage[1][1] <= oldest - 1):
            self.lineage.pop(0)
        self.settled = True

    def mint(self, epoch: str) -> None:
        assert epoch not in self.epochs
        self.epochs.add(epoch)

    def on_history(self, position: Position) -> bool:
        names = [name for name, _ in self.lineage]
        if position.epoch not in names:
            return False
        after = names.index(position.epoch) + 1
        return position.offset <= self.top if after == len(names) else position.offset < self.lineage[after][1]

    def covered(self, offset: int) -> bool:
        later = [one for one in self.log if one > offset]
        return offset == self.top or (bool(later) and min(later) == offset + 1)

    def judge(self, position: Position | None) -> Verdict:
        if position is None:
            return Verdict.NEW
        if not self.on_history(position):
            return Verdict.DIVERGED
        return Verdict.OK if self.covered(position.offset) else Verdict.EXPIRED

    def page(self, first: int, last: int) -> list[tuple[Position, bytes]]:
        entries = []
        for offset in range(first, last + 1):
            if offset not in self.log:
                break
            epoch, payload = self.log[offset]
            entries.append((Position(epoch, offset), payload))
        return entries


class Play:
    """One random run: the same step on the store and on the oracle, then a comparison."""

    def __init__(self, stage: Stage, store: redis.Redis, name: str, seed: int) -> None:
        self.stage, self.store, self.name = stage, store, name
        self.random = random.Random(seed)
        self.oracle = Oracle()
        self.seen: list[Position] = [Position("f" * 12, 3)]
        self.number = 0
        self.verdicts: set[Verdict] = set()

    async def step(self) -> None:
        actions: list[tuple[Any, int]] = [
            (self.publish, 60),
            (self.publish_with_key, 24),
            (self.read, 60),
            (self.tops, 16),
            (self.extract, 28),
            (self.clear, 1),
            (self.new_reign, 6),
            (self.lose_meta, 1),
            (self.lose_log, 1),
            (self.punch, 1),
            (self.lose_scripts, 1),
        ]
        action = self.random.choices([one for one, _ in actions], [weight for _, weight in actions])[0]
        await action()

    async def publish(self) -> None:
        self.number += 1
        payload = b"%d" % self.number
        outcome = await self.stage.send("short:room", payload)
        assert isinstance(outcome, Published)
        assert outcome.position is not None
        self.appended(outcome.position, payload)

    def appended(self, position: Position, payload: bytes) -> None:
        oracle = self.oracle
        oracle.settle(position.epoch)
        oracle.top += 1
        oracle.tail = position.epoch
        assert position == Position(oracle.lineage[-1][0], oracle.top)
        oracle.log[oracle.top] = (position.epoch, payload)
        self.seen.append(position)
        self.trim()

    def trim(self) -> None:
        """Redis trims whole nodes: take over how many it kept, at least `KEEP`."""
        ids: Any = self.store.xrange(f"{self.name}:log")
        kept = {int(entry[0].split(b"-")[0]) for entry in ids}
        dropped = set(self.oracle.log) - kept
        assert kept <= set(self.oracle.log)
        assert sum(one > max(dropped, default=0) for one in kept) == len(kept)
        assert not dropped or len(kept) >= KEEP
        self.oracle.log = {offset: entry for offset, entry in self.oracle.log.items() if offset in kept}

    async def publish_with_key(self) -> None:
        key, payload = f"key-{self.random.randrange(30)}", b"%d" % self.random.randrange(2)
        outcome = await self.stage.send("short:room", payload, key=key)
        known = self.oracle.keys.get(key)
        if known is None:
            assert isinstance(outcome, Published)
            assert outcome.position is not None
            assert not outcome.duplicate
            self.appended(outcome.position, payload)
            self.oracle.keys[key] = (outcome.position, payload)
        elif known[1] == payload:
            assert outcome == Published(known[0], duplicate=True)
        else:
            assert isinstance(outcome, Conflict)

    def pick(self) -> Position:
        near = self.random.choice(self.seen[-30:])
        return Position(near.epoch, max(0, near.offset + self.random.choice((0, 0, 0, -1, -3, 1))))

    async def read(self) -> None:
        position = self.pick() if self.random.random() < 0.9 else None
        limit = self.random.choice((0, 1, 3, 200))
        reading = await self.stage.broker.read("short:room", position, limit)
        self.compare(reading, position)
        page = [(one.position, one.payload) for one in reading.publications]
        wanted = self.oracle.page(position.offset + 1, self.oracle.top)[:limit] if position else []
        assert page == (wanted if reading.verdict is Verdict.OK else [])

    def compare(self, reading: Reading, position: Position | None) -> None:
        oracle = self.oracle
        oracle.settle(reading.epoch)
        self.seen.append(reading.at_top)
        self.verdicts.add(reading.verdict)
        assert reading.verdict is oracle.judge(position)
        assert (reading.top, reading.tail, reading.cleared) == (oracle.top, oracle.tail, oracle.cleared)
        assert list(reading.lineage) == oracle.lineage

    async def tops(self) -> None:
        asked = [("short:room", self.pick()), ("short:room", None)]
        for (_, position), reading in zip(asked, await self.stage.broker.read_tops(asked), strict=True):
            assert isinstance(reading, Reading)
            assert reading.publications == ()
            self.compare(reading, position)

    async def extract(self) -> None:
        since = self.pick() if self.random.random() < 0.5 else None
        before = self.pick() if self.random.random() < 0.5 else None
        limit = self.random.choice((1, 3, 200))
        oracle = self.oracle
        reading = await self.stage.broker.read("short:room", None, 0)
        oracle.settle(reading.epoch)
        refused = (since is not None and oracle.judge(since) is not Verdict.OK) or (
            before is not None and not oracle.on_history(before)
        )
        if refused:
            with pytest.raises(Gone) as caught:
                await self.stage.broker.extract("short:room", since, before, limit, 1_000_000)
            assert caught.value.position == str(Position(oracle.lineage[-1][0], oracle.top))
            return
        answer = await self.stage.broker.extract("short:room", since, before, limit, 1_000_000)
        last = oracle.top if before is None else before.offset - 1
        if since is not None:
            wanted = oracle.page(since.offset + 1, last)[:limit]
        else:
            first = last + 1
            while first - 1 in oracle.log and last - first + 1 < limit:
                first -= 1
            wanted = oracle.page(first, last)
        assert [(one.position, one.payload) for one in answer.publications] == wanted
        if wanted:
            assert answer.position == wanted[-1][0]
            assert answer.before.offset == wanted[0][0].offset - 1
            assert oracle.on_history(answer.before)
            assert answer.complete == (answer.position.offset == last)

    async def clear(self) -> None:
        position = await self.stage.broker.clear("short:room")
        oracle = self.oracle
        if not (oracle.lineage and oracle.settled) and not oracle.lineage:
            oracle.top = 0
        assert position.offset == oracle.top
        oracle.mint(position.epoch)
        oracle.lineage, oracle.settled = [(position.epoch, oracle.top + 1)], True
        oracle.tail, oracle.cleared, oracle.log = position.epoch, position.epoch, {}

    async def new_reign(self) -> None:
        self.store.execute_command("DEBUG", "CHANGE-REPL-ID")  # type: ignore[no-untyped-call]
        self.oracle.settled = False

    async def lose_meta(self) -> None:
        self.store.delete(f"{self.name}:meta")
        self.oracle.lineage = []

    async def lose_log(self) -> None:
        self.store.delete(f"{self.name}:log")
        self.oracle.log = {}

    async def punch(self) -> None:
        if self.oracle.log:
            offset = self.random.choice(list(self.oracle.log))
            self.store.xdel(f"{self.name}:log", f"{offset}-0")
            del self.oracle.log[offset]

    async def lose_scripts(self) -> None:
        self.store.script_flush()


@pytest.mark.parametrize("seed", range(4))
async def test_the_scripts_do_what_the_rules_say(prefix: str, seed: int) -> None:
    allowed = {"enable_debug_command": "yes"} if redis_version() >= (7, 0) else {}
    with RedisServer(port=None, stream_node_max_entries="4", options=allowed) as server, server.client() as store:
        async with connected(server.url, prefix) as stage:
            play = Play(stage, store, f"{prefix}:{{short:room}}", seed)
            for _ in range(1000):
                await play.step()
            assert play.verdicts == set(Verdict)
