"""`tocsin.v1` command by command, over four workers on the fast path and over the portable path."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import Iterator

import httpx
import pytest

from tests.stage.native import NATIVE, NativeClient, converse, converse_on_two_workers, offset
from tests.stage.redis import RedisServer
from tests.stage.service import Service

MAX = 65_536


@pytest.fixture(scope="module")
def portable(redis_server: RedisServer) -> Iterator[Service]:
    """A worker on the portable path, in the same broadcast domain as `service`."""
    with Service(redis_server.url, fast=False, redis_prefix="session", node="portable") as running:
        yield running


@pytest.fixture(params=["fast", "portable"])
def either(request: pytest.FixtureRequest, service: Service) -> Service:
    """Each kind of socket."""
    return service if request.param == "fast" else request.getfixturevalue("portable")


def room() -> str:
    return f"room:{secrets.token_hex(5)}"


def key() -> str:
    return secrets.token_urlsafe(18)


def id_of(service: Service, channel: str, data: object) -> str:
    answer = service.post(channel, {"data": data})
    assert answer.status_code == 201
    return str(answer.json()["id"])


async def test_the_first_frame_says_who_one_is_and_what_holds_here(either: Service) -> None:
    async with converse(either) as one, converse(either) as other:
        assert one.socket.subprotocol == NATIVE
        client = one.welcome.pop("client")
        assert client != other.welcome["client"]
        assert len(client) >= 16
        assert one.welcome.pop("worker").count("/") == 1
        told = {"user": None, "ping": 25, "max_data": MAX, "key_seconds": 120, "expires_at": None}
        assert one.welcome == {"type": "welcome", **told}


async def test_what_one_publishes_all_who_subscribed_receive(either: Service) -> None:
    channel = room()
    async with converse(either) as one, converse(either) as other:
        for client in (one, other):
            answer = await client.ask("subscribe", channel=channel)
            position = answer.pop("position")
            assert offset(position) == 0
            assert answer.pop("ref") == 1
            assert answer == {"type": "subscribed", "channel": channel, "recovered": None, "replayed": 0}
        published = await one.ask("publish", channel=channel, data={"text": "hi"})
        assert published == {"type": "published", "ref": 2, "id": published["id"], "duplicate": False}
        for client in (one, other):
            message = await client.push()
            assert isinstance(message.pop("at"), int)
            assert message == {
                "type": "message",
                "channel": channel,
                "id": published["id"],
                "data": {"text": "hi"},
                "from": one.welcome["client"],
                "user": None,
            }


async def test_two_channels_of_one_socket_are_told_apart(either: Service) -> None:
    one, two = room(), room()
    async with converse(either) as client:
        for channel in (one, two):
            await client.ask("subscribe", channel=channel)
        for number in range(20):
            await client.ask("publish", channel=(one, two)[number % 2], data=number)
        heard = await client.pushes(20)
        assert [frame["data"] for frame in heard if frame["channel"] == one] == list(range(0, 20, 2))
        assert [frame["data"] for frame in heard if frame["channel"] == two] == list(range(1, 20, 2))


async def test_nothing_of_a_channel_comes_after_unsubscribed(either: Service) -> None:
    channel = room()
    async with converse(either) as client, converse(either) as speaker:
        stop = asyncio.Event()

        async def flood() -> None:
            while not stop.is_set():
                await asyncio.gather(*(speaker.say("publish", channel=channel, data=number) for number in range(5)))
                await asyncio.sleep(0.001)

        async def drink() -> None:
            async for _ in speaker.socket:
                pass

        tasks = [asyncio.create_task(flood()), asyncio.create_task(drink())]
        for _ in range(40):
            assert (await client.ask("subscribe", channel=channel))["type"] == "subscribed"
            first = await client.push()
            assert (await client.ask("unsubscribe", channel=channel))["type"] == "unsubscribed"
            offsets = [offset(frame["id"]) for frame in [first, *client.waiting]]
            assert offsets == list(range(offsets[0], offsets[0] + len(offsets)))
            client.waiting.clear()
        assert await client.silent()
        assert (await client.ask("unsubscribe", channel=channel))["code"] == "not_subscribed"
        stop.set()
        await tasks[0]
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_since_brings_exactly_what_was_missed_before_what_is_new(either: Service) -> None:
    channel = room()
    ids = [id_of(either, channel, number) for number in range(10)]
    async with converse(either) as client:
        answer = await client.ask("subscribe", channel=channel, since=ids[3], history=2)
        assert (answer["position"], answer["recovered"], answer["replayed"]) == (ids[3], True, 6)
        live = id_of(either, channel, "live")
        assert [frame["id"] for frame in await client.pushes(7)] == [*ids[4:], live]
        await client.ask("unsubscribe", channel=channel)
        answer = await client.ask("subscribe", channel=channel, since=live)
        assert (answer["position"], answer["recovered"], answer["replayed"]) == (live, True, 0)
        assert await client.silent()


async def test_history_begins_before_the_newest_and_says_so(either: Service) -> None:
    channel = room()
    ids = [id_of(either, channel, number) for number in range(5)]
    async with converse(either) as client:
        answer = await client.ask("subscribe", channel=channel, history=3)
        assert (answer["position"], answer["recovered"], answer["replayed"]) == (ids[1], None, 3)
        assert [frame["id"] for frame in await client.pushes(3)] == ids[2:]
        await client.ask("unsubscribe", channel=channel)
        answer = await client.ask("subscribe", channel=channel, history=100)
        assert (offset(answer["position"]), answer["replayed"]) == (0, 5)
        assert [frame["id"] for frame in await client.pushes(5)] == ids
        await client.ask("unsubscribe", channel=channel)
        answer = await client.ask("subscribe", channel=channel)
        assert (answer["position"], answer["recovered"], answer["replayed"]) == (ids[-1], None, 0)
        assert await client.silent()


async def test_the_position_of_an_empty_channel_can_be_resumed_from(either: Service) -> None:
    channel = room()
    async with converse(either) as client:
        empty = (await client.ask("subscribe", channel=channel))["position"]
        await client.ask("unsubscribe", channel=channel)
        answer = await client.ask("subscribe", channel=channel, since=empty)
        assert (answer["position"], answer["recovered"], answer["replayed"]) == (empty, True, 0)
        await client.ask("unsubscribe", channel=channel)
        ids = [id_of(either, channel, number) for number in range(3)]
        answer = await client.ask("subscribe", channel=channel, since=empty)
        assert (answer["position"], answer["recovered"], answer["replayed"]) == (empty, True, 3)
        assert [frame["id"] for frame in await client.pushes(3)] == ids


async def test_a_since_of_another_history_is_not_recovered_and_nothing_is_replayed(either: Service) -> None:
    channel = room()
    top = id_of(either, channel, 1)
    async with converse(either) as client:
        for since in ("abcdef012345-0", f"{top.partition('-')[0]}-2"):
            answer = await client.ask("subscribe", channel=channel, since=since)
            assert (answer["recovered"], answer["replayed"], answer["reason"]) == (False, 0, "diverged")
            assert answer["position"] == top
            assert await client.silent(0.1)
            await client.ask("unsubscribe", channel=channel)
        answer = await client.ask("subscribe", channel=channel, since=top)
        assert answer["recovered"] is True
        live = id_of(either, channel, 2)
        assert (await client.push())["id"] == live


async def test_pages_of_history_in_both_directions(either: Service) -> None:
    channel = room()
    ids = [id_of(either, channel, number) for number in range(10)]
    async with converse(either) as client:

        async def page(**range_: object) -> tuple[list[str], str, bool]:
            answer = await client.ask("history", channel=channel, **range_)
            assert (answer["type"], answer["channel"]) == ("history", channel)
            return [item["id"] for item in answer["messages"]], answer["position"], answer["complete"]

        assert await page() == (ids, ids[-1], True)
        assert await page(limit=4) == (ids[6:], ids[-1], True)
        assert await page(since=ids[1], limit=4) == (ids[2:6], ids[5], False)
        assert await page(since=ids[5]) == (ids[6:], ids[-1], True)
        assert await page(since=ids[-1]) == ([], ids[-1], True)
        assert await page(before=ids[4], limit=3) == (ids[1:4], ids[3], True)
        assert await page(since=ids[2], before=ids[5]) == (ids[3:5], ids[4], True)
        same = httpx.get(f"{either.url}/api/v1/channels/{channel}/messages?limit=3").json()
        answer = await client.ask("history", channel=channel, limit=3)
        assert [answer[name] for name in ("messages", "position", "complete")] == list(same.values())


async def test_history_that_the_log_does_not_have_is_gone_and_says_from_where_to_go_on(either: Service) -> None:
    channel = room()
    top = id_of(either, channel, 1)
    async with converse(either) as client:
        answer = await client.ask("history", channel=channel, since="abcdef012345-1")
        assert (answer["type"], answer["code"], answer["position"]) == ("error", "gone", top)
        assert (await client.ask("history", channel=channel, since=answer["position"]))["messages"] == []


async def test_a_page_of_history_ends_at_a_mebibyte(either: Service) -> None:
    channel = room()
    async with converse(either) as client:
        for _ in range(20):
            await client.ask("publish", channel=channel, data="x" * 65_000)
        answer = await client.ask("history", channel=channel)
        assert 1 <= len(answer["messages"]) < 17
        first = answer["messages"][0]["id"].partition("-")[0] + "-0"
        answer = await client.ask("history", channel=channel, since=first)
        assert 1 <= len(answer["messages"]) < 17
        assert answer["complete"] is False
        assert answer["position"] == answer["messages"][-1]["id"]


async def test_ping_is_answered(either: Service) -> None:
    async with converse(either) as client:
        assert await client.ask("ping") == {"type": "pong", "ref": 1}
        await client.socket.send('{"type":"ping"}')
        assert await client.read() == {"type": "pong"}


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ('{"type":"subscribe","ref":"r","channel":"a b"}', "bad_channel"),
        ('{"type":"subscribe","ref":"r","channel":"room:*"}', "bad_channel"),
        ('{"type":"subscribe","ref":"r","channel":"a","since":"new"}', "bad_position"),
        ('{"type":"subscribe","ref":"r","channel":"a","since":""}', "bad_position"),
        ('{"type":"subscribe","ref":"r","channel":"a","history":"20"}', "bad_request"),
        ('{"type":"subscribe","ref":"r","channel":"a","history":1001}', "bad_request"),
        ('{"type":"unsubscribe","ref":"r","channel":"never:heard"}', "not_subscribed"),
        ('{"type":"publish","ref":"r","channel":"a"}', "bad_request"),
        ('{"type":"publish","ref":"r","channel":"a","data":1,"key":"short"}', "bad_request"),
        (
            '{"type":"publish","ref":"r","channel":"a","data":1,"key":"sixteen-letters1","ephemeral":true}',
            "bad_request",
        ),
        ('{"type":"publish","ref":"r","channel":"a","base64":"?"}', "bad_request"),
        ('{"type":"publish","ref":"r","channel":"a","data":' + "[" * 33 + "]" * 33 + "}", "bad_request"),
        ('{"type":"history","ref":"r","channel":"a","limit":1001}', "bad_request"),
        ('{"type":"shout","ref":"r"}', "unknown_type"),
    ],
)
async def test_a_refused_command_is_answered_with_its_ref_and_the_socket_stays(
    either: Service, command: str, code: str
) -> None:
    async with converse(either) as client:
        await client.socket.send(command)
        answer = await client.read()
        assert (answer["type"], answer["ref"], answer["code"]) == ("error", "r", code)
        assert answer["message"]
        assert (await client.ask("ping"))["type"] == "pong"


async def test_unknown_fields_are_ignored_and_depth_32_is_fine(either: Service) -> None:
    channel = room()
    data = "[" * 32 + "]" * 32
    async with converse(either) as client:
        await client.ask("subscribe", channel=channel, colour="blue", future={"x": [1]})
        await client.socket.send(f'{{"type":"publish","ref":9,"channel":"{channel}","data":{data},"later":null}}')
        assert (await client.answer(9))["type"] == "published"
        assert json.dumps((await client.push())["data"]) == data


async def test_one_channel_is_heard_once(either: Service) -> None:
    channel = room()
    async with converse(either) as client:
        refs = [await client.say("subscribe", channel=channel) for _ in range(3)]
        answers = [await client.read() for _ in refs]
        codes = sorted((frame["ref"], frame.get("code")) for frame in answers)
        assert codes == [(refs[0], None), (refs[1], "already_subscribed"), (refs[2], "already_subscribed")]
        id_of(either, channel, 1)
        await client.push()
        assert await client.silent()


async def test_128_channels_and_not_one_more(either: Service) -> None:
    run = secrets.token_hex(4)
    async with converse(either) as client:
        refs = [await client.say("subscribe", channel=f"many:{run}:{number}") for number in range(129)]
        answers = {frame["ref"]: frame for frame in [await client.read() for _ in refs]}
        assert [answers[ref]["type"] for ref in refs] == ["subscribed"] * 128 + ["error"]
        assert answers[refs[-1]]["code"] == "too_many_subscriptions"
        await client.ask("unsubscribe", channel=f"many:{run}:0")
        assert (await client.ask("subscribe", channel=f"many:{run}:128"))["type"] == "subscribed"


async def test_unsubscribing_while_the_channel_opens_answers_both(either: Service) -> None:
    async with converse(either) as client:
        for _ in range(30):
            channel = room()
            await asyncio.gather(
                client.say("subscribe", channel=channel),
                client.say("unsubscribe", channel=channel),
            )
            answers = sorted([await client.read(), await client.read()], key=lambda frame: frame["ref"])
            assert answers[0]["type"] == "subscribed" or answers[0]["code"] == "not_subscribed"
            assert answers[1]["type"] == "unsubscribed"
            id_of(either, channel, 1)
        assert await client.silent()


async def test_data_up_to_the_limit_is_taken_and_one_byte_more_is_too_large_but_the_socket_stays(
    either: Service,
) -> None:
    channel = room()
    async with converse(either) as client:
        for field, size, kind in (
            ("data", MAX - 2, "published"),
            ("data", MAX - 1, "error"),
            ("base64", MAX, "published"),
            ("base64", MAX + 4, "error"),
        ):
            answer = await client.ask("publish", **{"channel": channel, field: "A" * size})
            assert answer["type"] == kind
            assert answer.get("code", "too_large") == "too_large"
        assert (await client.ask("ping"))["type"] == "pong"


async def test_a_frame_of_4096_bytes_more_than_data_may_have_is_taken_and_a_larger_one_closes_with_1009(
    either: Service,
) -> None:
    async with converse(either) as client:
        filled = json.dumps({"type": "ping", "ref": 1, "x": ""})
        await client.socket.send(filled[:-2] + "x" * (MAX + 4096 - len(filled)) + '"}')
        assert (await client.answer(1))["type"] == "pong"
        await client.socket.send(filled[:-2] + "x" * (MAX + 4097 - len(filled)) + '"}')
        assert await client.code() == 1009


async def test_a_binary_frame_closes_with_1003(either: Service) -> None:
    async with converse(either) as client:
        await client.socket.send(b'{"type":"ping"}')
        assert await client.code() == 1003


async def test_malformed_commands_again_and_again_close_with_4400_after_their_answers(either: Service) -> None:
    async with converse(either) as client:
        for _ in range(30):
            await client.socket.send("what?")
        codes = []
        with contextlib.suppress(Exception):
            while True:
                codes.append((await client.read())["code"])
        assert codes == ["bad_request"] * 20
        assert await client.code() == 4400


async def test_a_key_publishes_once_over_any_worker_and_entrance(service: Service) -> None:
    channel, same = room(), key()
    async with converse_on_two_workers(service) as (one, other):
        first = await one.ask("publish", channel=channel, data={"n": 1}, key=same)
        assert first["duplicate"] is False
        again = await other.ask("publish", channel=channel, data={"n": 1}, key=same)
        assert (again["id"], again["duplicate"]) == (first["id"], True)
        conflict = await other.ask("publish", channel=channel, data={"n": 2}, key=same)
        assert conflict["code"] == "conflict"
        by_rest = service.post(channel, {"data": {"n": 1}}, headers={"Idempotency-Key": same})
        assert (by_rest.status_code, by_rest.json()) == (200, {"id": first["id"], "duplicate": True})
        assert service.post(channel, {"data": 3}, headers={"Idempotency-Key": same}).status_code == 409
        fresh = key()
        by_rest = service.post(channel, {"data": 5, "key": fresh})
        assert (await one.ask("publish", channel=channel, data=5, key=fresh))["id"] == by_rest.json()["id"]
        elsewhere = await one.ask("publish", channel=room(), data={"n": 2}, key=same)
        assert elsewhere["duplicate"] is False
        assert len((await one.ask("history", channel=channel))["messages"]) == 2


async def test_the_same_key_five_times_at_once_over_the_workers_is_one_message(service: Service) -> None:
    channel = room()
    keys = [key() for _ in range(200)]
    async with converse_on_two_workers(service) as (one, other):

        async def publish_all(client: NativeClient, times: int) -> list[list[str]]:
            answers = []
            for each in keys:
                refs = [await client.say("publish", channel=channel, data=each, key=each) for _ in range(times)]
                answers.append([(await client.answer(ref))["id"] for ref in refs])
            return answers

        by_one, by_other = await asyncio.gather(publish_all(one, 3), publish_all(other, 2))
        for mine, theirs in zip(by_one, by_other, strict=True):
            assert len({*mine, *theirs}) == 1
        assert len((await one.ask("history", channel=channel, limit=1000))["messages"]) == len(keys)


async def test_binary_is_kept_byte_for_byte(either: Service) -> None:
    channel = room()
    async with converse(either) as client, either.connect(channel) as plain:
        await client.ask("subscribe", channel=channel)
        published = await client.ask("publish", channel=channel, base64="AAEC/w==")
        message = await client.push()
        assert (message["id"], message["base64"]) == (published["id"], "AAEC/w==")
        assert "data" not in message
        assert await asyncio.wait_for(plain.recv(), 10) == b"\x00\x01\x02\xff"


async def test_an_ephemeral_message_has_no_id_and_is_not_kept(either: Service) -> None:
    channel = room()
    async with converse(either) as client:
        await client.ask("subscribe", channel=channel)
        answer = await client.ask("publish", channel=channel, data="typing", ephemeral=True)
        assert (answer["type"], answer["id"], answer["duplicate"]) == ("published", None, False)
        message = await client.push()
        assert message["data"] == "typing"
        assert "id" not in message
        assert (await client.ask("history", channel=channel))["messages"] == []


VERBATIM = [
    '{ "n" : 123456789012345678901234567890 ,\n\t"e" : 1.50e+2 , "a":[ ] }',
    '"\\u00e9\\ud83d\\ude00\\/"',
    "-0",
    " 1 ".strip(),
    '{"a":1,"a":2}',
    '["\u2028 é 😀"]',
]


@pytest.mark.parametrize("data", VERBATIM)
async def test_json_arrives_as_the_text_that_was_published(either: Service, data: str) -> None:
    channel = room()
    async with converse(either) as client, either.connect(channel) as plain:
        await client.ask("subscribe", channel=channel)
        await client.socket.send(f'{{"type":"publish","ref":"v","channel":"{channel}","data": {data} }}')
        frames = [str(await asyncio.wait_for(client.socket.recv(), 10)) for _ in range(2)]
        assert sum(f'"data":{data},' in frame for frame in frames) == 1
        heard = await asyncio.wait_for(plain.recv(), 10)
        assert heard == (json.loads(data) if data.startswith('"') else data)
        assert f'"data":{data},' in either.get(f"/api/v1/channels/{channel}/messages").text


async def test_half_of_a_surrogate_pair_is_refused(either: Service) -> None:
    channel = room()
    async with converse(either) as client:
        await client.socket.send(f'{{"type":"publish","ref":1,"channel":"{channel}","data":"\\ud83d"}}')
        assert (await client.read())["code"] == "bad_request"
        assert (await client.ask("history", channel=channel))["messages"] == []


async def test_text_binary_and_json_cross_between_plain_native_and_rest(either: Service) -> None:
    channel = room()
    async with converse(either) as client, either.connect(channel) as plain:
        await client.ask("subscribe", channel=channel)
        await plain.send('{"looks": "like json"}')
        await plain.send(b"\x00\xff")
        heard = [await asyncio.wait_for(plain.recv(), 10) for _ in range(2)]  # REST goes by other workers
        either.post(channel, {"data": {"a": [1, None]}})
        either.post(channel, {"data": "text"})
        either.post(channel, {"base64": "AP8="})
        told = [frame.get("data", frame.get("base64")) for frame in await client.pushes(5)]
        assert told == ['{"looks": "like json"}', "AP8=", {"a": [1, None]}, "text", "AP8="]
        heard += [await asyncio.wait_for(plain.recv(), 10) for _ in range(3)]
        assert heard == ['{"looks": "like json"}', b"\x00\xff", '{"a":[1,null]}', "text", b"\x00\xff"]
        page = either.get(f"/api/v1/channels/{channel}/messages").json()["messages"]
        assert page == (await client.ask("history", channel=channel))["messages"]
        assert page[0]["from"] is not None
        assert page[2]["from"] is None


async def test_publishers_on_all_workers_and_their_subscribers_see_one_order(service: Service) -> None:
    channel = room()
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(converse(service)) for _ in range(8)]
        for client in clients:
            await client.ask("subscribe", channel=channel)

        async def talk(client: NativeClient) -> list[str]:
            for number in range(50):
                answer = await client.ask("publish", channel=channel, data=number, key=key())
                assert answer["type"] == "published"
            return [frame["id"] for frame in await client.pushes(8 * 50)]

        heard = await asyncio.gather(*(talk(client) for client in clients))
        assert all(ids == heard[0] for ids in heard)
        assert [offset(each) for each in heard[0]] == list(range(1, 401))
