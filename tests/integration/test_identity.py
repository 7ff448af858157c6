"""Who gets in with a token, for how long, and how somebody is put out: over real workers, as browsers do it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import jwt
import pytest
import websockets
from websockets.asyncio.client import ClientConnection
from websockets.typing import Subprotocol

from tests.stage.native import NATIVE, converse, offered
from tests.stage.redis import RedisServer
from tests.stage.service import NO_TLS, Service, until

SECRET = "s" * 40
ADMIN = {"x-api-key": "a" * 20}
PAGE = "https://app.example.org"
ALL = {verb: ["*"] for verb in ("publish", "subscribe", "history", "presence")}


def token(user: str = "ada", seconds: float = 3600, allows: dict[str, list[str]] | None = None, **claims: Any) -> str:
    """A token that ends so many seconds from now."""
    given = {"sub": user, "exp": int(time.time() + seconds), "tocsin": ALL if allows is None else allows, **claims}
    return jwt.encode({name: value for name, value in given.items() if value is not None}, SECRET, "HS256")


def bearer(shown: str) -> dict[str, str]:
    return {"authorization": f"Bearer {shown}"}


def somebody() -> str:
    return f"user-{secrets.token_hex(4)}"


SETTINGS = {
    "jwt_secret": SECRET,
    "api_keys": json.dumps({"ops": {"key": ADMIN["x-api-key"], "admin": True}, "shop": "b" * 20}),
    "origins": PAGE,
    "cookie": "session",
}


@pytest.fixture(scope="module")
def fast(redis_server: RedisServer) -> Iterator[Service]:
    with Service(redis_server.url, workers=3, redis_prefix="identity", settings=SETTINGS) as running:
        yield running


@pytest.fixture(scope="module")
def portable(redis_server: RedisServer) -> Iterator[Service]:
    with Service(redis_server.url, fast=False, redis_prefix="identity", node="portable", settings=SETTINGS) as running:
        yield running


@pytest.fixture(params=["fast", "portable"])
def either(request: pytest.FixtureRequest) -> Service:
    """Each kind of socket."""
    service: Service = request.getfixturevalue(request.param)
    return service


@contextlib.asynccontextmanager
async def plain(
    service: Service, shown: str, channel: str = "room:1", **options: Any
) -> AsyncIterator[ClientConnection]:
    subprotocols = offered("tocsin.plain", shown)
    address = service.ws(channel)
    async with websockets.connect(address, subprotocols=subprotocols, compression=None) as connection:
        yield connection


async def status(service: Service, names: list[str] | None = None, **headers: str) -> int:
    """What an upgrade is answered with."""
    subprotocols = None if names is None else [Subprotocol(name) for name in names]
    try:
        async with websockets.connect(
            service.ws(),
            subprotocols=subprotocols,
            additional_headers=headers,
            compression=None,
        ):
            return 101
    except websockets.InvalidStatus as refused:
        body = json.loads(refused.response.body or b"{}")
        assert body["error"]["message"], "a refusal says why"
        return refused.response.status_code


async def test_a_browser_shows_its_token_as_a_subprotocol_that_is_not_echoed(either: Service) -> None:
    async with converse(either, token=token(jti="t1")) as client:
        assert client.socket.subprotocol == NATIVE
        assert client.welcome["user"] == "ada"
        assert abs(client.welcome["expires_at"] - time.time() - 3600) < 10
    async with plain(either, token()) as connection:
        assert connection.subprotocol == "tocsin.plain"
        await connection.send("hi")
        assert await asyncio.wait_for(connection.recv(), 10) == "hi"


async def test_a_token_of_seven_kilobytes_fits_into_the_subprotocol(either: Service) -> None:
    long = token(groups="x" * 5000)
    assert 6900 < len(long) < 7168
    async with plain(either, long) as connection:
        await connection.send("hi")
        assert await asyncio.wait_for(connection.recv(), 10) == "hi"


async def test_a_token_gets_in_by_header_and_by_cookie_beside_an_origin(either: Service) -> None:
    good = token()
    assert await status(either, authorization=f"Bearer {good}") == 101
    assert await status(either, authorization=f"bearer {good}") == 101
    assert await status(either, cookie=f"a=b; session={good}", origin=PAGE) == 101
    assert await status(either, cookie=f"a=b; session={good}", origin=either.url) == 101
    assert await status(either, cookie=f"session={good}") == 401
    assert await status(either, cookie=f"session={good}", origin="https://evil.example") == 403
    assert await status(either, cookie=f"session={good}", origin="null") == 403
    assert await status(either, cookie=f"other={good}", origin=PAGE) == 401


async def test_without_a_good_token_there_is_no_upgrade(either: Service) -> None:
    unsigned = jwt.encode({"sub": "ada", "exp": 2e9}, "", "none")
    forged = jwt.encode({"sub": "ada", "exp": 2e9, "tocsin": ALL}, "x" * 40, "HS256")
    assert await status(either) == 401
    assert await status(either, authorization="Basic YWRhOnB3") == 401
    for bad in (unsigned, forged, token(seconds=-30), token(sub=None), token(exp=None), "", "a.b.c"):
        assert await status(either, authorization=f"Bearer {bad}") == 401, bad
        if bad:
            assert await status(either, ["tocsin.plain", f"tocsin.bearer.{bad}"]) == 401
    assert await status(either, [f"tocsin.bearer.{token()}"]) == 400
    assert await status(either, ["tocsin.plain", f"tocsin.bearer.{token()}"], authorization=f"Bearer {token()}") == 400


async def test_a_token_in_the_url_is_never_taken_and_never_logged(either: Service) -> None:
    good = token(jti=secrets.token_hex(8))
    for name in ("token", "access_token", "jwt", "authorization", "bearer", "protocols"):
        query = f"{name}=tocsin.bearer.{good}" if name == "protocols" else f"{name}={good}"
        assert either.get(f"/api/v1/connect?{query}").status_code == 401
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(either.ws(query=f"&{query}"))
        assert refused.value.response.status_code == 401
        assert good not in (refused.value.response.body or b"").decode()
    assert good.split(".")[2] not in either.log()
    assert good.split(".")[2] not in either.get("/metrics").text


async def test_connect_says_what_the_upgrade_would(either: Service) -> None:
    good = token(allows={"subscribe": ["room:*"]})
    for path, headers, expected in (
        ("?channel=room:1", bearer(good), 204),
        ("?channel=elsewhere", bearer(good), 403),
        ("?channel=room:1&history=5", bearer(good), 403),
        ("?channel=a%20b", bearer(good), 400),
        ("", {}, 401),
        ("?protocols=tocsin.v1", bearer(good), 204),
        ("?protocols=tocsin.v9", bearer(good), 400),
    ):
        answer = either.get(f"/api/v1/connect{path}", headers=headers)
        assert answer.status_code == expected, (path, answer.text)


async def test_each_right_is_asked_for_where_it_is_used(either: Service) -> None:
    allows = {"subscribe": ["room:*", "user:{user}"], "publish": ["room:1"], "history": ["room:2"], "presence": []}
    async with converse(either, token=token(allows=allows)) as client:

        async def code(kind: str, **fields: Any) -> str | None:
            answer = await client.ask(kind, **fields)
            return answer.get("code")

        assert await code("subscribe", channel="room:1") is None
        assert await code("subscribe", channel="user:ada") is None
        assert await code("subscribe", channel="user:eve") == "forbidden"
        assert await code("subscribe", channel="lobby") == "forbidden"
        assert await code("subscribe", channel="room:9", history=3) == "forbidden"
        assert await code("subscribe", channel="room:2", history=3) is None
        assert await code("subscribe", channel="room:3", presence="watch") == "forbidden"
        assert await code("subscribe", channel="room:3", presence={"info": {}}) == "forbidden"
        assert await code("presence", channel="room:1") == "forbidden"
        assert await code("history", channel="room:1") == "forbidden"
        assert await code("publish", channel="room:2", data=1) == "forbidden"
        assert await code("publish", channel="room:1", data=1) is None


async def test_rest_takes_tokens_but_never_a_cookie_for_a_write(either: Service) -> None:
    good = token(allows={"publish": ["room:*"], "history": ["room:*"]})
    channel = f"room:{secrets.token_hex(4)}"
    assert either.post(channel, {"data": 1}, headers=bearer(good)).status_code == 201
    assert either.post("other", {"data": 1}, headers=bearer(good)).status_code == 403
    cookie = {"cookie": f"session={good}", "origin": PAGE}
    assert either.post(channel, {"data": 1}, headers=cookie).status_code == 401
    path = f"/api/v1/channels/{channel}/messages"
    assert either.get(path, headers=cookie).status_code == 200
    assert either.get(path, headers={"cookie": f"session={good}", "sec-fetch-site": "same-origin"}).status_code == 200
    assert either.get(path, headers={"cookie": f"session={good}", "sec-fetch-site": "cross-site"}).status_code == 401
    messages = either.get(path, headers=bearer(good)).json()["messages"]
    assert [message["user"] for message in messages] == ["ada"]
    for method, administered in (("DELETE", path), ("GET", "/api/v1/channels")):
        answer = httpx.request(method, either.url + administered, headers=bearer(good), verify=NO_TLS)
        assert answer.status_code == 403, administered


async def test_a_message_carries_its_user_and_keys_of_users_are_their_own(either: Service) -> None:
    channel, key = f"room:{secrets.token_hex(4)}", secrets.token_urlsafe(18)
    async with converse(either, token=token("ada")) as ada, converse(either, token=token("key/shop")) as eve:
        await ada.ask("subscribe", channel=channel)
        first = await ada.ask("publish", channel=channel, data=1, key=key)
        other = await eve.ask("publish", channel=channel, data=2, key=key)
        assert (first["duplicate"], other["duplicate"]) == (False, False)
        assert [frame["user"] for frame in await ada.pushes(2)] == ["ada", "key/shop"]
        backend = either.post(channel, {"data": 3, "key": key}, headers={"x-api-key": "b" * 20})
        assert (backend.status_code, backend.json()["duplicate"]) == (201, False)


async def test_an_open_socket_is_closed_on_time_when_its_token_ends(either: Service) -> None:
    exp = int(time.time()) - 7  # within the leeway of ten seconds
    async with converse(either, token=token(exp=exp)) as native, plain(either, token(exp=exp)) as other:
        assert native.welcome["expires_at"] == exp
        assert await native.code() == 4401
        late = time.time() - (exp + 10)
        await asyncio.wait_for(other.wait_closed(), 10)
        assert other.close_code == 4401
        assert -1.1 <= late <= 1.5, late


async def test_a_new_token_keeps_the_socket_and_may_take_rights_away(either: Service) -> None:
    exp = int(time.time()) - 7
    channels = [f"room:{secrets.token_hex(4)}" for _ in range(2)]
    async with converse(either, token=token(exp=exp)) as client:
        for channel in channels:
            await client.ask("subscribe", channel=channel)
        bad = await client.ask("authenticate", token="a.b.c")
        assert bad["code"] == "unauthorized"
        assert (await client.ask("authenticate", token=token("eve")))["code"] == "forbidden"
        later = int(time.time()) + 600
        renewed = token(exp=later, allows={"subscribe": [channels[1]], "publish": ["room:*"]})
        answer = await client.ask("authenticate", token=renewed)
        assert answer == {"type": "authenticated", "ref": answer["ref"], "user": "ada", "expires_at": later}
        assert await client.push("unsubscribed") == {
            "type": "unsubscribed",
            "channel": channels[0],
            "reason": "forbidden",
        }
        for channel in channels:
            assert (await client.ask("publish", channel=channel, data=channel))["type"] == "published"
        assert (await client.push())["channel"] == channels[1]
        await asyncio.sleep(max(0.0, exp + 12 - time.time()))  # the end of the first token passes
        assert (await client.ask("ping"))["type"] == "pong"


async def test_permission_taken_away_then_resume_replays_nothing(either: Service) -> None:
    channel, user = f"room:{secrets.token_hex(4)}", somebody()
    async with converse(either, token=token(user)) as client:
        since = (await client.ask("subscribe", channel=channel))["position"]
    either.post(channel, {"data": 1}, headers={"x-api-key": "b" * 20})
    async with converse(either, token=token(user, allows={"subscribe": ["elsewhere"]})) as client:
        assert (await client.ask("subscribe", channel=channel, since=since))["code"] == "forbidden"
        assert await client.silent()


def disconnect(service: Service, user: str, seconds: float = 0) -> int:
    answer = httpx.post(
        f"{service.url}/api/v1/users/{user}/disconnect", json={"refuse_seconds": seconds}, headers=ADMIN, verify=NO_TLS
    )
    return answer.status_code


async def test_a_revoked_user_is_out_of_all_workers_within_a_second_and_stays_out(fast: Service) -> None:
    user, other = somebody(), somebody()
    async with contextlib.AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(plain(fast, token(user))) for _ in range(12)]
        natives = [await stack.enter_async_context(converse(fast, token=token(user))) for _ in range(12)]
        stays = await stack.enter_async_context(converse(fast, token=token(other)))
        assert len({native.welcome["worker"] for native in natives}) > 1
        began = time.monotonic()
        assert disconnect(fast, user, 60) == 202
        codes = await asyncio.gather(*(native.code() for native in natives))
        await asyncio.gather(*(socket.wait_closed() for socket in sockets))
        assert time.monotonic() - began < 1.0
        assert {*codes, *(socket.close_code for socket in sockets)} == {4403}
        assert (await stays.ask("ping"))["type"] == "pong"
        for _ in range(10):  # on whichever worker
            assert await status(fast, authorization=f"Bearer {token(user)}") == 403
        assert fast.get("/api/v1/connect", headers=bearer(token(user))).status_code == 403
        assert fast.post("room:1", {"data": 1}, headers=bearer(token(user))).status_code == 403
        assert await status(fast, authorization=f"Bearer {token(other)}") == 101
        until(lambda: sum(fast.metric("revoked_total").values()) >= 24, what="the count of all workers")


async def test_a_disconnected_user_may_return_at_once(fast: Service) -> None:
    user = somebody()
    async with converse(fast, token=token(user)) as one, converse(fast, token=token(user)) as two:
        assert disconnect(fast, user) == 202
        assert await one.code() == await two.code() == 4403
    async with converse(fast, token=token(user)) as back:
        assert await back.silent(1.5)
        assert (await back.ask("ping"))["type"] == "pong"


async def test_one_token_is_revoked_and_the_user_goes_on_with_another(fast: Service) -> None:
    user, jti = somebody(), secrets.token_hex(8)
    async with converse_with_jti(fast, user, jti) as gone, converse_with_jti(fast, user, "another") as stays:
        url = f"{fast.url}/api/v1/tokens/{jti}/revoke"
        assert httpx.post(url, json={"expires_at": time.time() + 60}, headers=ADMIN, verify=NO_TLS).status_code == 202
        assert await gone.code() == 4403
        assert (await stays.ask("ping"))["type"] == "pong"
        answer = await stays.ask("authenticate", token=token(user, jti=jti))
        assert answer["code"] == "forbidden"
    assert await status(fast, authorization=f"Bearer {token(user, jti=jti)}") == 403


def converse_with_jti(service: Service, user: str, jti: str) -> contextlib.AbstractAsyncContextManager[Any]:
    return converse(service, token=token(user, jti=jti))


def test_revoking_needs_an_administrator_and_a_body_that_makes_sense(fast: Service) -> None:
    def ask(path: str, body: Any, headers: dict[str, str]) -> int:
        return httpx.post(f"{fast.url}/api/v1/{path}", json=body, headers=headers, verify=NO_TLS).status_code

    assert ask("users/ada/disconnect", {}, {"x-api-key": "b" * 20}) == 202  # a bare key may do all
    assert ask("users/eve/disconnect", {}, bearer(token())) == 403
    assert ask("users/eve/disconnect", {"refuse_seconds": -1}, ADMIN) == 422
    assert ask("users/eve/disconnect", {"refuse_seconds": "soon"}, ADMIN) == 422
    assert ask("tokens/x/revoke", {"expires_at": "never"}, ADMIN) == 422
    assert ask("users/" + "x" * 257 + "/disconnect", {}, ADMIN) == 422
    assert ask("users/a%2Fb%20c/disconnect", {"refuse_seconds": 1}, ADMIN) == 202


async def test_revocations_survive_a_restart_of_redis_and_hold_while_it_is_away(redis_server: RedisServer) -> None:
    user = somebody()
    with (
        RedisServer(appendonly="yes", appendfsync="always") as server,
        Service(server.url, workers=2, redis_prefix="refused", settings=SETTINGS) as service,
    ):
        assert disconnect(service, user, 600) == 202
        async with converse(service, token=token()) as listener:
            server.kill()
            until(lambda: service.get("/readyz").status_code == 503)
            assert await status(service, authorization=f"Bearer {token()}") == 503
            assert await status(service, authorization=f"Bearer {token(user)}") in {403, 503}
            assert disconnect(service, somebody()) == 503
            server.start()
            until(service.all_ready, 30)
            for _ in range(8):  # on whichever worker: one that is not ready yet says so
                while (said := await status(service, authorization=f"Bearer {token(user)}")) == 503:
                    await asyncio.sleep(0.1)
                assert said == 403
            assert (await listener.ask("ping"))["type"] == "pong"
        fresh = Service(server.url, redis_prefix="refused", node="fresh", settings=SETTINGS)
        with fresh:
            assert await status(fresh, authorization=f"Bearer {token(user)}") == 403


async def test_what_the_store_has_lost_is_written_back_by_who_knows_it(redis_server: RedisServer) -> None:
    user = somebody()
    with (
        RedisServer() as server,
        Service(server.url, workers=2, redis_prefix="lost", settings=SETTINGS) as service,
    ):
        assert disconnect(service, user, 600) == 202
        until(lambda: service.get("/api/v1/connect", headers=bearer(token(user))).status_code == 403)
        with server.client() as client:
            client.flushall()
            until(lambda: client.zscore("lost:{workers}:refused", f"user/{user}"), what="its return")
        assert await status(service, authorization=f"Bearer {token(user)}") == 403


def test_listed_pages_may_read_answers_of_rest(fast: Service) -> None:
    path = f"{fast.url}/api/v1/channels/room:1/messages"
    asks = {
        "origin": PAGE,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,idempotency-key",
    }
    allowed = httpx.options(path, headers=asks, verify=NO_TLS)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == PAGE
    answer = fast.post("room:1", {"data": 1}, headers={**bearer(token()), "origin": PAGE})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (201, PAGE)
    refused = fast.post("room:1", {"data": 1}, headers={"origin": PAGE})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, PAGE)
    assert refused.headers["www-authenticate"] == "Bearer"
    for origin in ("https://evil.example", "null"):
        foreign = httpx.options(path, headers={**asks, "origin": origin}, verify=NO_TLS)
        assert "access-control-allow-origin" not in foreign.headers
