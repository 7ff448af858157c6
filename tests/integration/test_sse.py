"""Server-sent events over real workers, detached and over ASGI: the same log, the same promise, by `Last-Event-ID`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from tests.integration.test_identity import ADMIN, PAGE, SETTINGS, bearer, somebody, token
from tests.stage.events import Follower, Heard, Refused, listen
from tests.stage.native import converse
from tests.stage.redis import RedisServer
from tests.stage.service import NO_TLS, Service, until


@pytest.fixture(scope="module")
def own_redis() -> Iterator[RedisServer]:
    with RedisServer(appendonly="yes", appendfsync="always", aof_use_rdb_preamble="no") as server:
        yield server


def settings(name: str) -> dict[str, str]:
    """Of both services: comments come every second, readers are slow soon."""
    return {"redis_prefix": name, "node": name, "ping_seconds": "1", "high_mark": "262144", "max_connections": "30"}


@pytest.fixture(scope="module")
def fast(own_redis: RedisServer) -> Iterator[Service]:
    with Service(own_redis.url, workers=4, settings=settings("streams")) as running:
        yield running


@pytest.fixture(scope="module")
def portable(own_redis: RedisServer) -> Iterator[Service]:
    with Service(own_redis.url, workers=2, fast=False, settings=settings("streams-portable")) as running:
        yield running


@pytest.fixture(params=["fast", "portable"])
def either(request: pytest.FixtureRequest) -> Service:
    """Each kind of socket."""
    service: Service = request.getfixturevalue(request.param)
    return service


@pytest.fixture
def channel() -> str:
    return f"sse:{secrets.token_hex(4)}"


async def refusal(service: Service, *channels: str, since: str | None = None, **headers: str) -> tuple[int, str | None]:
    """Status and code with which a stream is refused."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with pytest.raises(Refused) as refused:
        async with listen(service, *channels, since=since, headers=named):
            pass
    return refused.value.status, refused.value.code


async def test_messages_of_one_channel_come_as_native_objects_with_their_ids(either: Service, channel: str) -> None:
    async with listen(either, channel) as stream, converse(either) as client:
        assert stream.headers["content-type"] == "text/event-stream"
        assert stream.headers["cache-control"] == "no-store"
        assert stream.headers["x-accel-buffering"] == "no"
        await client.ask("subscribe", channel=channel)
        data = '{\n  "text": "l\\nm",\r\n "n": 1\r}'
        await client.socket.send(f'{{"type":"publish","ref":"raw","channel":"{channel}","data":{data}}}')
        await client.answer("raw")
        await client.ask("publish", channel=channel, base64="AAE=")
        await client.ask("publish", channel=channel, data="typing", ephemeral=True)
        several = await stream.reads(3)
        for heard in several:
            pushed = await client.push()
            assert (heard.kind, heard.data) == ("message", pushed)
            assert heard.id == pushed.get("id", heard.id)
        assert [event.data.get("data") for event in several] == [{"text": "l\nm", "n": 1}, None, "typing"]
        assert several[2].id == several[1].id  # an ephemeral message moves nothing
        assert stream.last_id.endswith("-2")
        assert stream.retry is not None
        assert 1000 <= stream.retry <= 3000


async def test_a_comment_comes_while_nothing_happens(either: Service, channel: str) -> None:
    async with listen(either, channel) as stream:
        with contextlib.suppress(TimeoutError):
            await stream.read(seconds=2.5)
        assert stream.comments >= 2


async def test_a_stream_resumes_behind_the_last_event_id_on_any_worker(either: Service, channel: str) -> None:
    async with listen(either, channel) as stream:
        either.post(channel, {"data": 0})
        first = await stream.read()
    assert first.id == first.data["id"]
    for number in range(1, 6):
        either.post(channel, {"data": number})
    heard: list[Heard] = []
    for _ in range(4):
        async with listen(either, channel, since=first.id) as stream:
            heard = await stream.reads(5)
            assert [event.data["data"] for event in heard] == [1, 2, 3, 4, 5]
    async with listen(either, f"{channel}&since={heard[2].id}") as stream:
        assert [event.data["data"] for event in await stream.reads(2)] == [4, 5]
    async with listen(
        either, f"{channel}&since={first.id}", since=heard[3].id
    ) as stream:  # a page's URL stays as it was
        assert (await stream.read()).data["data"] == 5


async def test_a_stream_that_has_heard_nothing_yet_misses_nothing_either(either: Service, channel: str) -> None:
    names = channel, f"{channel}:b"
    async with listen(either, *names) as stream:
        with contextlib.suppress(TimeoutError):
            await stream.read(seconds=0.3)
        assert stream.last_id.count("=") == 2
    for name in names:
        either.post(name, {"data": name})
    async with listen(either, *names, since=stream.last_id) as stream:
        assert {event.data["data"] for event in await stream.reads(2)} == set(names)


