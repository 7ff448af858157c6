"""Tokens: shown on connecting, renewed before their end, and once when refused, on a service that knows them."""

from __future__ import annotations

import asyncio

import pytest

import tocsin
from tests.clients.python.stage import KEY, QUICK, data_of, somewhere, take, token, url
from tests.stage.service import Service


async def renewed_in_time(guarded: Service) -> None:
    made: list[str] = []
    told: list[tocsin.Change] = []

    async def make() -> str:
        made.append(token(3600 if made else 2.5))
        return made[-1]

    async with tocsin.connect(url(guarded), token=make, on_state=told.append) as client:
        assert client.user == "ada"
        async with client.subscribe(somewhere()) as room:
            async with asyncio.timeout(15):
                while len(made) < 2:
                    await asyncio.sleep(0.05)
            await asyncio.sleep(1.0)  # the first token has ended
            await room.publish("still here")
            assert data_of(await take(room, 1)) == ["still here"]
    assert [change.state for change in told] == ["connecting", "open", "stopped"]


async def refused_once(guarded: Service) -> None:
    """No new token comes before the end, so the service closes with 4401; the one for the next connection is good."""
    told: list[tocsin.Change] = []
    asked = 0

    def make() -> str:
        nonlocal asked
        asked += 1
        if asked == 1:
            return token(1.5)
        if told[-1].state == "open":
            raise OSError("whoever makes tokens is away")
        return token(3600)

    connecting = tocsin.connect(url(guarded), token=make, on_state=told.append, backoff=QUICK)
    async with connecting as client, client.subscribe(somewhere()) as room:
        async with asyncio.timeout(20):
            while not any(change.state == "waiting" for change in told):
                await asyncio.sleep(0.05)
        [away] = [change for change in told if change.state == "waiting"]
        assert "4401" in away.reason
        assert away.delay == 0
        await room.publish("back", timeout=10)
        assert data_of(await take(room, 1)) == ["back"]


async def test_a_token_is_renewed_before_its_end_and_once_when_it_was_refused(guarded: Service) -> None:
    """Both at once: each waits for ten seconds and more."""
    async with asyncio.TaskGroup() as group:
        group.create_task(renewed_in_time(guarded))
        group.create_task(refused_once(guarded))


async def test_a_refused_token_is_asked_for_anew_once(guarded: Service) -> None:
    tokens = iter([token(60, secret="x" * 40), token(60)])
    async with tocsin.connect(url(guarded), token=lambda: next(tokens)) as client:
        assert client.state == "open"
    asked = 0

    def bad() -> str:
        nonlocal asked
        asked += 1
        return token(60, secret="x" * 40)

    with pytest.raises(tocsin.Unauthorized):
        await tocsin.connect(url(guarded), token=bad)
    assert asked == 2


async def test_who_shows_a_fixed_bad_token_is_told_at_once(guarded: Service) -> None:
    for bad in (token(-60), "rubbish"):
        with pytest.raises(tocsin.Unauthorized):
            await tocsin.connect(url(guarded), token=bad)


async def test_whoever_makes_tokens_may_say_that_there_will_be_none(guarded: Service) -> None:
    def none() -> str:
        raise tocsin.Unauthorized("logged out")

    with pytest.raises(tocsin.Unauthorized, match="logged out"):
        await tocsin.connect(url(guarded), token=none)


async def test_closing_does_not_wait_for_a_token_under_way(guarded: Service) -> None:
    asked = 0

    async def make() -> str:
        nonlocal asked
        asked += 1
        if asked > 1:
            await asyncio.sleep(60)
        return token(1.2)

    client = await tocsin.connect(url(guarded), token=make)
    while asked < 2:
        await asyncio.sleep(0.02)
    async with asyncio.timeout(2):
        await client.close()


async def test_whoever_makes_tokens_may_end_the_connection_at_a_renewal(guarded: Service) -> None:
    def make() -> str:
        if told[-1].state == "open":
            raise tocsin.Unauthorized("logged out")
        return token(1.2)

    told: list[tocsin.Change] = []
    connecting = tocsin.connect(url(guarded), token=make, on_state=told.append)
    async with connecting as client, client.subscribe(somewhere()) as room:
        with pytest.raises(tocsin.Unauthorized, match="logged out"):
            await asyncio.wait_for(anext(room), 5)


async def test_a_fault_of_whoever_makes_tokens_is_told_at_the_first_connect(guarded: Service) -> None:
    def make() -> str:
        raise KeyError("nope")

    for connecting in (tocsin.connect(url(guarded), token=make), tocsin.connect(url(guarded), token=make, plain=True)):
        with pytest.raises(KeyError, match="nope"):
            async with asyncio.timeout(5):
                await connecting


async def test_plain_and_rest_show_tokens_and_keys_too(guarded: Service) -> None:
    channel = somewhere()
    tokens = iter([token(60, secret="x" * 40), token(60), token(60)])
    async with tocsin.connect(url(guarded, f"?channel={channel}"), api_key=KEY, plain=True) as socket:
        with tocsin.Publisher(guarded.url, api_key=KEY) as publisher:
            await asyncio.to_thread(publisher.publish, channel, "by key")
        async with tocsin.AsyncPublisher(guarded.url, token=lambda: next(tokens)) as publishing:
            await publishing.publish(channel, "by token")
        assert [await anext(socket), await anext(socket)] == ["by key", "by token"]
    with tocsin.Publisher(guarded.url, api_key="wrong") as publisher, pytest.raises(tocsin.Unauthorized):
        await asyncio.to_thread(publisher.publish, channel, "?")
