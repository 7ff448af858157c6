"""REST: publish, read, list, clear, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from typing import Any

import httpx
import pytest

from tests.stage.service import Service


def room() -> str:
    return f"room:{secrets.token_hex(5)}"


def error_of(response: httpx.Response) -> str:
    body = response.json()
    assert set(body) == {"error"}
    assert body["error"]["message"]
    code: str = body["error"]["code"]
    return code


def test_published_messages_are_read_back_in_order_with_their_ids(service: Service) -> None:
    channel = room()
    ids = [service.post(channel, {"data": {"n": number}}).json()["id"] for number in range(5)]
    page = service.get(f"/api/v1/channels/{channel}/messages").json()
    assert [message["id"] for message in page["messages"]] == ids
    assert [message["data"] for message in page["messages"]] == [{"n": number} for number in range(5)]
    assert page["position"] == ids[-1]
    assert page["complete"] is True


def test_since_before_and_limit_page_through_the_log(service: Service) -> None:
    channel = room()
    ids = [service.post(channel, {"data": number}).json()["id"] for number in range(10)]

    def page(query: str) -> tuple[list[Any], bool]:
        body = service.get(f"/api/v1/channels/{channel}/messages?{query}").json()
        return [message["data"] for message in body["messages"]], body["complete"]

    assert page(f"since={ids[2]}&limit=3") == ([3, 4, 5], False)
    assert page(f"since={ids[5]}&limit=10") == ([6, 7, 8, 9], True)
    assert page("limit=2")[0] == [8, 9]
    assert page(f"before={ids[3]}&limit=2")[0] == [1, 2]
    assert page(f"since={ids[1]}&before={ids[4]}") == ([2, 3], True)


def test_a_since_that_the_log_does_not_cover_is_gone_with_the_position_to_go_on_from(service: Service) -> None:
    channel = room()
    newest = service.post(channel, {"data": 1}).json()["id"]
    answer = service.get(f"/api/v1/channels/{channel}/messages?since=0123456789ab-9")
    assert answer.status_code == 410
    assert error_of(answer) == "gone"
    assert answer.json()["error"]["position"] == newest


def test_the_same_key_yields_the_first_result_and_another_body_is_a_conflict(service: Service) -> None:
    channel, key = room(), secrets.token_hex(12)
    first = service.post(channel, {"data": "once"}, headers={"Idempotency-Key": key})
    again = service.post(channel, {"data": "once", "key": key})
    other = service.post(channel, {"data": "twice", "key": key})
    assert (first.status_code, again.status_code, other.status_code) == (201, 200, 409)
    assert again.json() == {"id": first.json()["id"], "duplicate": True}
    assert error_of(other) == "conflict"
    assert len(service.get(f"/api/v1/channels/{channel}/messages").json()["messages"]) == 1


def test_a_batch_answers_each_message_in_order(service: Service) -> None:
    channel = room()
    answer = httpx.post(
        f"{service.url}/api/v1/messages",
        json={
            "messages": [
                {"channel": channel, "data": 1},
                {"channel": "no good", "data": 2},
                {"channel": channel, "data": 3, "key": "short"},
                {"channel": channel},
                {"channel": channel, "base64": "AAE="},
                "nonsense",
            ]
        },
    )
    assert answer.status_code == 200
    results = answer.json()["results"]
    codes = [result["error"]["code"] if "error" in result else "ok" for result in results]
    assert codes == ["ok", "bad_channel", "bad_request", "bad_request", "ok", "bad_request"]
    messages = service.get(f"/api/v1/channels/{channel}/messages").json()["messages"]
    assert [message.get("data", message.get("base64")) for message in messages] == [1, "AAE="]


async def test_kinds_cross_over_as_the_protocol_says(service: Service) -> None:
    channel = room()
    async with service.connect(channel) as client:
        service.post(channel, {"data": {"a": [1, 2.5, None, "ü"]}})
        service.post(channel, {"data": 'a "string"'})
        service.post(channel, {"base64": base64.b64encode(b"\x00\x01").decode()})
        service.post(channel, {"data": None})
        heard = [await asyncio.wait_for(client.recv(), 10) for _ in range(4)]
        assert json.loads(heard[0]) == {"a": [1, 2.5, None, "ü"]}
        assert heard[1:] == ['a "string"', b"\x00\x01", "null"]
        await client.send("[not parsed]")
        await client.send(b"\xfe")
        for _ in range(2):
            await asyncio.wait_for(client.recv(), 10)
    messages = service.get(f"/api/v1/channels/{channel}/messages?limit=2").json()["messages"]
    assert messages[0]["data"] == "[not parsed]"
    assert messages[1]["base64"] == "/g=="
    assert messages[0]["from"] == messages[1]["from"] is not None


async def test_ephemeral_messages_are_heard_and_not_kept(service: Service) -> None:
    channel = room()
    async with service.connect(channel) as client:
        answer = service.post(channel, {"data": "typing", "ephemeral": True})
        assert (answer.status_code, answer.json()["id"]) == (201, None)
        assert await asyncio.wait_for(client.recv(), 10) == "typing"
    assert service.get(f"/api/v1/channels/{channel}/messages").json()["messages"] == []


async def test_clear_forgets_the_log_goes_on_counting_and_tells_plain_sockets(service: Service) -> None:
    channel = room()
    old = service.post(channel, {"data": "old"}).json()["id"]
    async with service.connect(channel) as client:
        assert httpx.delete(f"{service.url}/api/v1/channels/{channel}/messages").status_code == 204
        await asyncio.wait_for(client.wait_closed(), 10)
        assert client.close_code == 4510
    new = service.post(channel, {"data": "new"}).json()["id"]
    assert new.split("-")[0] != old.split("-")[0]
    assert int(new.split("-")[1]) == int(old.split("-")[1]) + 1
    assert service.get(f"/api/v1/channels/{channel}/messages?since={old}").status_code == 410


async def test_the_list_adds_up_the_subscribers_of_all_workers(service: Service) -> None:
    prefix = secrets.token_hex(5)
    async with asyncio.TaskGroup() as group:
        stop = asyncio.Event()

        async def stay(channel: str) -> None:
            async with service.connect(channel):
                await stop.wait()

        for number in range(6):
            group.create_task(stay(f"{prefix}:a"))
            if number < 2:
                group.create_task(stay(f"{prefix}:b"))

        def listed() -> Any:
            return service.get(f"/api/v1/channels?prefix={prefix}").json()

        wanted = [{"channel": f"{prefix}:a", "subscribers": 6}, {"channel": f"{prefix}:b", "subscribers": 2}]
        async with asyncio.timeout(10):
            while (await asyncio.to_thread(listed))["channels"] != wanted:
                await asyncio.sleep(0.05)
        assert listed()["cursor"] is None
        assert service.get(f"/api/v1/channels?prefix={prefix}&cursor={prefix}:a").json()["channels"] == wanted[1:]
        stop.set()


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"data": 1, "base64": "AA=="}, 422, "bad_request"),
        ({}, 422, "bad_request"),
        ({"data": 1, "key": "short"}, 422, "bad_request"),
        ({"data": 1, "key": "x" * 65}, 422, "bad_request"),
        ({"data": 1, "ephemeral": "often"}, 422, "bad_request"),
        ({"base64": "!!!"}, 400, "bad_request"),
        ({"data": "x" * 70_000}, 413, "too_large"),
        ([1, 2], 422, "bad_request"),
    ],
)
def test_bodies_that_do_not_fit_are_refused_in_the_error_model(
    service: Service, body: Any, status: int, code: str
) -> None:
    answer = service.post(room(), body)
    assert (answer.status_code, error_of(answer)) == (status, code)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"{", 422),
        (b"", 422),
        (b'{"data": NaN}', 400),
        (b'{"data": 1e999}', 400),
        (b'{"data": "\\ud800"}', 400),
        (b'{"data": ' + b"[" * 40 + b"]" * 40 + b"}", 400),
        (b"[" * 100_000, 400),
        (b"\xff\xfe", 400),
    ],
)
def test_bodies_that_are_not_json_as_we_know_it_are_refused(service: Service, raw: bytes, status: int) -> None:
    answer = httpx.post(
        f"{service.url}/api/v1/channels/{room()}/messages",
        content=raw,
        headers={"content-type": "application/json"},
    )
    assert answer.status_code in {status, 422}
    assert error_of(answer) == "bad_request"


def test_data_may_be_nested_32_levels_deep(service: Service) -> None:
    def nested(levels: int) -> Any:
        data: Any = []
        for _ in range(levels - 1):
            data = [data]
        return data

    assert service.post(room(), {"data": nested(32)}).status_code == 201
    assert service.post(room(), {"data": nested(33)}).status_code == 400


def test_a_body_over_the_limit_is_refused_with_and_without_a_declared_length(service: Service) -> None:
    path = f"{service.url}/api/v1/messages"
    headers = {"content-type": "application/json"}
    declared = httpx.post(path, content=b" " * 1_100_000, headers=headers)
    assert (declared.status_code, error_of(declared)) == (413, "too_large")
    streamed = httpx.post(path, content=(b" " * 65_536 for _ in range(40)), headers=headers)
    assert (streamed.status_code, error_of(streamed)) == (413, "too_large")


def test_a_body_that_is_not_declared_as_json_is_refused(service: Service) -> None:
    answer = httpx.post(f"{service.url}/api/v1/channels/{room()}/messages", content=b"data=1")
    assert (answer.status_code, error_of(answer)) == (415, "unsupported_type")


def test_unknown_paths_and_methods_answer_in_the_error_model(service: Service) -> None:
    assert error_of(service.get("/api/v1/nothing")) == "not_found"
    assert httpx.put(f"{service.url}/livez", json={}).status_code == 405
    assert service.get("/page/../main.py").status_code == 404
    assert service.get("/page/%2e%2e%2fhttp.py").status_code == 404


@pytest.mark.parametrize("channel", ["bad name", "a" * 129, "ü", "a%00b", "*", "{x}"])
def test_bad_channel_names_are_refused(service: Service, channel: str) -> None:
    answer = service.post(channel, {"data": 1})
    assert (answer.status_code, error_of(answer)) == (400, "bad_channel")


def test_operations_answer(service: Service) -> None:
    assert service.get("/livez").json() == {"status": "alive"}
    for path in ("/readyz", "/healthz"):
        assert service.get(path).json() == {"status": "ready", "reasons": []}
    schema = service.get("/openapi.json").json()
    assert "/api/v1/channels/{channel}/messages" in schema["paths"]
    page = service.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
