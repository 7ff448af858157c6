"""Presence over whole workers: they are killed, frozen, cut off from Redis, and nobody stays who is gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import jwt

from app.brokers import Attendee
from app.brokers.presence import RedisPresence
from tests.contract.stage import connected
from tests.stage.native import Frame, NativeClient, converse
from tests.stage.redis import RedisServer
from tests.stage.service import Service

ROOM = "room"
SOON = 6.0
"""Seconds in which a dead worker's members have left, and in which one that is back is right again."""
LEASE = 4.0
SECRET = "a secret of thirty-two bytes or more, for tests"


class Party:
    """Clients on several workers, and one that only watches, with another worker than the victim's.

    Attributes:
        victims: members of the worker `victim` (a process id), by client id.
        others: all the other members.
    """

    def __init__(self, watcher: NativeClient, victim: int, victims: set[str], others: set[str]) -> None:
        self.watcher = watcher
        self.victim = victim
        self.victims = victims
        self.others = others

    async def members(self) -> set[str]:
        """Everybody in the room, as the watcher's worker reads it."""
        page = await self.watcher.ask("presence", channel=ROOM, limit=1000)
        return {one["member"] for one in page["members"]}

    async def hear(self, wanted: set[str], what: str, seconds: float) -> set[str]:
        """Names that pushes have said to have `joined` or `left`, until these are among them or the time is over."""
        heard: set[str] = set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not wanted <= heard:
                    frame = self.watcher.waiting.popleft() if self.watcher.waiting else await self.watcher.read()
                    if frame["type"] == "presence":
                        heard |= {one["member"] for one in frame[what]}
        return heard


@contextlib.asynccontextmanager
async def party(service: Service, server: RedisServer, prefix: str) -> AsyncIterator[Party]:
    """Members on two workers at least. The reign is as old as in a service that has run for a while."""
    async with contextlib.AsyncExitStack() as stack:
        by_worker: dict[int, set[str]] = {}
        clients: list[NativeClient] = []
        while len(clients) < 12 or len(by_worker) < 2:  # the kernel chooses the worker
            assert len(clients) < 200
            client = await stack.enter_async_context(converse(service))
            pid = service.pid_serving(client.socket.local_address[1])
            assert pid is not None
            answer = await client.ask("subscribe", channel=ROOM, presence={"info": {"n": len(clients)}})
            assert answer["type"] == "subscribed", answer
            by_worker.setdefault(pid, set()).add(client.welcome["client"])
            clients.append(client)
        victim = min(by_worker)
        while True:
            watcher = await stack.enter_async_context(converse(service))
            if service.pid_serving(watcher.socket.local_address[1]) != victim:
                break
        answer = await watcher.ask("subscribe", channel=ROOM, presence="watch")
        assert answer["count"] == len(clients)
        with server.client() as store:
            replid, since = bytes(store.get(f"{prefix}:{{workers}}:reign") or b"").split()
            store.set(f"{prefix}:{{workers}}:reign", b"%b %d" % (replid, int(since) - 3_600_000))
        await asyncio.sleep(LEASE + 1)  # only who has been well for a TTL may say that others are dead
        watcher.waiting.clear()
        while not await watcher.silent(1.2):
            watcher.waiting.clear()
        everyone = set().union(*by_worker.values())
        yield Party(watcher, victim, by_worker[victim], everyone - by_worker[victim])


async def test_the_members_of_a_killed_worker_leave_within_six_seconds_and_none_stays(
    redis_server: RedisServer,
) -> None:
    with Service(redis_server.url, workers=3, redis_prefix="presence-killed") as service:
        async with party(service, redis_server, "presence-killed") as room:
            os.kill(room.victim, signal.SIGKILL)
            assert await room.hear(room.victims, "left", SOON) == room.victims
            assert await room.members() == room.others