async def test_an_id_of_several_channels_names_all_positions(either: Service, channel: str) -> None:
    names = [f"{channel}:{index}" for index in range(5)]
    positions: dict[str, str] = {}
    async with listen(either, *names) as stream:
        for number in range(12):
            name = names[number * 7 % 5]
            positions[name] = either.post(name, {"data": number}).json()["id"]
            heard = await stream.read()
            assert heard.data["data"] == number
            said = dict(part.split("=") for part in heard.id.split(","))
            assert list(said) == names
            assert positions.items() <= said.items()
    for name in names:
        either.post(name, {"data": f"more {name}"})
    async with listen(either, *names, since=stream.last_id) as stream:
        assert {event.data["data"] for event in await stream.reads(5)} == {f"more {name}" for name in names}
        either.post(names[0], {"data": "live"})
        assert (await stream.read()).data["data"] == "live"


async def test_what_the_log_does_not_have_any_more_is_a_gap_until_it_is_told(either: Service, channel: str) -> None:
    other = f"{channel}:b"
    either.post(channel, {"data": 1})
    kept = either.post(other, {"data": 1}).json()["id"]
    either.post(other, {"data": 2})
    lost = "abc-5"
    async with listen(either, channel, since=lost) as stream:
        gap = await stream.read()
        assert gap.kind == "gap"
        assert gap.data == {"type": "gap", "channel": channel, "reason": "diverged", "position": gap.id}
        either.post(channel, {"data": 2})
        heard = await stream.read()
        assert (heard.kind, heard.data["data"]) == ("message", 2)
    async with listen(either, channel, other, since=f"{channel}={lost},{other}={kept}") as stream:
        told = await stream.reads(2)
        [gap] = [event for event in told if event.kind == "gap"]
        assert gap.data["channel"] == channel
        for event in told[: told.index(gap)]:
            assert f"{channel}={lost}" in event.id  # broken here, the gap would be told again
        assert f"{channel}={gap.data['position']}" in gap.id


async def test_a_cleared_channel_is_a_gap_and_live_messages_go_on(either: Service, channel: str) -> None:
    either.post(channel, {"data": 1})
    async with listen(either, channel, f"{channel}:b") as stream:
        httpx.delete(f"{either.url}/api/v1/channels/{channel}/messages", verify=NO_TLS)
        gap = await stream.read()
        assert (gap.kind, gap.data["reason"]) == ("gap", "cleared")
        either.post(channel, {"data": 2})
        assert (await stream.read()).data["data"] == 2


async def test_what_cannot_be_served_is_refused_with_a_reason(either: Service, channel: str) -> None:
    some = "4c1f-1"
    assert await refusal(either) == (422, "bad_request")
    assert await refusal(either, "%20") == (400, "bad_channel")
    assert await refusal(either, *(f"{channel}:{i}" for i in range(33))) == (429, "too_many_subscriptions")
    for bad in (f"{channel}={some}", "x", f"{some},", f"{some} "[:-1] + "-"):
        assert await refusal(either, channel, since=bad) == (400, "bad_position")
    two = channel, f"{channel}:b"
    for bad in (
        some,
        f"{channel}={some},",
        f"{channel}={some},{channel}={some}",
        f"{channel}={some},elsewhere={some}",
        f"{channel}=",
        f"{channel}:b={some}, {channel}={some}",
    ):
        assert await refusal(either, *two, since=bad) == (400, "bad_position"), bad
    assert await refusal(either, channel, accept="application/json") == (406, "bad_request")
    assert (await refusal(either, channel, origin="https://elsewhere.example"))[0] == 403
    for method in ("HEAD", "OPTIONS", "PUT"):
        answer = httpx.request(
            method, f"{either.url}/sse?channel=a", headers={"content-type": "application/json"}, verify=NO_TLS
        )
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET"), method


async def test_a_channel_that_is_named_twice_counts_once(either: Service, channel: str) -> None:
    async with listen(either, *[channel] * 33) as stream:
        posted = either.post(channel, {"data": 1}).json()["id"]
        heard = await stream.read()
        assert (heard.data["data"], heard.id) == (1, posted)


async def test_clients_that_leave_before_the_head_are_no_faults(either: Service, channel: str) -> None:
    def count(name: str) -> float:
        return sum(either.metric(name).values())

    asked = f"GET /sse?channel={channel} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    until(lambda: count("connections") == 0)
    opened = count("connections_opened_total")
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", either.port)) as sock:
            sock.sendall(asked)
    await asyncio.to_thread(until, lambda: count("connections_opened_total") >= opened + 20)
    await asyncio.to_thread(until, lambda: count("connections") == 0)
    assert "Traceback" not in either.log()


