"""A real service on a real Redis with room for faults, and one channel of it under observation.

A `Ground` is what is expensive to start: faults that leave it usable share one, by its `Terms`. A `Scene` is one run of
one fault: readers, writers, records, the end in which everybody has to become whole, and the figures.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.faults.checker import Kind, judge
from tests.faults.clients import FATAL, Reader, RestWriter, SocketWriter, Writer
from tests.faults.record import Ended, Record
from tests.faults.witness import Witness
from tests.stage.proxy import Proxy, proxied
from tests.stage.redis import RedisServer, Watched
from tests.stage.service import Service, until

KEPT = 100_000
SHORT = 50
"""Messages that the log of a channel `short:...` keeps; Redis trims whole nodes, of 100 entries."""
CHANNELS = json.dumps([{"channel": "short:*", "history": SHORT}, {"channel": "*", "history": KEPT}])


@dataclass(frozen=True, slots=True)
class Terms:
    """What a fault needs to stand on.

    Attributes:
        workers: of the service.
        store: options of redis-server.
        veiled: a proxy stands between the service and Redis.
        pair: there is a second Redis, for the fault to use.
        watched: replicas of a primary that Sentinels watch; 0: one Redis without any.
        settings: of the service.
        patience: seconds for which a worker may stand still before uvicorn kills it.
    """

    workers: int = 3
    store: tuple[tuple[str, str], ...] = ()
    veiled: bool = False
    pair: bool = False
    watched: int = 0
    settings: tuple[tuple[str, str], ...] = ()
    patience: int = 5


@dataclass(slots=True)
class Ground:
    """A running Redis and service.

    Attributes:
        front: a proxy before the service.
        redis: the one Redis, or the first primary.
        veil: a proxy before Redis, when the terms ask for one.
        second: another Redis, likewise.
        watched: primary, replicas and Sentinels, likewise.
    """

    terms: Terms
    redis: RedisServer
    service: Service
    front: Proxy
    veil: Proxy | None
    second: RedisServer | None
    watched: Watched | None

    @property
    def stores(self) -> list[RedisServer]:
        """Every server at which a worker may be."""
        watched = self.watched.servers if self.watched is not None else [self.redis]
        return watched if self.second is None else [*watched, self.second]

    async def ready(self, seconds: float = 30) -> None:
        """Wait until every worker is ready."""
        await asyncio.to_thread(until, self.service.all_ready, seconds, "readiness of all workers")

    async def unready(self, seconds: float = 15) -> None:
        """Wait until no worker is ready (any of them may answer, so several must say so)."""

        def all_unready() -> bool:
            return all(self.service.get("/readyz").status_code == 503 for _ in range(4 * self.terms.workers))

        await asyncio.to_thread(until, all_unready, seconds, "no worker ready")

    def command(self, *words: str | int) -> Any:
        """One command to Redis, past everything."""
        with self.redis.client() as client:
            return client.execute_command(*words)


@asynccontextmanager
async def ground(terms: Terms) -> AsyncIterator[Ground]:
    """Start what the terms ask for; ended by whatever means."""
    async with contextlib.AsyncExitStack() as stack:
        watched, store = None, dict(terms.store)
        if terms.watched:
            watched = await asyncio.to_thread(Watched(replicas=terms.watched, options=store).__enter__)
            stack.callback(watched.end)
            redis, url = watched.primary, watched.url
        else:
            redis = stack.enter_context(RedisServer(options=store))
            url = redis.url
        veil = await stack.enter_async_context(proxied(redis.port)) if terms.veiled else None
        url = url if veil is None else veil.url
        second = stack.enter_context(RedisServer(options=store)) if terms.pair else None
        settings = {"channels": CHANNELS, "max_subscriptions": "10000", **dict(terms.settings)}
        service = Service(url, workers=terms.workers, patience=terms.patience, settings=settings)
        stack.callback(service.end)
        await asyncio.to_thread(service.start)
        front = await stack.enter_async_context(proxied(service.port))
        yield Ground(terms, redis, service, front, veil, second, watched)


@dataclass(slots=True)
class Outcome:
    """What a run showed.

    Attributes:
        counts: messages, deliveries, resumes, told, and the checker's findings by kind.
        figures: the row's own numbers, in words.
        broken: what breaks the promise or misses the row's figure; empty when all is well.
    """

    counts: Counter[str] = field(default_factory=Counter)
    figures: dict[str, float] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)


class Scene:
    """One run of one fault.

    Args:
        ground: what it stands on.
        name: of the fault.
        seed: every choice of the run comes from it; the machine's timing does not.
        small: whether it has to be quick rather than thorough.
        seeds: over how many runs the counts of the table are spread.
    """

    def __init__(self, ground: Ground, name: str, seed: int, *, small: bool, seeds: int) -> None:
        self.ground = ground
        self.name = name
        self.seed = seed
        self.small = small
        self.seeds = seeds
        self.chance = random.Random(f"{name} {seed}")
        self.outcome = Outcome()
        self.records: list[Record] = []
        self.readers: list[Reader] = []
        self.writers: list[Writer] = []
        self._run = f"{seed}-{time.time_ns():x}"
        self._tasks: list[asyncio.Task[None]] = []
        self._witnesses: list[Witness] = []

    def scale(self, small: int, full: int) -> int:
        """The number for this size of run."""
        return small if self.small else full

    def share(self, small: int, total: int) -> int:
        """How often in this run, so that all runs together come to `total`."""
        return small if self.small else max(small, -(-total // self.seeds))

    def span(self, small: int, full: int) -> int:
        """The length of a fault: full in the first run of a series."""
        return small if self.small or self.seed > 1 else full

    # -- who takes part

    def channel(self, prefix: str = "", **facts: Any) -> Record:
        """A channel of this run's own, to be judged at the end; `facts` are fields of the record."""
        name = f"{prefix}{self.name}:{self._run}:{len(self.records)}"
        record = Record(name, kept=SHORT if prefix == "short:" else KEPT, **facts)
        self.records.append(record)
        return record

    async def read(self, record: Record, native: int, plain: int = 0, *, port: int = 0) -> list[Reader]:
        """So many readers, all of them live when this returns."""
        base = f"ws://127.0.0.1:{port or self.ground.service.port}/ws"
        address = f"{base}?channel={record.channel}"
        found = []
        for number in range(native + plain):
            is_native = number < native
            name = f"{'native' if is_native else 'plain'} {len(self.readers)}"
            url = base if is_native else address
            reader = Reader(record, name, url, self.chance, native=is_native)
            self.readers.append(reader)
            found.append(reader)
        async with asyncio.timeout(30):
            if plain and not record.witnessed:
                witnesses = [Witness(server, record) for server in self.ground.stores]
                self._witnesses += witnesses
                for witness in witnesses:
                    await witness.listening.wait()
            for reader in found:
                await reader.opened.wait()
        return found

    def write(self, record: Record, sockets: int, rest: int = 0, *, pause: float = 0.01, port: int = 0) -> list[Writer]:
        """So many writers, each with a message every `pause` seconds until `quiet`."""
        place = f"127.0.0.1:{port or self.ground.service.port}"
        found: list[Writer] = []
        for number in range(sockets + rest):
            name = f"w{len(self.writers)}"
            if number < sockets:
                found.append(SocketWriter(record, name, f"ws://{place}/ws", self.chance))
            else:
                found.append(RestWriter(record, name, f"http://{place}", self.chance))
            self.writers.append(found[-1])
        self._tasks += [asyncio.create_task(writer.run(pause)) for writer in found]
        return found

    def hand(self, record: Record) -> RestWriter:
        """A writer that publishes only what it is told to."""
        writer = RestWriter(record, f"w{len(self.writers)}", self.ground.service.url, self.chance)
        self.writers.append(writer)
        return writer

    async def tried(self, record: Record, count: int) -> None:
        """Wait until so many messages of the record have been tried."""
        await self.until(lambda: len(record.attempts) >= count, 600, f"{count} messages are tried")

    # -- the end

    async def quiet(self) -> None:
        """No new messages; what is on its way is answered or given up."""
        for writer in self.writers:
            writer.stopping = True
        tasks, self._tasks = self._tasks, []
        await asyncio.gather(*tasks)

    async def whole(self, record: Record, seconds: float, *, what: str = "whole") -> float:
        """Publish a last message and wait until every reader of the record has it. Notes the seconds it took.

        It is published again now and then, for a plain socket may be told by its close, and comes back behind it.
        """
        started = time.monotonic()
        readers = [reader for reader in self.readers if reader.record is record]
        hand = self.hand(record)
        while not await self._marked(hand, readers):
            if time.monotonic() - started > seconds:
                behind = ", ".join(f"{reader.name} at {reader.last}" for reader in readers if reader.mark != hand.mark)
                self.outcome.broken.append(f"without the last message after {seconds:g} s: {behind}")
                break
        took = time.monotonic() - started
        self.note(f"{what} after, s", took)
        return took

    async def _marked(self, hand: RestWriter, readers: list[Reader]) -> bool:
        hand.mark = f"mark {len(self.writers)} {len(hand.record.attempts)}"
        await hand.publish(hand.mark)
        asked = time.monotonic()
        while any(reader.mark != hand.mark for reader in readers):
            for reader in readers:
                reader.watch()
            if time.monotonic() - asked > 1.5:
                return False
            await asyncio.sleep(0.01)
        return True

    def note(self, figure: str, value: float, limit: float | None = None) -> None:
        """A number of this row, the worst of the run; above `limit` the row has failed."""
        self.outcome.figures[figure] = max(value, self.outcome.figures.get(figure, value))
        if limit is not None and value > limit:
            self.outcome.broken.append(f"{figure}: {value:.2f}, at most {limit:g}")

    def expect(self, condition: bool, otherwise: str) -> None:
        """Something that the row promises beyond the checker's judgement."""
        if not condition:
            self.outcome.broken.append(otherwise)

    async def until(self, condition: Callable[[], bool], seconds: float, what: str) -> float:
        """Wait for a condition; returns the seconds it took. A miss breaks the row, not the run."""
        started = time.monotonic()
        while not condition():
            if time.monotonic() - started > seconds:
                self.outcome.broken.append(f"{what}: not within {seconds:g} s")
                break
            for reader in self.readers:
                reader.watch()
            await asyncio.sleep(0.01)
        return time.monotonic() - started

    async def finish(self, seconds: float = 30) -> Outcome:
        """Everybody becomes whole and leaves; the records are judged."""
        await self.quiet()
        for record in self.records:
            if any(reader.record is record for reader in self.readers):
                await self.whole(record, seconds)
                record.present = {reader.name for reader in self.readers if reader.record is record}
        await self.close()
        for record in self.records:
            record.log = [record.heard(item["id"], item["data"]) for item in await self._read_log(record.channel)]
            self._judge(record)
        return self.outcome

    async def close(self) -> None:
        """End all clients."""
        for writer in self.writers:
            writer.stopping = True
            await writer.give_up()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for reader in self.readers:
            await reader.stop()
        for witness in self._witnesses:
            await witness.stop()

    def _judge(self, record: Record) -> None:
        verdict = judge(record)
        counts = self.outcome.counts
        counts["messages"] += len(record.attempts)
        counts["acknowledged"] += len(record.acknowledged)
        counts["deliveries"] += record.deliveries()
        counts["resumes"] += len(record.resumes())
        counts["told"] += record.resets()
        for kind in Kind:
            counts[kind] += verdict.found[kind]
        self.outcome.broken += verdict.broken(may_lose=record.may_lose)
        codes = {event.code for events in record.clients.values() for event in events if isinstance(event, Ended)}
        self.expect(not codes & FATAL, f"close codes of a broken protocol: {codes & FATAL}")

    async def _read_log(self, channel: str) -> list[dict[str, Any]]:
        pages: list[list[dict[str, Any]]] = []
        address = f"{self.ground.service.url}/api/v1/channels/{channel}/messages"
        async with httpx.AsyncClient(timeout=10) as client:
            before: dict[str, str] = {}
            while True:
                answer = await client.get(address, params={"limit": 1000, **before})
                if answer.status_code == 503:
                    await asyncio.sleep(0.2)
                    continue
                messages = answer.raise_for_status().json()["messages"]
                if not messages:
                    return [message for page in reversed(pages) for message in page]
                pages.append(messages)
                before = {"before": messages[0]["id"]}


