"""How much one client may do: rates, connections by address and user, and what is told to who goes beyond."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import jwt
import pytest
import websockets

from tests.stage.native import NativeClient, converse
from tests.stage.redis import RedisServer
from tests.stage.service import NO_TLS, Service, until

SECRET = "s" * 40
KEY = {"x-api-key": "b" * 20}


def token(user: str) -> str:
    allows = {verb: ["*"] for verb in ("publish", "subscribe", "history", "presence")}
    return jwt.encode({"sub": user, "exp": time.time() + 600, "tocsin": allows}, SECRET, "HS256")


def somebody() -> str:
    return f"user-{secrets.token_hex(4)}"


async def answers(client: NativeClient, refs: list[int]) -> list[dict[str, Any]]:
    """The answers to commands, in their order: a refusal overtakes what the store has still to take."""
    found: dict[Any, dict[str, Any]] = {}
    while len(found) < len(refs):
        frame = await client.read()
        if "ref" in frame:
            found[frame["ref"]] = frame
    return [found[ref] for ref in refs]


@pytest.fixture(scope="module", params=[True, False], ids=["fast", "portable"])
def rated(request: pytest.FixtureRequest, redis_server: RedisServer) -> Iterator[Service]:
    settings = {
        "jwt_secret": SECRET,
        "allow_anonymous": "true",
        "api_keys": json.dumps({"shop": KEY["x-api-key"]}),
        "publish_rate": "10",
        "publish_burst": "20",
        "command_rate": "20",
    }
    prefix = f"rated-{request.param}"
    with Service(redis_server.url, redis_prefix=prefix, fast=request.param, settings=settings) as running:
        yield running


async def test_messages_beyond_the_rate_are_refused_with_the_time_to_wait(rated: Service) -> None:
    async with converse(rated) as client:
        refs = [await client.say("publish", channel="room:1", data=number) for number in range(25)]
        told = await answers(client, refs)
        assert [answer["type"] for answer in told[:20]] == ["published"] * 20
        refused = told[-1]
        assert (refused["type"], refused["code"]) == ("error", "rate_limited")
        assert 0 < refused["retry_after"] <= 0.11
        await asyncio.sleep(refused["retry_after"] + 0.02)
        assert (await client.ask("publish", channel="room:1", data=1))["type"] == "published"
    until(lambda: sum(rated.metric("rate_limited_total").values()) >= 1, what="the metric")


async def test_commands_have_a_rate_of_their_own(rated: Service) -> None:
    async with converse(rated) as client:
        refs = [await client.say("ping") for _ in range(60)]
        kinds = [answer["type"] for answer in await answers(client, refs)]
        assert kinds[:40] == ["pong"] * 40
        assert "error" in kinds
        assert (await client.ask("publish", channel="room:1", data=1))["type"] == "published"


async def test_who_goes_on_and_on_is_sent_away_with_4529(rated: Service) -> None:
    async with converse(rated) as client:
        with contextlib.suppress(websockets.ConnectionClosed):
            for number in range(3000):
                await client.say("publish", channel="room:1", data=number)
        assert await client.code() == 4529


async def test_a_plain_socket_is_read_from_more_slowly_and_nothing_is_dropped(rated: Service) -> None:
    channel = f"room:{secrets.token_hex(4)}"
    async with rated.connect(channel) as client:
        began = time.monotonic()
        for number in range(35):
            await client.send(str(number))
        heard = [await asyncio.wait_for(client.recv(), 10) for _ in range(35)]
        assert heard == [str(number) for number in range(35)]
        assert 1.2 < time.monotonic() - began < 6


async def test_all_connections_of_a_user_and_its_requests_count_together(rated: Service) -> None:
    shown = token(somebody())
    async with converse(rated, token=shown) as one, converse(rated, token=shown) as other:
        for client in (one, other):
            refs = [await client.say("publish", channel="room:1", data=number) for number in range(10)]
            assert {answer["type"] for answer in await answers(client, refs)} == {"published"}
        assert (await one.ask("publish", channel="room:1", data=1))["code"] == "rate_limited"
        answer = rated.post("room:1", {"data": 1}, headers={"authorization": f"Bearer {shown}"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limited")
        assert int(answer.headers["retry-after"]) >= 1
    async with converse(rated, token=token(somebody())) as client:
        assert (await client.ask("publish", channel="room:1", data=1))["type"] == "published"


def test_backends_with_a_key_have_no_rates_and_the_anonymous_are_known_by_address(rated: Service) -> None:
    def publish(count: int, headers: dict[str, str]) -> int:
        body = {"messages": [{"channel": "room:1", "data": 1}] * count}
        return httpx.post(f"{rated.url}/api/v1/messages", json=body, headers=headers, verify=NO_TLS).status_code

    assert [publish(500, KEY) for _ in range(3)] == [200, 200, 200]
    assert publish(20, {}) == 200
    assert publish(20, {}) == 429
    # An address that only its sender says is none.
    assert publish(20, {"x-forwarded-for": "203.0.113.7", "forwarded": "for=203.0.113.8"}) == 429


async def refused(service: Service, **headers: str) -> bool:
    try:
        async with websockets.connect(service.ws(), additional_headers=headers, compression=None):
            return False
    except websockets.InvalidStatus as error:
        answer = error.response
    assert answer.status_code == 429, answer
    assert int(answer.headers["retry-after"]) >= 1
    return True


async def test_connections_of_a_user_are_counted_over_all_workers(redis_server: RedisServer) -> None:
    """No worker has as many as it may have: only together they are too many."""
    shown = token(somebody())
    settings = {"jwt_secret": SECRET, "max_connections_per_user": "6"}
    with Service(redis_server.url, redis_prefix="by-user", workers=2, settings=settings) as service:
        async with contextlib.AsyncExitStack() as stack:
            here: Counter[str] = Counter()
            while sum(here.values()) < 6:
                async with contextlib.AsyncExitStack() as attempt:
                    client = await attempt.enter_async_context(converse(service, token=shown))
                    if here[client.welcome["worker"]] < 3:
                        here[client.welcome["worker"]] += 1
                        stack.push_async_exit(attempt.pop_all())
            async with asyncio.timeout(10):  # a second until the workers know of each other's
                while not all([await refused(service, authorization=f"Bearer {shown}") for _ in range(6)]):
                    await asyncio.sleep(0.1)
            assert not await refused(service, authorization=f"Bearer {token(somebody())}")
        async with asyncio.timeout(10):
            while await refused(service, authorization=f"Bearer {shown}"):
                await asyncio.sleep(0.1)


async def test_connections_of_an_address_are_counted_and_it_cannot_be_made_up(redis_server: RedisServer) -> None:
    settings = {"allow_anonymous": "true", "max_connections_per_address": "12"}
    with Service(redis_server.url, redis_prefix="by-address", workers=2, settings=settings) as service:
        async with contextlib.AsyncExitStack() as stack:
            async with asyncio.timeout(20):
                while not all([await refused(service) for _ in range(6)]):
                    with contextlib.suppress(websockets.InvalidStatus):
                        await stack.enter_async_context(service.connect("room:1"))
            assert await refused(service, **{"x-forwarded-for": "203.0.113.7"})
        until(lambda: sum(service.metric("turned_away_total").values()) >= 2, what="the metric")


async def test_upgrades_of_an_address_have_a_rate(redis_server: RedisServer) -> None:
    with Service(redis_server.url, redis_prefix="connects", connect_rate="5") as running:
        began = time.monotonic()
        outcomes = [await refused(running) for _ in range(15)]
        assert outcomes[:5] == [False] * 5
        assert any(outcomes) or time.monotonic() - began > 2
        async with asyncio.timeout(5):
            while await refused(running):
                await asyncio.sleep(0.05)
