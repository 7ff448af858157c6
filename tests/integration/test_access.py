"""Who gets in: the loopback rule, web origins, API keys."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import httpx
import pytest
import websockets

from tests.stage.redis import RedisServer
from tests.stage.service import Service

KEY, NARROW = "k" * 20, "n" * 20


@pytest.fixture(scope="module")
def keyed(redis_server: RedisServer) -> Iterator[Service]:
    keys = {
        "all": KEY,
        "narrow": {"key": "sha256:" + hashlib.sha256(NARROW.encode()).hexdigest(), "publish": ["order:*"]},
    }
    with Service(
        redis_server.url,
        redis_prefix="keyed",
        api_keys=json.dumps(keys),
        origins="https://app.example.org",
        metrics_token="m" * 20,
    ) as running:
        yield running


def test_without_any_authentication_a_foreign_host_name_is_refused_with_the_sentence(service: Service) -> None:
    answer = service.get("/api/v1/connect", headers={"host": "example.org"})
    assert answer.status_code == 403
    assert "TOCSIN_ALLOW_ANONYMOUS" in answer.json()["error"]["message"]
    assert service.get("/livez", headers={"host": "example.org"}).status_code == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:3000", 204),
        ("http://127.0.0.1:9999", 204),
        ("https://evil.example", 403),
        ("http://localhost.evil.example", 403),
        ("http://127.0.0.1.evil.example", 403),
        ("null", 403),
        ("", 403),
        ("http://[", 403),
        ("http://a]b", 403),
        ("ftp://localhost", 403),
        ("localhost", 403),
        ("http://evil.example@localhost", 403),
    ],
)
def test_on_loopback_only_loopback_pages_may_connect(service: Service, origin: str, status: int) -> None:
    assert service.get("/api/v1/connect", headers={"origin": origin}).status_code == status


async def test_a_foreign_page_cannot_open_a_socket(service: Service) -> None:
    with pytest.raises(websockets.InvalidStatus) as refused:
        await websockets.connect(service.ws(), origin="https://evil.example")  # type: ignore[arg-type]
    assert refused.value.response.status_code == 403


def test_with_keys_configured_anonymous_use_ends_also_on_loopback(keyed: Service) -> None:
    assert keyed.post("a", {"data": 1}).status_code == 401
    assert keyed.get("/api/v1/connect").status_code == 401
    assert keyed.get("/livez").status_code == 200
    assert keyed.get("/readyz").status_code == 200


def test_a_key_may_do_what_it_lists(keyed: Service) -> None:
    def publish(channel: str, key: str) -> int:
        return keyed.post(channel, {"data": 1}, headers={"x-api-key": key}).status_code

    assert publish("anything", KEY) == 201
    assert publish("order:1", NARROW) == 201
    assert publish("orders", NARROW) == 403
    assert publish("order:1", "wrong" * 5) == 401
    assert keyed.get("/api/v1/channels/order:1/messages", headers={"x-api-key": NARROW}).status_code == 403
    assert keyed.get("/api/v1/channels/order:1/messages", headers={"x-api-key": KEY}).status_code == 200


def test_administration_needs_a_key_with_admin(keyed: Service) -> None:
    for key, status in ((KEY, 204), (NARROW, 403)):
        answer = httpx.delete(f"{keyed.url}/api/v1/channels/order:9/messages", headers={"x-api-key": key})
        assert answer.status_code == status
    assert keyed.get("/api/v1/channels", headers={"x-api-key": NARROW}).status_code == 403
    assert keyed.get("/api/v1/channels", headers={"x-api-key": KEY}).status_code == 200


def test_listed_origins_pass_and_look_alikes_do_not(keyed: Service) -> None:
    for origin, status in (
        ("https://app.example.org", 201),
        (keyed.url, 201),
        ("http://app.example.org", 403),
        ("https://app.example.org.evil.example", 403),
    ):
        answer = keyed.post("a", {"data": 1}, headers={"x-api-key": KEY, "origin": origin})
        assert answer.status_code == status, origin


def test_metrics_ask_for_their_token(keyed: Service) -> None:
    assert keyed.get("/metrics").status_code == 401
    assert keyed.get("/metrics", headers={"authorization": "Bearer " + "m" * 20}).status_code == 200


def test_nobody_gets_in_from_elsewhere_when_nothing_is_configured(redis_server: RedisServer) -> None:
    """A server that listens beyond loopback without authentication refuses everything but its health."""
    with Service(redis_server.url, redis_prefix="open", allow_anonymous="true") as running:
        assert running.get("/api/v1/connect", headers={"host": "example.org"}).status_code == 204
        assert running.get("/api/v1/channels").status_code == 403


def test_beyond_loopback_only_health_answers_while_nothing_is_configured(redis_server: RedisServer) -> None:
    with Service(redis_server.url, redis_prefix="beyond") as running:
        foreign = {"host": "example.org"}
        for path in ("/", "/page/page.js", "/docs", "/openapi.json", "/metrics", "/api/v1/channels"):
            assert running.get(path, headers=foreign).status_code == 403, path
        for path in ("/livez", "/readyz", "/healthz"):
            assert running.get(path, headers=foreign).status_code == 200, path
            assert httpx.head(running.url + path, headers=foreign).status_code == 200, path
        assert httpx.head(running.url + "/").status_code == 200