async def test_who_takes_anything_or_says_nothing_gets_events(either: Service, channel: str) -> None:
    for accept in ("*/*", "text/html, text/*;q=0.5", "text/event-stream"):
        async with listen(either, channel, headers={"accept": accept}) as stream:
            assert stream.headers["content-type"] == "text/event-stream"


async def test_a_client_of_http_1_0_gets_the_body_as_it_is(fast: Service, channel: str) -> None:
    async with listen(fast, channel, version="1.0") as stream:
        assert "transfer-encoding" not in stream.headers
        assert stream.headers["connection"] == "close"
        fast.post(channel, {"data": 1})
        assert (await stream.read()).data["data"] == 1


def descriptors(service: Service) -> int:
    """Open files of all workers."""
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in service.worker_pids())


async def test_a_client_that_leaves_is_forgotten_at_once(either: Service, channel: str) -> None:
    def count() -> float:
        return sum(either.metric("connections").values())

    until(lambda: count() == 0)
    async with contextlib.AsyncExitStack() as stack:
        for index in range(12):
            await stack.enter_async_context(listen(either, channel, f"{channel}:{index}"))
        await asyncio.to_thread(until, lambda: count() == 12)
        held = descriptors(either)
    await asyncio.to_thread(until, lambda: count() == 0)
    await asyncio.to_thread(until, lambda: descriptors(either) <= held - 12)
    listed = httpx.get(f"{either.url}/api/v1/channels?prefix={channel}", verify=NO_TLS)
    assert listed.json()["channels"] == []


async def test_a_slow_reader_leaves_the_group_and_misses_nothing(either: Service, channel: str) -> None:
    lagged = sum(either.metric("lagged_total").values())
    names = channel, f"{channel}:b"
    async with (
        listen(either, channel, receive_buffer=4096) as slow,
        listen(either, *names, receive_buffer=4096) as several,
        httpx.AsyncClient(verify=NO_TLS) as http,
    ):
        for number in range(120):
            url = f"{either.url}/api/v1/channels/{channel}/messages"
            answer = await http.post(url, json={"data": [number, "x" * 40_000]})
            assert answer.status_code == 201
        await asyncio.to_thread(until, lambda: sum(either.metric("lagged_total").values()) >= lagged + 2)
        for stream in (slow, several):
            assert [event.data["data"][0] for event in await stream.reads(120)] == list(range(120))


@pytest.fixture
async def whole(own_redis: RedisServer, either: Service) -> AsyncIterator[None]:
    """Whatever a test does to Redis or to workers, the next one finds them working."""
    yield
    if own_redis.process is None:
        own_redis.start()
    await asyncio.to_thread(until, either.all_ready, 30)


async def publish(service: Service, names: tuple[str, ...], count: int, pause: float) -> dict[str, list[int]]:
    """Publish numbers by REST, each with its key until it is taken; returns what each channel then has."""
    sent: dict[str, list[int]] = {name: [] for name in names}
    async with httpx.AsyncClient(timeout=5, verify=NO_TLS) as http:
        for number in range(count):
            name = names[number % len(names)]
            body = {"data": number, "key": f"number-{number:012}"}
            status = 0
            while status not in {200, 201}:
                with contextlib.suppress(httpx.HTTPError):
                    status = (await http.post(f"{service.url}/api/v1/channels/{name}/messages", json=body)).status_code
                await asyncio.sleep(pause)
            sent[name].append(number)
    return sent


async def check(followers: list[Follower], sent: dict[str, list[int]]) -> None:
    """Everybody has everything, in order, once."""
    for follower in followers:
        for name, numbers in sent.items():
            await follower.until(numbers[-1])
            assert follower.data(name) == numbers
        assert {event.kind for event in follower.heard} <= {"message", "reconnect"}
        await follower.stop()


@pytest.mark.usefixtures("whole")
async def test_a_stopping_worker_says_when_to_return_and_ends_the_body(either: Service, channel: str) -> None:
    names = channel, f"{channel}:b"
    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(listen(either, *(names[: 1 + i % 2]))) for i in range(8)]
        pid = either.pid_serving(streams[0].port)
        assert pid is not None
        there = [stream for stream in streams if either.pid_serving(stream.port) == pid]
        either.post(channel, {"data": 1})
        os.kill(pid, signal.SIGTERM)
        for stream in there:
            first, last = await stream.end()
            assert (first.kind, last.kind) == ("message", "reconnect")
            assert last.data == {"type": "reconnect", "after": last.data["after"], "reason": "draining"}
            assert last.id == first.id
            assert stream.retry == pytest.approx(1000 + 1000 * last.data["after"], abs=1)
            assert stream.whole
    assert "error" not in either.log().lower()


