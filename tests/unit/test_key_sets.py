"""Key sets: fetched from a real endpoint, seldom, only for who could be let in; the endpoint can do what it likes."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from app.core.errors import Unauthorized, Unavailable
from app.edge import jwks
from app.edge.jwks import COOLDOWN_SECONDS, LARGEST, REFRESH_SECONDS, TRIES, fetch, read_key_set
from app.edge.keys import TokenRules, Tokens

ALLOWED = ("RS256", "ES256", "EdDSA")
RSA = rsa.generate_private_key(65537, 2048)
P256 = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())
ED25519 = ed25519.Ed25519PrivateKey.generate()


def jwk(key: Any, kid: str | None = None, **more: Any) -> dict[str, Any]:
    """A public key as an issuer publishes it."""
    makers: dict[type, Any] = {rsa.RSAPrivateKey: RSAAlgorithm, ec.EllipticCurvePrivateKey: ECAlgorithm}
    maker = next((maker for kind, maker in makers.items() if isinstance(key, kind)), OKPAlgorithm)
    named = {} if kid is None else {"kid": kid}
    return {**json.loads(maker.to_jwk(key.public_key())), **named, **more}


def mint(key: Any, algorithm: str = "ES256", kid: str | None = None, **more: Any) -> str:
    payload = {"sub": "ada", "exp": int(time.time()) + 60, **more}
    return jwt.encode(payload, key, algorithm, headers={} if kid is None else {"kid": kid})


class Issuer:
    """A real HTTP server on loopback; `answer` is what it does with a request, `paths` what it was asked for."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.answer: Callable[[BaseHTTPRequestHandler], None] = lambda _request: None
        self.released = threading.Event()
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.paths.append(self.path)
                try:
                    issuer.answer(self)
                except OSError:  # who asked has gone
                    self.close_connection = True

            def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the base class says so
                """Nobody reads it."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks.json"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def publish(self, *keys: dict[str, Any]) -> None:
        self.send(json.dumps({"keys": keys}).encode())

    def send(self, body: bytes, status: int = 200, **headers: str) -> None:
        def answer(request: BaseHTTPRequestHandler) -> None:
            request.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                request.send_header(name, value)
            request.end_headers()
            request.wfile.write(body)

        self.answer = answer

    def stop(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(10)


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    server = Issuer()
    yield server
    server.stop()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def tokens_of(server: Issuer, clock: Clock, issuer: str | None = None) -> Tokens:
    return Tokens(TokenRules(ALLOWED, jwks_url=server.url, issuer=issuer), clock=clock)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def refusal(tokens: Tokens, token: str) -> str:
    with pytest.raises(Unauthorized) as caught:
        await tokens.verify(token)
    return caught.value.message


async def test_a_set_is_fetched_once_for_all_its_keys(issuer: Issuer, clock: Clock) -> None:
    issuer.publish(jwk(RSA, "r"), jwk(P256, "p"), jwk(ED25519, "e"))
    tokens = tokens_of(issuer, clock)
    assert issuer.paths == []
    minted = [mint(RSA, "RS256", "r"), mint(P256, "ES256", "p"), mint(ED25519, "EdDSA", "e")] * 5
    found = await asyncio.gather(*map(tokens.verify, minted))
    assert [ada.user for ada in found] == ["ada"] * 15
    assert issuer.paths == ["/jwks.json"]


async def test_without_a_kid_the_keys_that_fit_are_tried(issuer: Issuer, clock: Clock) -> None:
    issuer.publish(jwk(RSA), jwk(OTHER, "o"), jwk(P256, "p"), jwk(ED25519))
    tokens = tokens_of(issuer, clock)
    for token in (
        mint(P256),
        mint(OTHER),
        mint(RSA, "RS256"),
        mint(RSA, "RS256", "unnamed there"),
        mint(P256, kid="p"),
    ):
        assert (await tokens.verify(token)).user == "ada"
    assert "fit" in await refusal(tokens, mint(P256, kid="o"))
    assert len(issuer.paths) == 1


async def test_at_most_so_many_keys_are_tried() -> None:
    tokens = Tokens(
        TokenRules(ALLOWED, jwks_url="https://issuer.example/"),
        fetch=lambda _url: json.dumps({"keys": [*[jwk(OTHER)] * TRIES, jwk(P256)]}).encode(),
    )
    assert "fit" in await refusal(tokens, mint(P256))


@pytest.mark.parametrize(
    "token",
    [
        *("", "a.b.c", "x" * 9000),
        jwt.encode({"sub": "ada", "exp": 9_999_999_999}, "s" * 32, "HS256"),
        mint(P256, iss="https://other.example"),
        mint(P256, iss="https://id.example", exp=1),
        mint(P256, iss="https://id.example", sub=None),
        mint(RSA, "RS512", iss="https://id.example"),
        jwt.encode({"sub": "a", "exp": 9_999_999_999, "iss": "https://id.example"}, "", "none"),
    ],
    ids=["empty", "parts", "long", "HS256", "issuer", "expired", "no sub", "RS512", "none"],
)
async def test_nothing_is_fetched_for_a_token_that_is_refused_anyway(issuer: Issuer, clock: Clock, token: str) -> None:
    issuer.publish(jwk(P256))
    await refusal(tokens_of(issuer, clock, issuer="https://id.example"), token)
    assert issuer.paths == []


async def test_the_address_never_comes_from_the_token(issuer: Issuer, clock: Clock) -> None:
    issuer.publish(jwk(P256, "p"))
    tokens = tokens_of(issuer, clock)
    evil = issuer.url.replace("jwks.json", "evil.json")
    token = jwt.encode(
        {"sub": "ada", "exp": 9_999_999_999, "iss": evil},
        OTHER,
        "ES256",
        headers={"kid": evil, "jku": evil, "x5u": evil},
    )
    assert "`kid`" in await refusal(tokens, token)
    assert issuer.paths == ["/jwks.json"]


async def test_unknown_kids_cost_one_fetch_a_cooldown(issuer: Issuer, clock: Clock) -> None:
    issuer.publish(jwk(P256, "p"))
    tokens = tokens_of(issuer, clock)
    for expected in (1, 2, 3):
        for number in range(20):
            assert "`kid`" in await refusal(tokens, mint(OTHER, kid=f"{expected}/{number}"))
        assert len(issuer.paths) == expected
        clock.now += COOLDOWN_SECONDS - 0.001
        await refusal(tokens, mint(OTHER, kid="x"))
        assert len(issuer.paths) == expected
        clock.now += 0.001
    assert (await tokens.verify(mint(P256, kid="p"))).user == "ada"
    assert len(issuer.paths) == 3


async def test_unknown_kids_at_the_same_time_share_a_fetch(issuer: Issuer, clock: Clock) -> None:
    issuer.publish(jwk(P256, "p"))
    tokens = tokens_of(issuer, clock)
    await asyncio.gather(*(refusal(tokens, mint(OTHER, kid=str(number))) for number in range(50)))
    assert len(issuer.paths) == 1


async def test_a_bad_signature_of_a_known_key_fetches_nothing(issuer: Issuer, clock: Clock) -> None:
    issuer.publish(jwk(P256, "p"))
    tokens = tokens_of(issuer, clock)
    await tokens.verify(mint(P256, kid="p"))
    clock.now += COOLDOWN_SECONDS
    assert "fit" in await refusal(tokens, mint(OTHER, kid="p"))
    assert len(issuer.paths) == 1


async def test_a_new_key_is_found_after_the_cooldown_and_an_old_one_is_forgotten(issuer: Issuer, clock: Clock) -> None:
    issuer.publish(jwk(P256, "old"))
    tokens = tokens_of(issuer, clock)
    await tokens.verify(mint(P256, kid="old"))
    issuer.publish(jwk(OTHER, "new"))
    await refusal(tokens, mint(OTHER, kid="new"))
    clock.now += COOLDOWN_SECONDS
    assert (await tokens.verify(mint(OTHER, kid="new"))).user == "ada"
    assert "`kid`" in await refusal(tokens, mint(P256, kid="old"))
    assert len(issuer.paths) == 2


async def test_an_old_set_is_fetched_anew_while_it_still_serves(issuer: Issuer, clock: Clock) -> None:
    issuer.publish(jwk(P256, "p"))
    tokens = tokens_of(issuer, clock)
    await tokens.verify(mint(P256, kid="p"))
    issuer.publish(jwk(OTHER, "p"))  # the same name, another key: only age tells
    clock.now += REFRESH_SECONDS
    assert (await tokens.verify(mint(P256, kid="p"))).user == "ada"
    assert tokens._set is not None
    await until(lambda: tokens._set is not None and tokens._set._task is None)
    assert len(issuer.paths) == 2
    assert (await tokens.verify(mint(OTHER, kid="p"))).user == "ada"


async def test_known_keys_serve_while_the_endpoint_is_down(issuer: Issuer, clock: Clock) -> None:
    issuer.publish(jwk(P256, "p"))
    tokens = tokens_of(issuer, clock)
    await tokens.verify(mint(P256, kid="p"))
    issuer.send(b"down", 503)
    for fetches in range(2, 6):
        clock.now += 10 * REFRESH_SECONDS
        for _ in range(5):
            assert (await tokens.verify(mint(P256, kid="p"))).user == "ada"
        await until(lambda: tokens._set is not None and tokens._set._task is None)
        assert len(issuer.paths) == fetches
    with pytest.raises(Unavailable) as caught:  # the key may be new: not the client's fault
        await tokens.verify(mint(OTHER, kid="new"))
    assert caught.value.retry_after == COOLDOWN_SECONDS


def bomb(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    for _ in range(160):
        request.wfile.write(b" " * 65_536)


ANSWERS: dict[str, Callable[[Issuer], None]] = {
    "500": lambda issuer: issuer.send(b'{"keys":[]}', 500),
    "404": lambda issuer: issuer.send(b"", 404),
    "204": lambda issuer: issuer.send(b"", 204),
    "garbage": lambda issuer: issuer.send(b"\xff\x00<html>"),
    "deep": lambda issuer: issuer.send(b"[" * 100_000),
    "a list": lambda issuer: issuer.send(b"[1]"),
    "no list": lambda issuer: issuer.send(b'{"keys":{"a":1}}'),
    "no keys": lambda issuer: issuer.send(b'{"keys":[]}'),
    "nonsense": lambda issuer: issuer.send(
        b'{"keys":[1,null,[],{},{"kty":"EC"},{"kty":7},{"kty":"RSA","n":1,"e":[]}]}'
    ),
    "another host": lambda issuer: issuer.send(b"", 302, Location="http://127.0.0.2/jwks.json"),
    "another name": lambda issuer: issuer.send(b"", 302, Location=issuer.url.replace("127.0.0.1", "localhost")),
    "another scheme": lambda issuer: issuer.send(b"", 301, Location="file:///etc/passwd"),
    "in circles": lambda issuer: issuer.send(b"", 302, Location=issuer.url),
    "10 MB": lambda issuer: setattr(issuer, "answer", bomb),
    "too large": lambda issuer: issuer.send(b'{"keys":[]' + b" " * LARGEST + b"}"),
    "hangs up": lambda issuer: setattr(issuer, "answer", lambda request: request.connection.close()),
    "is down": lambda issuer: issuer.server.socket.close(),
}


@pytest.mark.parametrize("what", ANSWERS)
async def test_whatever_the_endpoint_does_it_is_not_the_clients_fault(what: str, issuer: Issuer, clock: Clock) -> None:
    ANSWERS[what](issuer)
    tokens = tokens_of(issuer, clock)
    started = time.monotonic()
    for _ in range(3):
        with pytest.raises(Unavailable) as caught:
            await tokens.verify(mint(P256, kid="p"))
        assert caught.value.retry_after == COOLDOWN_SECONDS
        assert "127.0.0.1" not in caught.value.message
    assert time.monotonic() - started < 4
    if what == "is down":
        return
    assert len(set(issuer.paths)) == 1
    asked = len(issuer.paths)
    issuer.publish(jwk(P256, "p"))
    clock.now += COOLDOWN_SECONDS
    assert (await tokens.verify(mint(P256, kid="p"))).user == "ada"
    assert len(issuer.paths) == asked + 1


async def test_a_redirect_on_the_host_is_followed(issuer: Issuer, clock: Clock) -> None:
    issuer.publish(jwk(P256, "p"))
    there = issuer.answer

    def answer(request: BaseHTTPRequestHandler) -> None:
        if request.path == "/there":
            there(request)
            return
        request.send_response(302)
        request.send_header("Location", "/there")
        request.send_header("Content-Length", "0")
        request.end_headers()

    issuer.answer = answer
    assert (await tokens_of(issuer, clock).verify(mint(P256, kid="p"))).user == "ada"
    assert issuer.paths == ["/jwks.json", "/there"]


async def test_a_redirect_elsewhere_is_not_followed_though_good_keys_are_there(issuer: Issuer, clock: Clock) -> None:
    other = Issuer()
    try:
        other.publish(jwk(P256, "p"))
        for place in (other.url, other.url.replace("127.0.0.1", "localhost")):
            issuer.send(b"", 302, Location=place)
            with pytest.raises(Unavailable):
                await tokens_of(issuer, clock).verify(mint(P256, kid="p"))
        assert other.paths == []
    finally:
        other.stop()


@pytest.mark.parametrize("where", ["silence", "head", "body"])
async def test_a_slow_endpoint_keeps_a_request_no_longer_than_the_deadline(
    where: str, issuer: Issuer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "FETCH_SECONDS", 0.4)
    ended = threading.Event()

    def drip(request: BaseHTTPRequestHandler) -> None:
        try:
            if where == "body":
                request.send_response(200)
                request.end_headers()
            while not issuer.released.wait(0.05):
                if where != "silence":
                    request.wfile.write(b"H")
                    request.wfile.flush()
        finally:
            ended.set()

    issuer.answer = drip
    tokens = tokens_of(issuer, clock)
    started = time.monotonic()
    with pytest.raises(Unavailable):
        await tokens.verify(mint(P256, kid="p"))
    assert time.monotonic() - started < 10  # without the deadline: never
    await until(lambda: tokens._set is not None and tokens._set._task is None)  # the thread is free again
    assert time.monotonic() - started < 10
    if where != "silence":
        await asyncio.to_thread(ended.wait, 5)
        assert ended.is_set()


async def test_closing_forgets_the_fetch_under_way(issuer: Issuer, clock: Clock) -> None:
    def wait(_request: BaseHTTPRequestHandler) -> None:
        issuer.released.wait(10)

    issuer.answer = wait
    tokens = tokens_of(issuer, clock)
    waiting = asyncio.create_task(tokens.verify(mint(P256, kid="p")))
    await until(lambda: bool(issuer.paths))
    await tokens.close()
    with pytest.raises((Unavailable, asyncio.CancelledError)):
        await waiting
    issuer.released.set()


async def test_a_client_that_leaves_does_not_end_the_fetch_of_others(issuer: Issuer, clock: Clock) -> None:
    proceed = threading.Event()
    issuer.publish(jwk(P256, "p"))
    there = issuer.answer

    def late(request: BaseHTTPRequestHandler) -> None:
        proceed.wait(10)
        there(request)

    issuer.answer = late
    tokens = tokens_of(issuer, clock)
    first, second = (asyncio.create_task(tokens.verify(mint(P256, kid="p"))) for _ in range(2))
    await until(lambda: bool(issuer.paths))
    first.cancel()
    proceed.set()
    assert (await second).user == "ada"
    assert len(issuer.paths) == 1


@pytest.mark.parametrize(
    "entry",
    [
        jwk(P256, "k", alg="RS256"),
        jwk(P256, "k", alg="ES384"),
        jwk(P256, "k", alg="HS256"),
        jwk(P256, "k", alg=["ES256"]),
        jwk(P256, "k", kty="RSA"),
        jwk(P256, "k", kty="OKP"),
        jwk(P256, "k", kty="oct"),
        jwk(P256, "k", crv="P-384"),
        jwk(P256, "k", use="enc"),
        jwk(P256, "k", key_ops=["sign"]),
        jwk(P256, "k", key_ops=7),
        jwk(P256, "k") | {"kid": 7},
        jwk(P256, "k", x="AAAA"),
        jwk(RSA, "k", n="AQAB"),
        jwk(RSA, "k", alg="RSA-OAEP"),
        jwk(rsa.generate_private_key(65537, 1024), "k"),
        jwk(ec.generate_private_key(ec.SECP256K1()), "k"),
        {"kty": "oct", "k": "c2VjcmV0" * 6, "kid": "k"},
        {"kty": "oct", "k": "c2VjcmV0" * 6, "kid": "k", "alg": "ES256"},
        json.loads(ECAlgorithm.to_jwk(P256)),
    ],
)
def test_keys_that_do_not_fit_are_left_out(entry: dict[str, Any]) -> None:
    [good] = read_key_set(json.dumps({"keys": [entry, jwk(OTHER, "good", use="sig", alg="ES256")]}).encode(), ALLOWED)
    assert (good.kid, good.algorithms) == ("good", ("ES256",))
    with pytest.raises(ValueError, match="no key in it"):
        read_key_set(json.dumps({"keys": [entry]}).encode(), ALLOWED)


async def test_the_name_of_a_key_does_not_make_it_fit(issuer: Issuer, clock: Clock) -> None:
    issuer.publish(jwk(P256, "p"), jwk(RSA, "r", alg="RS256"))
    tokens = tokens_of(issuer, clock)
    for token in (mint(RSA, "RS256", "p"), mint(P256, "ES256", "r"), mint(OTHER, "ES256", "p")):
        assert "fit" in await refusal(tokens, token)
    assert len(issuer.paths) == 1


def test_a_proxy_of_the_environment_does_not_see_what_is_on_this_machine(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer.send(b"here")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert fetch(issuer.url) == b"here"
