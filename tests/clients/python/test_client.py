"""The client on a real service of four workers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import websockets
from websockets.asyncio.server import ServerConnection

import tocsin
from tests.clients.python.stage import QUICK, data_of, somewhere, take, through_proxy, url
from tests.stage.proxy import proxied
from tests.stage.redis import free_port
from tests.stage.service import Service


async def test_publish_hear_leave_and_come_back_for_the_rest(service: Service) -> None:
    channel = somewhere()
    async with tocsin.connect(url(service)) as client:
        assert client.state == "open"
        async with client.subscribe(channel) as room:
            begin = room.position
            ack = await room.publish({"text": "hi"}, timeout=5)
            assert not ack.duplicate
            [event] = await take(room, 1)
            assert isinstance(event, tocsin.Message)
            assert (event.id, event.data, event.sender) == (ack.id, {"text": "hi"}, client.id)
            assert room.position == ack.id
        for number in range(3):
            await client.publish(channel, number)
    assert client.state == "stopped"
    async with tocsin.connect(url(service)) as client, client.subscribe(channel, since=room.position) as room:
        assert data_of(await take(room, 3)) == [0, 1, 2]
        page = await room.history(since=begin, limit=2)
        assert [message.data for message in page.messages] == [{"text": "hi"}, 0]
        assert not page.complete
        assert page.position == page.messages[-1].id


async def test_json_and_bytes_arrive_as_they_were_given(service: Service) -> None:
    given: list[Any] = [None, True, 1.5, "é\n", [], {"a": [1, {"b": None}]}, b"", b"\x00\xff"]
    async with tocsin.connect(url(service)) as client, client.subscribe(somewhere()) as room:
        for data in given:
            await room.publish(data)
        assert data_of(await take(room, len(given))) == given


async def test_rooms_of_a_client_are_apart(service: Service) -> None:
    async with tocsin.connect(url(service)) as client:
        first, second = await client.subscribe(somewhere()), await client.subscribe(somewhere(), history=5)
        await asyncio.gather(first.publish("first"), second.publish("second"))
        assert data_of(await take(first, 1)) == ["first"]
        assert data_of(await take(second, 1)) == ["second"]
        first.unsubscribe()
        assert [event async for event in first] == []
        with pytest.raises(tocsin.AlreadySubscribed):
            await client.subscribe(second.channel)


async def test_who_is_there_is_kept(service: Service) -> None:
    channel = somewhere()
    async with tocsin.connect(url(service)) as watcher, watcher.subscribe(channel, presence="watch") as room:
        assert room.count == 0
        async with (
            tocsin.connect(url(service)) as guest,
            guest.subscribe(channel, presence={"info": {"name": "Ada"}}) as there,
        ):
            assert there.count == 1
            [event] = await take(room, 1)
            assert isinstance(event, tocsin.Presence)
            assert event.joined == room.members == (tocsin.Member(str(guest.id), 1, {"name": "Ada"}),)
            assert (await room.presence(limit=5)).members == event.joined
        [event] = await take(room, 1)
        assert isinstance(event, tocsin.Presence)
        assert [member.member for member in event.left] == [guest.id]
        assert not room.members


async def test_a_gap_is_told_and_says_from_where_to_go_on(service: Service) -> None:
    channel = somewhere()
    async with tocsin.connect(url(service)) as client:
        async with client.subscribe(channel, since="000000000000-7") as room:
            [gap] = await take(room, 1)
            assert isinstance(gap, tocsin.Gap)
            assert gap.reason == "diverged"
            assert room.position == gap.position
        with pytest.raises(tocsin.Gone) as gone:
            await client.history(channel, since="000000000000-7")
        assert gone.value.position == gap.position
        with pytest.raises(tocsin.BadPosition):
            await client.subscribe(channel, since="yesterday")
        with pytest.raises(tocsin.BadChannel):
            await client.publish("no such room", 1)


async def test_a_connection_that_cannot_be_is_said_at_once(service: Service) -> None:
    with pytest.raises(tocsin.TocsinError, match="no tokens are taken here"):
        async with tocsin.connect(url(service), token="x"):
            pass
    with pytest.raises(tocsin.Forbidden):
        await tocsin.connect(f"ws://127.0.0.1:{service.port}/elsewhere")
    with pytest.raises(ValueError, match="not a WebSocket URL"):
        tocsin.connect("127.0.0.1:8000")


async def test_who_waits_for_a_service_that_is_not_there_may_stop_to_wait() -> None:
    nobody = f"ws://127.0.0.1:{free_port()}/ws"
    for connecting in (tocsin.connect(nobody), tocsin.connect(nobody, plain=True)):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await connecting


@pytest.mark.parametrize("plain", [False, True])
async def test_who_waits_for_a_service_that_is_not_there_is_told_why(
    plain: bool, caplog: pytest.LogCaptureFixture
) -> None:
    nobody = f"ws://127.0.0.1:{free_port()}/ws"
    native = tocsin.connect(nobody, timeout=0.3, backoff=QUICK)
    connecting = tocsin.connect(nobody, plain=True, timeout=0.3, backoff=QUICK) if plain else native
    with pytest.raises(tocsin.Timeout, match=r"no connection within 0\.3 s: .*Connect call failed"):
        await connecting
    assert "Connect call failed" in caplog.text
    assert {record.levelname for record in caplog.records} == {"WARNING"}


async def test_a_service_that_speaks_something_else_is_let_go() -> None:
    gone = asyncio.Event()

    async def serve(socket: ServerConnection) -> None:
        await socket.wait_closed()
        gone.set()

    async with websockets.serve(serve, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        with pytest.raises(tocsin.Stopped, match=r"does not speak tocsin\.v1"):
            await tocsin.connect(f"ws://127.0.0.1:{port}/ws")
        await asyncio.wait_for(gone.wait(), 2)


async def test_queues_of_nothing_are_refused(service: Service) -> None:
    for queue, outbox in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            tocsin.connect(url(service), queue=queue, outbox=outbox)
    async with tocsin.connect(url(service)) as client:
        with pytest.raises(ValueError, match="at least 1"):
            client.subscribe(somewhere(), queue=0)


async def test_changes_of_the_state_are_told_with_reasons(service: Service) -> None:
    told: list[tocsin.Change] = []

    def note(change: tocsin.Change) -> None:
        told.append(change)
        raise ValueError("this is the user's own fault")

    async with through_proxy(service, on_state=note) as (proxy, client), client.subscribe(somewhere()) as room:
        proxy.close()
        await room.publish("after", timeout=10)
    assert [change.state for change in told] == ["connecting", "open", "waiting", "connecting", "open", "stopped"]
    assert told[2].reason == "the connection was cut (1006)"
    assert told[2].delay is not None


async def test_a_full_outbox_waits_or_says_so(service: Service) -> None:
    async with through_proxy(service, outbox=4) as (proxy, client), client.subscribe(somewhere()) as room:
        proxy.frozen = True
        tasks = [asyncio.create_task(room.publish(number)) for number in range(6)]
        await asyncio.sleep(0)
        with pytest.raises(tocsin.OutboxFull):
            await room.publish("no room", wait=False)
        with pytest.raises(tocsin.PublishTimeout) as given_up:
            await room.publish("no time", timeout=0.05)
        assert not given_up.value.sent
        proxy.frozen = False
        await asyncio.gather(*tasks)
        assert data_of(await take(room, 6)) == list(range(6))


async def test_a_full_outbox_is_entered_in_the_order_of_the_calls(service: Service) -> None:
    async with tocsin.connect(url(service), outbox=1) as client, client.subscribe(somewhere()) as room:

        async def publish_again_and_again(name: str) -> None:
            for _ in range(5):
                await room.publish(name)

        await asyncio.gather(*map(publish_again_and_again, "abc"))
        assert data_of(await take(room, 15)) == list("abc" * 5)


@pytest.mark.parametrize("fault", ["no JSON", "cancelled as its turn comes"])
async def test_who_gives_up_its_turn_does_not_keep_it_from_the_next(
    service: Service, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with tocsin.connect(url(service), outbox=1) as client:
        tasks = [asyncio.create_task(client.publish(somewhere(), 1))]
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(client.publish(somewhere(), object() if fault == "no JSON" else 2)))
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(client.publish(somewhere(), 3)))
        if fault == "no JSON":
            await asyncio.wait([tasks[1]], timeout=5)
            assert not tasks[0].done(), "said at once, not when there is room"
        else:
            withdraw = client.session.withdraw
            loop = asyncio.get_running_loop()

            def and_cancel(ref: int) -> None:
                withdraw(ref)
                loop.call_soon(tasks[1].cancel)

            monkeypatch.setattr(client.session, "withdraw", and_cancel)
        assert await asyncio.wait_for(tasks[2], 5)
        kinds = (TypeError, asyncio.CancelledError)
        assert isinstance((await asyncio.gather(tasks[1], return_exceptions=True))[0], kinds)
        await tasks[0]


async def test_a_publish_that_is_cancelled_leaves_the_outbox(service: Service) -> None:
    async with through_proxy(service, outbox=1) as (proxy, client):
        proxy.frozen = True
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.publish(somewhere(), 1)
        assert client.session.pending == 0
        proxy.frozen = False
        assert await client.publish(somewhere(), 2, timeout=5)


async def burst(service: Service, channel: str, count: int, size: int = 0) -> None:
    """So many messages, as fast as REST takes them."""
    async with tocsin.AsyncPublisher(service.url) as publisher:
        outcomes = await publisher.publish_many([(channel, [number, "x" * size]) for number in range(count)])
    assert all(isinstance(outcome, tocsin.Ack) for outcome in outcomes)


async def test_a_slow_reader_costs_no_more_than_its_queue_and_loses_nothing(service: Service) -> None:
    channel, other = somewhere(), somewhere()
    async with tocsin.connect(url(service), queue=50) as client:
        room, beside = await client.subscribe(channel), await client.subscribe(other)
        await burst(service, channel, 900, 1000)
        async with asyncio.timeout(10):
            while not room.behind:
                await asyncio.sleep(0.01)
        await client.publish(other, "beside", timeout=5)
        assert data_of(await take(beside, 1)) == ["beside"], "one room that nobody reads holds up the others"
        longest = 0
        for number in range(900):
            [event] = await take(room, 1)
            assert data_of([event])[0][0] == number
            longest = max(longest, len(room._queue))
        assert 25 <= longest <= 50


@pytest.mark.parametrize(("queue", "at_once"), [(50, 1), (50, 50)])
async def test_a_reader_that_moves_too_slowly_holds_up_nobody_else(service: Service, queue: int, at_once: int) -> None:
    channel, other = somewhere(), somewhere()
    async with tocsin.connect(url(service)) as client:
        room, beside = await client.subscribe(channel, queue=queue), await client.subscribe(other)
        numbers: list[int] = []

        async def read_slowly() -> None:
            while heard := await take(room, at_once):
                numbers.extend(number for number, _ in data_of(heard))
                await asyncio.sleep(0.02 * at_once)

        async with asyncio.TaskGroup() as group:
            reading = group.create_task(read_slowly())
            await burst(service, channel, 600)
            await asyncio.to_thread(service.post, other, {"data": "beside"})
            assert await asyncio.wait_for(take(beside, 1), 5)
            async with asyncio.timeout(5):
                await client.subscribe(somewhere())
                while len(numbers) < 75:
                    await asyncio.sleep(0.01)
            reading.cancel()
        assert numbers == list(range(len(numbers)))


async def test_who_publishes_while_reading_waits_for_no_answer_behind_the_queue(service: Service) -> None:
    channel, answers = somewhere(), somewhere()
    async with tocsin.connect(url(service), queue=20) as client, client.subscribe(channel) as room:
        await burst(service, channel, 300)
        async with asyncio.timeout(15):
            for number in range(300):
                [event] = await take(room, 1)
                assert data_of([event])[0][0] == number
                if number % 10 == 0:
                    await client.publish(answers, number, timeout=5)


async def test_plain_messages_are_what_was_sent(service: Service) -> None:
    async with tocsin.connect(url(service, f"?channel={somewhere()}"), plain=True) as socket:
        for given in ("text", b"\x00\xff", ""):
            await socket.send(given)
            assert await anext(socket) == given
    assert [message async for message in socket] == []
    with pytest.raises(tocsin.Closed):
        await socket.send("too late")


async def test_a_plain_connection_says_that_it_may_have_missed_something(service: Service) -> None:
    channel = somewhere()
    service.post(channel, {"data": "before"})
    async with proxied(service.port) as proxy:
        address = f"ws://127.0.0.1:{proxy.port}/ws?channel={channel}&history=5"
        async with tocsin.connect(address, plain=True, backoff=QUICK) as socket:
            assert await anext(socket) == "before"
            proxy.close()
            assert await anext(socket) == tocsin.Gap(channel, "reconnected", None)
            await socket.send("after")
            assert await anext(socket) == "after"


async def test_a_slow_plain_reader_is_not_read_ahead_of(service: Service) -> None:
    channel = somewhere()
    async with tocsin.connect(url(service, f"?channel={channel}"), plain=True, queue=10) as socket:
        await burst(service, channel, 400)
        for number in range(400):
            assert await anext(socket) == f'[{number},""]'
            assert len(socket._queue) <= 10