@pytest.mark.usefixtures("whole")
async def test_through_a_killed_worker_every_stream_is_whole(either: Service, channel: str) -> None:
    names = channel, f"{channel}:b"
    followers = [Follower(either, *(names if index % 2 else names[:1])) for index in range(12)]
    for follower in followers:
        await follower.live()
    publishing = asyncio.create_task(publish(either, names, 160, 0.005))
    await asyncio.sleep(0.3)
    assert followers[1].stream is not None
    pid = either.pid_serving(followers[1].stream.port)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    sent = await publishing
    for index, follower in enumerate(followers):
        await check([follower], sent if index % 2 else {channel: sent[channel]})
    assert followers[1].returns > 0


@pytest.mark.usefixtures("whole")
async def test_while_redis_is_away_streams_stay_and_new_ones_are_told_when_to_try(
    own_redis: RedisServer, either: Service, channel: str
) -> None:
    names = channel, f"{channel}:b"
    followers = [Follower(either, *names) for _ in range(6)]
    for follower in followers:
        await follower.live()
    publishing = asyncio.create_task(publish(either, names, 60, 0.005))
    await asyncio.sleep(0.2)
    await asyncio.to_thread(own_redis.kill)
    await asyncio.to_thread(until, lambda: either.get("/readyz").status_code == 503, 10)
    with pytest.raises(Refused) as refused:
        async with listen(either, channel):
            pass
    assert (refused.value.status, refused.value.code) == (503, "unavailable")
    assert int(refused.value.headers["retry-after"]) >= 1
    await asyncio.to_thread(own_redis.start)
    sent = await publishing
    assert [follower.returns for follower in followers] == [0] * 6
    await check(followers, sent)


@pytest.fixture(scope="module")
def guarded(redis_server: RedisServer) -> Iterator[Service]:
    more = {"max_connections_per_user": "3", "max_connections": "4", "redis_prefix": "streams-guarded"}
    with Service(redis_server.url, settings=SETTINGS | more) as running:
        yield running


async def test_a_token_comes_by_header_or_cookie_never_by_the_url(guarded: Service) -> None:
    good = token(allows={"subscribe": ["room:*"]})
    async with listen(guarded, "room:1", headers=bearer(good)) as stream:
        assert "access-control-allow-origin" not in stream.headers
    cookie = {"cookie": f"session={good}"}
    async with listen(guarded, "room:1", headers=cookie | {"sec-fetch-site": "same-origin"}):
        pass
    async with listen(guarded, "room:1", headers=cookie | {"origin": PAGE}) as stream:
        assert stream.headers["access-control-allow-origin"] == PAGE
        assert stream.headers["access-control-allow-credentials"] == "true"
    assert await refusal(guarded, "room:1") == (401, "unauthorized")
    assert await refusal(guarded, "room:1", **cookie) == (401, "unauthorized")
    assert await refusal(guarded, f"room:1&token={good}") == (401, "unauthorized")
    assert await refusal(guarded, "room:1", "other", **bearer(good)) == (403, "forbidden")
    assert await refusal(guarded, "room:1", **cookie, origin="https://elsewhere.example") == (403, "forbidden")
    preflight = {
        "origin": PAGE,
        "access-control-request-method": "GET",
        "access-control-request-headers": "last-event-id",
    }
    assert httpx.options(f"{guarded.url}/sse?channel=room:1", headers=preflight, verify=NO_TLS).status_code == 200


async def test_connections_of_a_user_and_of_the_worker_are_limited(guarded: Service) -> None:
    until(lambda: sum(guarded.metric("connections").values()) == 0)
    mine = bearer(token(somebody()))
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(listen(guarded, "room:1", headers=mine))
        assert await refusal(guarded, "room:1", **mine) == (429, "rate_limited")
        await stack.enter_async_context(listen(guarded, "room:1", headers=bearer(token(somebody()))))
        assert await refusal(guarded, "room:1", **bearer(token(somebody()))) == (503, "unavailable")


async def test_a_stream_ends_with_its_token_and_with_a_revocation(guarded: Service) -> None:
    until(lambda: sum(guarded.metric("connections").values()) == 0)
    exp = int(time.time()) - 7  # within the leeway of ten seconds
    user = somebody()
    ending, revoked = bearer(token(exp=exp)), bearer(token(user))
    async with listen(guarded, "room:1", headers=ending) as first, listen(guarded, "room:1", headers=revoked) as other:
        asked = httpx.post(
            f"{guarded.url}/api/v1/users/{user}/disconnect", json={"refuse_seconds": 60}, headers=ADMIN, verify=NO_TLS
        )
        assert asked.status_code == 202
        assert await other.end() == []
        assert other.whole
        assert await refusal(guarded, "room:1", **revoked) == (403, "forbidden")
        assert await first.end() == []
        assert first.whole
        assert -0.5 < time.time() - (exp + 10) < 2
        assert await refusal(guarded, "room:1", **ending) == (401, "unauthorized")