Run = Callable[[Scene], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the table.

    Attributes:
        title: the fault, as the table says it.
        promise: what must hold.
        run: injects it; `Scene.finish` follows.
        terms: what it needs to stand on.
    """

    name: str
    title: str
    promise: str
    run: Run
    terms: Terms = Terms()


class Grounds:
    """The ground of the present fault, kept for the next one as long as it wants the same."""

    def __init__(self) -> None:
        self._stack = contextlib.AsyncExitStack()
        self._ground: Ground | None = None

    async def play(self, fault: Fault, seed: int, *, small: bool, seeds: int = 1) -> Outcome:
        """One run of a fault, from a ready service to the judgement. A ground that it has broken is given up."""
        if self._ground is None or self._ground.terms != fault.terms:
            await self.close()
            self._ground = await self._stack.enter_async_context(ground(fault.terms))
        scene = Scene(self._ground, fault.name, seed, small=small, seeds=seeds)
        try:
            await self._ground.ready()
            await fault.run(scene)
            outcome = await scene.finish()
        except BaseException:
            await scene.close()
            print(self._ground.service.log()[-4000:])
            await self.close()
            raise
        if outcome.broken:
            await self.close()
        return outcome

    async def close(self) -> None:
        """End what stands."""
        self._ground = None
        await self._stack.aclose()
