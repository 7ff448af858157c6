"""The client through cuts, dead workers, a dead Redis, a frozen network and a restart of the service."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator

import pytest

import tocsin
from tests.clients.python.stage import QUICK, data_of, somewhere, take, through_proxy, url
from tests.stage.redis import RedisServer
from tests.stage.service import Service
from tocsin.line import Backoff

CUTS = 100
HASTY = Backoff(base=0.02, cap=0.05)


@pytest.fixture(scope="module")
def store() -> Iterator[RedisServer]:
    """A Redis of this file's own, which remembers."""
    with RedisServer(appendonly="yes", appendfsync="always") as server:
        yield server


@pytest.fixture(scope="module")
def doomed(store: RedisServer) -> Iterator[Service]:
    """A service of this file's own, of two workers."""
    settings = {"ping_seconds": "2", "drain_seconds": "1"}
    with Service(store.url, workers=2, redis_prefix="doomed", settings=settings) as running:
        yield running


def port(client: tocsin.Client) -> int:
    """Our TCP port of the present connection."""
    assert client._driver.socket is not None
    return int(client._driver.socket.local_address[1])


async def test_through_a_hundred_cuts_each_message_is_published_once_and_heard_once(doomed: Service) -> None:
    channel, chance = somewhere(), random.Random(5)
    async with through_proxy(doomed, backoff=HASTY) as (proxy, client), client.subscribe(channel) as room:
        published: list[str] = []
        done = False

        async def publish(name: str) -> None:
            number = 0
            while not done:
                number += 1
                text = f"{name}-{number}"
                published.append(text)
                await room.publish(text)

        async def cut() -> None:
            nonlocal done
            cuts = 0
            while cuts < CUTS or len(published) <= CUTS or proxy.swallowed < 5:
                await asyncio.sleep(chance.uniform(0.0, 0.02))
                if client.state == "open" and chance.random() < 0.3 and proxy.swallow is None:
                    proxy.swallow = b'"published"'  # an answer is lost: the message is in the log
                    continue
                cuts += proxy.cut_one(chance)
            done = True
            proxy.swallow = None

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for name in "abcdefgh":
                group.create_task(publish(name))
            group.create_task(cut())
        heard = data_of(await take(room, len(published)))
        assert Counter(heard) == Counter(published)


async def test_a_killed_worker_costs_a_resume(doomed: Service) -> None:
    channel = somewhere()
    async with tocsin.connect(url(doomed), backoff=QUICK) as client, client.subscribe(channel) as room:
        for number in range(20):
            await room.publish(number)
            if number == 8:
                pid = doomed.pid_serving(port(client))
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
        assert data_of(await take(room, 20)) == list(range(20))


async def test_a_frozen_connection_is_noticed_and_left(doomed: Service) -> None:
    """Half open: no end is seen, nothing comes."""
    async with through_proxy(doomed) as (proxy, client), client.subscribe(somewhere()) as room:
        await room.publish(1)
        proxy.frozen = True
        publishing = asyncio.create_task(room.publish(2))
        async with asyncio.timeout(10):
            while client.state == "open":
                await asyncio.sleep(0.02)
        proxy.frozen = False
        await publishing
        assert data_of(await take(room, 2)) == [1, 2]


async def test_a_killed_redis_costs_patience(doomed: Service, store: RedisServer) -> None:
    async with tocsin.connect(url(doomed), backoff=QUICK) as client, client.subscribe(somewhere()) as room:
        await room.publish(0)
        assert store.process is not None
        store.process.kill()
        store.process.wait()
        publishing = [asyncio.create_task(room.publish(number)) for number in (1, 2, 3)]
        await asyncio.sleep(0.3)
        assert not any(task.done() for task in publishing)
        store.start()
        await asyncio.gather(*publishing)
        assert data_of(await take(room, 1)) == [0]
        assert sorted(data_of(await take(room, 3))) == [1, 2, 3]


async def test_a_service_that_restarts_says_when_to_come_back(doomed: Service) -> None:
    told: list[tocsin.Change] = []
    channel = somewhere()
    async with (
        tocsin.connect(url(doomed), backoff=QUICK, on_state=told.append) as client,
        client.subscribe(channel) as room,
    ):
        await room.publish("before")
        stopping = asyncio.create_task(asyncio.to_thread(doomed.stop))
        async with asyncio.timeout(20):
            while not any(change.reason.startswith("the service restarts (1012") for change in told):
                await asyncio.sleep(0.01)
        await stopping
        publishing = asyncio.create_task(room.publish("meanwhile"))
        await asyncio.to_thread(doomed.start)
        await publishing
        assert data_of(await take(room, 2)) == ["before", "meanwhile"]