async def test_an_outage_of_redis_empties_no_room() -> None:
    with RedisServer() as server, Service(server.url, workers=2, redis_prefix="presence-outage") as service:
        async with party(service, server, "presence-outage") as room:
            server.signal(signal.SIGSTOP)
            await asyncio.sleep(2 * LEASE)
            server.signal(signal.SIGCONT)
            assert await room.hear({"nobody"}, "left", 2 * SOON) == set()
            assert await room.members() == room.victims | room.others


async def test_a_frozen_workers_members_leave_and_are_right_again_when_it_wakes(redis_server: RedisServer) -> None:
    with Service(redis_server.url, workers=2, patience=60, redis_prefix="presence-frozen") as service:
        async with party(service, redis_server, "presence-frozen") as room:
            os.kill(room.victim, signal.SIGSTOP)
            began = time.monotonic()
            try:
                assert await room.hear(room.victims, "left", SOON) == room.victims
                assert await room.members() == room.others
                await asyncio.sleep(12 - (time.monotonic() - began))
            finally:
                os.kill(room.victim, signal.SIGCONT)
            assert await room.hear(room.victims, "joined", SOON) == room.victims
            assert await room.members() == room.victims | room.others


async def test_who_is_back_on_another_worker_within_two_seconds_was_never_away(redis_server: RedisServer) -> None:
    claims = {
        "sub": "ada",
        "exp": datetime.now(UTC) + timedelta(hours=1),
        "tocsin": {verb: ["*"] for verb in ("publish", "subscribe", "history", "presence")},
    }
    headers = {"Authorization": f"Bearer {jwt.encode(claims, SECRET, 'HS256')}"}
    with Service(
        redis_server.url, workers=2, redis_prefix="presence-back", jwt_secret=SECRET, allow_anonymous="true"
    ) as service:
        async with contextlib.AsyncExitStack() as stack:
            watcher = await stack.enter_async_context(converse(service))
            first = await stack.enter_async_context(converse(service, additional_headers=headers))
            await first.ask("subscribe", channel=ROOM, presence={"info": {}})
            answer = await watcher.ask("subscribe", channel=ROOM, presence="watch")
            assert [one["member"] for one in answer["members"]] == ["ada"]
            while True:
                second = await stack.enter_async_context(converse(service, additional_headers=headers))
                if second.welcome["worker"] != first.welcome["worker"]:
                    break
            while not await watcher.silent(1.2):
                watcher.waiting.clear()
            await first.socket.close()
            await asyncio.sleep(1)
            await second.ask("subscribe", channel=ROOM, presence={"info": {}})
            assert await watcher.silent(4)
            answer = await watcher.ask("presence", channel=ROOM)
            assert answer["members"] == [{"member": "ada", "clients": 1, "info": {}}]


async def test_a_hundred_thousand_members_are_told_in_pages(redis_server: RedisServer) -> None:
    with Service(redis_server.url, workers=1, redis_prefix="presence-many") as service:
        async with connected(redis_server.url, "presence-many") as stage:
            store = RedisPresence(stage.broker.script, "presence-many")
            for start in range(0, 100_000, 500):
                batch = [Attendee(f"c{number}", f"m{number}") for number in range(start, start + 500)]
                await store.attend(ROOM, "filled by hand", batch, [])
        async with converse(service) as client:
            seen: list[str] = []
            cursor: str | None = None
            while True:
                more: Frame = {} if cursor is None else {"cursor": cursor}
                page = await client.ask("presence", channel=ROOM, limit=1000, **more)
                assert page["count"] == 100_000
                seen += [one["member"] for one in page["members"]]
                cursor = page["cursor"]
                if cursor is None:
                    break
                assert len(page["members"]) == 1000
            assert len(seen) == len(set(seen)) == 100_000
        answer = service.get(f"/api/v1/channels/{ROOM}/members", params={"limit": 10})
        assert answer.status_code == 200
        assert (len(answer.json()["members"]), answer.json()["count"]) == (10, 100_000)
