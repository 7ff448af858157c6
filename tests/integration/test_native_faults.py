"""`tocsin.v1` when something is wrong: a reader too slow, a log too short, Redis cut off, emptied, cleared or away, and
the service stopping. Whoever can be made whole is; whoever cannot is told in its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from tests.stage.frames import Peer, request, text
from tests.stage.native import Frame, NativeClient, converse, offset
from tests.stage.redis import RedisServer
from tests.stage.service import Service, until

RULES = json.dumps([{"channel": "short:*", "history": 10}, {"channel": "*", "history": 100_000}])


@pytest.fixture(scope="module")
def own_redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def fragile(own_redis: RedisServer) -> Iterator[Service]:
    """Two workers that find a reader slow early and ping every second."""
    with Service(
        own_redis.url, workers=2, channels=RULES, ping_seconds="1", max_message="16384", high_mark="32768"
    ) as running:
        yield running


@pytest.fixture
async def whole(own_redis: RedisServer, fragile: Service) -> AsyncIterator[None]:
    """Whatever a test does to Redis, the next one finds it working."""
    yield
    own_redis.signal(signal.SIGCONT)

    def ready() -> bool:  # several times, since any of the workers may answer
        return all(fragile.get("/readyz").status_code == 200 for _ in range(8))

    await asyncio.to_thread(until, ready, 30, "readiness after the fault")


pytestmark = pytest.mark.usefixtures("whole")


def name(kind: str = "room") -> str:
    return f"{kind}:{secrets.token_hex(5)}"


async def fill(service: Service, channel: str, count: int, size: int = 0, first: int = 1) -> str:
    """Publish so many messages, the number in each, filled up to `size` bytes; returns the last id."""
    last = ""
    async with httpx.AsyncClient(timeout=30) as client:
        for part in parts(range(first, first + count), 500 if size < 1000 else 60):
            batch = [{"channel": channel, "data": {"n": number, "fill": "x" * size}} for number in part]
            answer = await client.post(f"{service.url}/api/v1/messages", json={"messages": batch})
            last = answer.json()["results"][-1]["id"]
    return last


def parts(numbers: range, size: int) -> Iterator[range]:
    """Cut into parts that fit a body."""
    return (numbers[start : start + size] for start in range(0, len(numbers), size))


async def lagged(service: Service, before: float) -> None:
    """Until one more socket has left its group."""
    await asyncio.to_thread(until, lambda: sum(service.metric("lagged_total").values()) > before, 15, "a slow reader")


def numbers(frames: list[Frame]) -> list[int]:
    return [frame["data"]["n"] for frame in frames]


async def test_alive_comes_with_every_ping(fragile: Service) -> None:
    async with converse(fragile) as client:
        assert client.welcome["ping"] == 1
        for _ in range(4):
            assert await client.read(alive=True) == {"type": "alive"}
    with Peer(fragile.port, handshake=request(extra="Sec-WebSocket-Protocol: tocsin.v1\r\n")) as peer:
        assert json.loads(peer.read_text())["type"] == "welcome"
        ping = peer.read_frame()
        assert ping is not None
        assert ping[0] == 9
        assert peer.read_text() == '{"type":"alive"}'
        assert peer.read_close() == 4508, "this peer answers no ping"


async def test_a_slow_reader_is_not_read_from_and_then_caught_up_whole(fragile: Service) -> None:
    channel = name()
    before = sum(fragile.metric("lagged_total").values())
    async with converse(fragile, receive_buffer=4096) as slow, converse(fragile) as brisk:
        for client in (slow, brisk):
            await client.ask("subscribe", channel=channel)
        filling = asyncio.create_task(fill(fragile, channel, 600, size=4000))
        assert numbers(await brisk.pushes(600)) == list(range(1, 601))
        await filling
        await lagged(fragile, before)
        await asyncio.sleep(2.5)  # beyond two ping intervals: its silence is ours
        assert numbers(await slow.pushes(600)) == list(range(1, 601))
        last = await fill(fragile, channel, 1, first=601)
        assert (await slow.push())["id"] == last
        await asyncio.sleep(2.5)
        assert (await slow.ask("ping"))["type"] == "pong"


async def test_publishes_of_a_slow_reader_wait_and_are_all_taken_once_it_reads(fragile: Service) -> None:
    channel, other = name(), name()
    before = sum(fragile.metric("lagged_total").values())
    async with converse(fragile, receive_buffer=4096) as slow:
        await slow.ask("subscribe", channel=channel)
        await fill(fragile, channel, 600, size=4000)
        await lagged(fragile, before)
        refs = [await slow.say("publish", channel=other, data=number) for number in range(300)]
        await asyncio.sleep(0.5)
        assert fragile.get(f"/api/v1/channels/{other}/messages").json()["messages"] == []
        answers: dict[int, str] = {}
        heard: list[Frame] = []
        while len(answers) < len(refs) or len(heard) < 600:
            frame = await slow.read()
            if frame["type"] == "published":
                assert frame["ref"] not in answers
                answers[frame["ref"]] = frame["id"]
            elif frame["type"] == "message":
                heard.append(frame)
        assert numbers(heard) == list(range(1, 601))
        page = fragile.get(f"/api/v1/channels/{other}/messages?limit=1000").json()["messages"]
        assert [item["id"] for item in page] == [answers[ref] for ref in refs]
        assert [item["data"] for item in page] == list(range(300))


async def test_a_slow_reader_whom_the_log_no_longer_reaches_is_told_in_its_place(fragile: Service) -> None:
    channel = name("short")
    before = sum(fragile.metric("lagged_total").values())
    async with converse(fragile, receive_buffer=4096) as slow:
        await slow.ask("subscribe", channel=channel)
        last = await fill(fragile, channel, 1200, size=4000)
        await lagged(fragile, before)
        heard = []
        while (frame := await slow.read())["type"] != "gap":
            if frame["type"] == "message":
                heard.append(frame)
        assert numbers(heard) == list(range(1, len(heard) + 1))
        assert len(heard) < 1200
        assert frame == {"type": "gap", "channel": channel, "reason": "expired", "position": last}
        live = await fill(fragile, channel, 1, first=1201)
        assert (await slow.push())["id"] == live
        await slow.ask("unsubscribe", channel=channel)
        answer = await slow.ask("subscribe", channel=channel, since=heard[0]["id"])
        assert (answer["recovered"], answer["reason"], answer["position"]) == (False, "expired", live)


async def test_clearing_a_channel_tells_everyone_and_offsets_go_on(fragile: Service) -> None:
    channel = name()
    async with converse(fragile) as one, converse(fragile) as two:
        old = await fill(fragile, channel, 3)
        for client in (one, two):
            await client.ask("subscribe", channel=channel)
        assert httpx.delete(f"{fragile.url}/api/v1/channels/{channel}/messages").status_code == 204
        gaps = [await client.push("gap") for client in (one, two)]
        assert gaps[0] == gaps[1]
        assert (gaps[0]["reason"], offset(gaps[0]["position"])) == ("cleared", 3)
        assert gaps[0]["position"] != old
        live = await fill(fragile, channel, 1, first=4)
        for client in (one, two):
            message = await client.push()
            assert (message["id"], offset(message["id"])) == (live, 4)
        await one.ask("unsubscribe", channel=channel)
        answer = await one.ask("subscribe", channel=channel, since=old)
        assert (answer["recovered"], answer["reason"], answer["replayed"]) == (False, "cleared", 0)
        await two.ask("unsubscribe", channel=channel)
        answer = await two.ask("subscribe", channel=channel, since=gaps[0]["position"])
        assert (answer["recovered"], answer["replayed"]) == (True, 1)
        assert (await two.push())["id"] == live


async def test_emptying_redis_tells_everyone_and_messages_go_on_from_the_gap(
    own_redis: RedisServer, fragile: Service
) -> None:
    channel = name()
    async with converse(fragile) as one, converse(fragile) as two:
        old = await fill(fragile, channel, 3)
        for client in (one, two):
            await client.ask("subscribe", channel=channel)
        with own_redis.client() as admin:
            admin.flushall()
        await fill(fragile, channel, 2)
        for client in (one, two):
            gap = await client.push("gap")
            assert gap["reason"] == "diverged"
            at = offset(gap["position"])
            assert gap["position"].partition("-")[0] != old.partition("-")[0]
            assert numbers(await client.pushes(2 - at)) == list(range(1, 3))[at:]
            await client.ask("unsubscribe", channel=channel)
            answer = await client.ask("subscribe", channel=channel, since=old)
            assert (answer["recovered"], answer["reason"]) == (False, "diverged")


async def test_the_pubsub_connection_killed_again_and_again_leaves_no_hole(
    own_redis: RedisServer, fragile: Service
) -> None:
    channel = name()
    async with contextlib.AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(converse(fragile)) for _ in range(6)]
        for reader in readers:
            await reader.ask("subscribe", channel=channel)
        talker = await stack.enter_async_context(converse(fragile))
        hearing = [asyncio.create_task(reader.pushes(1500)) for reader in readers]
        with own_redis.client() as admin:
            for number in range(1500):
                await talker.say("publish", channel=channel, data={"n": number})
                if number % 100 == 50:
                    await asyncio.to_thread(admin.execute_command, "CLIENT", "KILL", "TYPE", "pubsub")
                if number % 10 == 0:
                    await asyncio.sleep(0.02)
        answers = [await talker.read() for _ in range(1500)]
        ids = [frame["id"] for frame in answers if frame["type"] == "published"]
        for heard in await asyncio.gather(*hearing):
            assert numbers(heard) == list(range(1500))
            assert [frame["id"] for frame in heard][: len(ids)] == ids


async def test_ten_thousand_messages_are_replayed_in_pages_before_what_is_new(fragile: Service) -> None:
    channel = name()
    # Read as they come, so that a ping behind them is answered within its second.
    async with converse(fragile, max_queue=None) as client, converse(fragile) as talker:
        start = (await client.ask("subscribe", channel=channel))["position"]
        await client.ask("unsubscribe", channel=channel)
        await fill(fragile, channel, 10_000)
        taken = 10_000
        stop = asyncio.Event()

        async def talk() -> None:
            nonlocal taken
            while not stop.is_set():
                answer = await talker.ask("publish", channel=channel, data={"n": taken + 1})
                assert answer["type"] == "published"
                taken += 1

        talking = asyncio.create_task(talk())
        for _ in range(3):
            least = taken
            answer = await client.ask("subscribe", channel=channel, since=start)
            assert (answer["position"], answer["recovered"]) == (start, True)
            assert least <= answer["replayed"] <= taken + 1
            heard = await client.pushes(answer["replayed"] + 50)
            assert numbers(heard) == list(range(1, len(heard) + 1))
            await client.ask("unsubscribe", channel=channel)
            client.waiting.clear()
        stop.set()
        await talking


async def test_acknowledgements_of_a_burst_are_joined(fragile: Service) -> None:
    """Counted in TCP segments that carried data to us."""
    channel = name()
    count = 300

    def publish(ref: int) -> bytes:
        return text(json.dumps({"type": "publish", "ref": ref, "channel": channel, "data": ref}))

    def segments(peer: Peer) -> int:
        info = peer.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
        return int.from_bytes(info[152:156], "little")  # tcpi_data_segs_in

    def burst() -> int:
        with Peer(fragile.port, handshake=request(extra="Sec-WebSocket-Protocol: tocsin.v1\r\n")) as peer:
            assert json.loads(peer.read_text())["type"] == "welcome"
            before = segments(peer)
            peer.send(*(publish(ref) for ref in range(count)))
            refs: list[int] = []
            while len(refs) < count:
                frame = json.loads(peer.read_text())
                refs += [frame["ref"]] if frame["type"] != "alive" else []
            assert refs == list(range(count))
            return segments(peer) - before

    assert await asyncio.to_thread(burst) <= count // 10


async def test_while_redis_is_away_commands_are_answered_and_those_who_listen_stay(
    own_redis: RedisServer, fragile: Service
) -> None:
    channel, fresh = name(), name()
    async with converse(fragile) as client:
        await client.ask("subscribe", channel=channel)
        own_redis.signal(signal.SIGSTOP)
        opening = await client.say("subscribe", channel=fresh)
        leaving = await client.say("unsubscribe", channel=fresh)
        assert (await client.answer(opening))["code"] == "not_subscribed"
        assert (await client.answer(leaving))["type"] == "unsubscribed"
        refs = [
            await client.say("publish", channel=channel, data={"n": 1}),
            await client.say("subscribe", channel=fresh),
            await client.say("history", channel=channel),
            await client.say("ping"),
        ]
        answers: dict[int, Frame] = {}
        while len(answers) < len(refs):
            frame = await client.read()
            if "ref" in frame:
                answers[frame["ref"]] = frame
        assert [answers[ref].get("code") for ref in refs] == ["unavailable", "unavailable", "unavailable", None]
        assert answers[refs[1]]["retry_after"] > 0
        own_redis.signal(signal.SIGCONT)
        await asyncio.to_thread(until, lambda: fragile.post(channel, {"data": {"n": 2}}).status_code == 201, 15)
        while (await client.push())["data"]["n"] != 2:
            pass
        assert (await client.ask("subscribe", channel=fresh))["type"] == "subscribed"


async def test_a_stopping_service_says_when_to_come_back_and_closes_with_1012(own_redis: RedisServer) -> None:
    with Service(own_redis.url, workers=2, node="stopping", drain_seconds="1") as service:
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(converse(service)) for _ in range(20)]
            for client in clients:
                await client.ask("subscribe", channel="lobby")
            stopping = asyncio.create_task(asyncio.to_thread(service.stop))

            async def end(client: NativeClient) -> tuple[Frame, int]:
                frame = await client.push("reconnect")
                return frame, await client.code()

            ends = await asyncio.gather(*(end(client) for client in clients))
            for frame, code in ends:
                assert code == 1012
                assert frame["reason"] == "draining"
                assert 0 <= frame["after"] <= 30
            assert len({frame["after"] for frame, _ in ends}) > 10
            await stopping
