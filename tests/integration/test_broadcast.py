"""Plain clients on several workers are one broadcast domain."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import Counter

import pytest
import websockets
from websockets.asyncio.client import ClientConnection
from websockets.typing import Subprotocol

from tests.stage.service import Service, until


def room() -> str:
    return f"room:{secrets.token_hex(5)}"


async def expect(client: ClientConnection, *messages: str | bytes) -> None:
    for message in messages:
        assert await asyncio.wait_for(client.recv(), 10) == message


async def test_text_and_binary_reach_every_socket_of_every_worker_with_their_type(service: Service) -> None:
    channel = room()
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(service.connect(channel)) for _ in range(12)]
        await clients[0].send("hello, wörld")
        await clients[0].send(b"\x00\xff")
        for client in clients:
            await expect(client, "hello, wörld", b"\x00\xff")


async def test_channels_do_not_hear_each_other(service: Service) -> None:
    async with service.connect(room()) as one, service.connect(room()) as other:
        await one.send("mine")
        await other.send("theirs")
        await expect(one, "mine")
        await expect(other, "theirs")


async def test_the_default_channel_is_lobby(service: Service) -> None:
    async with (
        websockets.connect(f"ws://127.0.0.1:{service.port}/ws") as bare,
        service.connect("lobby") as named,
    ):
        word = secrets.token_hex(8)
        await bare.send(word)
        await expect(named, word)


async def test_echo_false_leaves_out_ones_own_messages_and_nothing_else(service: Service) -> None:
    channel = room()
    async with service.connect(channel, "&echo=false") as quiet, service.connect(channel) as other:
        await quiet.send("from quiet")
        await expect(other, "from quiet")
        await other.send("from other")
        await expect(quiet, "from other")
        for number in range(50):
            await (quiet if number % 2 else other).send(str(number))
        await expect(quiet, *(str(number) for number in range(0, 50, 2)))


async def test_history_begins_with_the_newest_and_goes_on_live(service: Service) -> None:
    channel = room()
    for number in range(5):
        assert service.post(channel, {"data": str(number)}).status_code == 201
    async with service.connect(channel, "&history=3") as client:
        await client.send("live")
        await expect(client, "2", "3", "4", "live")


async def test_since_brings_what_was_missed_and_then_what_follows(service: Service) -> None:
    channel = room()
    ids = [service.post(channel, {"data": str(number)}).json()["id"] for number in range(300)]
    async with service.connect(channel, f"&since={ids[9]}") as client:
        await client.send("live")
        await expect(client, *(str(number) for number in range(10, 300)), "live")


async def test_a_since_that_cannot_be_made_whole_closes_with_4510(service: Service) -> None:
    channel = room()
    service.post(channel, {"data": "x"})
    async with service.connect(channel, "&since=abcdef012345-7") as client:
        with pytest.raises(websockets.ConnectionClosed):
            await asyncio.wait_for(client.recv(), 10)
        assert client.close_code == 4510


async def test_a_thousand_fresh_channels_published_to_at_once_through_another_worker_lose_nothing(
    service: Service,
) -> None:
    """Open means live: what is published after the 101 arrives."""
    lost = Counter[str]()
    gate = asyncio.Semaphore(50)
    run = secrets.token_hex(4)

    async def open_and_hear(number: int) -> None:
        channel = f"fresh:{run}:{number}"
        async with gate, service.connect(channel) as listener, service.connect(channel) as speaker:
            await speaker.send("at once")
            try:
                await expect(listener, "at once")
            except TimeoutError:
                lost[channel] += 1

    await asyncio.gather(*(open_and_hear(number) for number in range(1000)))
    assert not lost


async def test_eight_publishers_and_thirty_subscribers_see_one_order(service: Service) -> None:
    channel = room()
    async with contextlib.AsyncExitStack() as stack:
        listeners = [await stack.enter_async_context(service.connect(channel)) for _ in range(30)]
        speakers = [await stack.enter_async_context(service.connect(channel, "&echo=false")) for _ in range(8)]

        async def hear(client: ClientConnection) -> list[str | bytes]:
            return [await asyncio.wait_for(client.recv(), 20) for _ in range(8 * 100)]

        async def speak(number: int, client: ClientConnection) -> None:
            for count in range(100):
                await client.send(f"{number}:{count}")

        hearing = [asyncio.create_task(hear(client)) for client in listeners]
        await asyncio.gather(*(speak(number, client) for number, client in enumerate(speakers)))
        lists = await asyncio.gather(*hearing)
    assert all(heard == lists[0] for heard in lists)
    for number in range(8):
        own = [str(message) for message in lists[0] if str(message).startswith(f"{number}:")]
        assert own == [f"{number}:{count}" for count in range(100)]


def _all_counted(service: Service, connections: int) -> dict[str, float] | None:
    counts = service.metric("connections")
    return counts if sum(counts.values()) >= connections else None


async def test_connections_spread_over_the_workers(service: Service) -> None:
    channel = room()
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(40):
            await asyncio.gather(*(stack.enter_async_context(service.connect(channel)) for _ in range(5)))
        # One and the same answer: the next is another worker's, to whom the first one's count may be a beat old.
        counts = await asyncio.to_thread(until, lambda: _all_counted(service, 200))
    assert len(counts) == 4
    assert min(counts.values()) >= 1
    assert max(counts.values()) <= 0.8 * sum(counts.values()), (
        "one worker has nearly all; `make bench` says how even it is"
    )


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("channel=bad%20name", 400, "bad_channel"),
        ("channel=" + "a" * 129, 400, "bad_channel"),
        ("channel=%2A", 400, "bad_channel"),
        ("channel=", 400, "bad_channel"),
        ("channel=a&history=minus", 400, "bad_request"),
        ("channel=a&history=1001", 400, "bad_request"),
        ("channel=a&echo=perhaps", 400, "bad_request"),
        ("channel=a&since=zzz", 400, "bad_position"),
    ],
)
async def test_bad_queries_are_refused_before_the_upgrade_in_the_error_model(
    service: Service, query: str, status: int, code: str
) -> None:
    with pytest.raises(websockets.InvalidStatus) as refused:
        await websockets.connect(f"ws://127.0.0.1:{service.port}/ws?{query}")
    response = refused.value.response
    assert response.status_code == status
    assert f'"code":"{code}"'.encode() in bytes(response.body or b"")
    same = service.get(f"/api/v1/connect?{query}")
    assert (same.status_code, same.json()["error"]["code"]) == (status, code)


async def test_an_offer_without_a_codec_we_know_is_refused_with_advice(service: Service) -> None:
    for offer in ([Subprotocol("chat")], [Subprotocol("tocsin.bearer.abc")]):
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(service.ws(), subprotocols=offer)
        assert refused.value.response.status_code == 400
        assert b"tocsin.plain" in bytes(refused.value.response.body or b"")
    async with websockets.connect(service.ws(), subprotocols=[Subprotocol("tocsin.plain")]) as client:
        assert client.subprotocol == "tocsin.plain"


async def test_a_message_over_the_limit_closes_with_1009_and_one_at_the_limit_passes(service: Service) -> None:
    channel = room()
    async with service.connect(channel, max_size=None) as client:
        await client.send("x" * 65_536)
        await expect(client, "x" * 65_536)
        await client.send("x" * 65_537)
        with pytest.raises(websockets.ConnectionClosed):
            await asyncio.wait_for(client.recv(), 10)
        assert client.close_code == 1009
