"""What nobody should send: refused at every entrance, at no cost for others, and nothing of it gets anywhere else."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import orjson
import pytest

from tests.stage.frames import KEY, Peer, close, request, text
from tests.stage.native import converse
from tests.stage.redis import RedisServer
from tests.stage.service import NO_TLS, Service

API_KEY = "abuse-0f1e2d3c4b5a69788796a5b4c3d2e1f0"
PATTERN_COMMANDS = ("keys", "scan", "psubscribe", "punsubscribe", "sort", "flushall")
MEBIBYTE = 1_048_576

GLOBS = ["*", "room:*", "r?om", "[a-z]", "room[^x]", "\\*"]
BRACES = ["{room}", "room}:meta{", "{workers}:all", "}{", "{}"]
SEPARATORS = [
    "",
    " ",
    "a b",
    "a,b",
    "a;b",
    "a|b",
    'a"b',
    "a'b",
    "a\\b",
    "a%b",
    "a&b=c",
    "a#b",
    "a+b",
    "../a",
    "a/b",
    "a=b",
]
CONTROLS = [
    "\0",
    "a\0b",
    "a\n",
    "a\r\n",
    "x\r\nFLUSHALL\r\n",
    "$4\r\nPING\r\n",
    "\x1b[2J",
    "\x7f",
    "a\tb",
    "\x85",
    "\u2028",
]
SCRIPTS = [
    "комната",
    "房间",
    "غرفة",
    "\uff52oom",
    "ro\u200bom",
    "é",
    "e\u0301",
    "🙂",
    "\u0663",
    "ª",
    "\u212a",
    "\ufeffroom",
]
LONG = ["x" * 129, "x" * 10_240, "{" * 10_240, "房" * 3_000]
NAMES = [*GLOBS, *BRACES, *SEPARATORS, *CONTROLS, *SCRIPTS, *LONG]
"""Outside the grammar of channels; what is alike under some normalization or case folding too."""


@pytest.fixture(scope="module")
def store() -> Iterator[RedisServer]:
    """A Redis that nobody else uses, where the service has its rights as they are deployed."""
    with RedisServer(narrow=True) as server:
        yield server


@pytest.fixture(scope="module", params=["fast", "portable"])
def service(store: RedisServer, request: pytest.FixtureRequest) -> Iterator[Service]:
    """One worker, on each kind of socket."""
    with Service(store.url, fast=request.param == "fast", node=request.param) as running:
        yield running


def calls(store: RedisServer) -> dict[str, int]:
    """How often each command was called so far (INFO commandstats)."""
    with store.client() as client:
        return {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in client.info("commandstats").items()}


def keys(store: RedisServer) -> set[str]:
    """All keys, whosoever, but what workers leave by the clock."""
    with store.client() as client:
        found = {key.decode("utf-8", "backslashreplace") for key in client.keys("*")}
    return {key for key in found if not key.startswith(("tocsin:{workers}:", "tocsin:{probe."))}


def resident(service: Service, field: str = "VmRSS") -> int:
    """Bytes of the worker's memory, by /proc; `VmHWM` is the most that they ever were."""
    [pid] = service.worker_pids()
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def code_of(answer: httpx.Response) -> str:
    """The code of a refusal in the error model."""
    code: str = answer.json()["error"]["code"]
    return code


@contextlib.contextmanager
def unharmed(service: Service) -> Iterator[None]:
    """The worker that was there is there, and serves a socket; its log tells of no fault."""
    before = service.worker_pids()
    yield
    assert service.worker_pids() == before
    with Peer(service.port, "/ws?channel=unharmed") as peer:
        peer.send(text("alive"))
        assert peer.read_text() == "alive"
        peer.send(close())
    assert "Traceback" not in service.log()


@contextlib.contextmanager
def nothing_reaches(store: RedisServer) -> Iterator[None]:
    """No key, no Pub/Sub channel outside the prefix, no pattern command, nothing that the rights had to refuse."""
    before, counted = keys(store), calls(store)
    yield
    used = calls(store)
    assert [name for name in PATTERN_COMMANDS if used.get(name, 0) > counted.get(name, 0)] == []
    assert keys(store) == before
    with store.client() as client:
        assert client.pubsub_numpat() == 0
        assert all(channel.startswith(b"tocsin:") for channel in client.pubsub_channels())
        assert client.acl_log() == []


def test_bad_channel_names_are_refused_over_http_and_reach_no_key(service: Service, store: RedisServer) -> None:
    with nothing_reaches(store), httpx.Client(base_url=service.url, verify=NO_TLS, timeout=10) as http:
        for name in NAMES:
            quoted = quote(name, safe="")
            messages = f"/api/v1/channels/{quoted}/messages"
            short = len(quoted) < 8000
            if service.fast or short:  # to a longer one uvicorn's own sockets never send the refusal
                with Peer(service.port, f"/ws?channel={quoted}") as peer:
                    assert peer.status in ({400} if short else {400, 414, 431}), name
            for answer in (
                http.get(f"/api/v1/connect?channel={quoted}"),
                http.post(messages, json={"data": 1}),
                http.get(messages),
                http.get(f"{messages}?since=0a-0"),
                http.delete(messages),
            ):
                if answer.status_code in {404, 405}:  # no route takes a name with a slash, or none
                    assert "/" in name or not name, name
                else:
                    assert (answer.status_code, code_of(answer)) == (400, "bad_channel"), name
        batch = {"messages": [{"channel": name, "data": 1} for name in NAMES]}
        results = http.post("/api/v1/messages", json=batch).json()["results"]
        assert [result["error"]["code"] for result in results] == ["bad_channel"] * len(NAMES)


async def test_bad_channel_names_are_refused_in_native_commands_and_reach_no_key(
    service: Service, store: RedisServer
) -> None:
    commands: dict[str, dict[str, Any]] = {"subscribe": {}, "publish": {"data": 1}, "history": {}, "unsubscribe": {}}
    with nothing_reaches(store):
        async with converse(service) as client:
            for name in NAMES:
                for command, fields in commands.items():
                    answer = await client.ask(command, channel=name, **fields)
                    assert answer["type"] == "error", (command, name)
                    wanted = "not_subscribed" if command == "unsubscribe" else "bad_channel"
                    assert answer["code"] == wanted, (command, name)
                    assert (await client.ask("ping"))["type"] == "pong"  # too many bad ones in a row would end it


WRONG = {
    "no key": request(key=None),
    "a short key": request(key="tooshort"),
    "two keys": request(extra=f"Sec-WebSocket-Key: {KEY}\r\n"),
    "no version": request(version=None),
    "an old version": request(version="8"),
    "two versions": request(extra="Sec-WebSocket-Version: 8\r\n"),
    "a codec twice": request(extra="Sec-WebSocket-Protocol: tocsin.v1, tocsin.v1\r\n"),
    "two codecs in two lines, one twice": request(
        extra="Sec-WebSocket-Protocol: tocsin.v1\r\nSec-WebSocket-Protocol: tocsin.plain, tocsin.v1\r\n"
    ),
    "no codec that we know": request(extra="Sec-WebSocket-Protocol: chat\r\n"),
    "a codec that is no token": request(extra="Sec-WebSocket-Protocol: tocsin v1\r\n"),
    "a huge header": request(extra=f"X-Big: {'x' * 70_000}\r\n"),
    "many headers": request(extra="".join(f"X-{i}: y\r\n" for i in range(2000))),
    "a huge path": request("/ws?" + "x" * 70_000),
    "another upgrade": request().replace(b"Upgrade: websocket", b"Upgrade: websockets"),
    "h2c": request().replace(b"Upgrade: websocket", b"Upgrade: h2c"),
    "no Connection": request().replace(b"Connection: Upgrade\r\n", b""),
    "another Connection": request().replace(b"Connection: Upgrade", b"Connection: keep-alive"),
    "POST": request().replace(b"GET", b"POST", 1),
    "PUT": request().replace(b"GET", b"PUT", 1),
    "HEAD": request().replace(b"GET", b"HEAD", 1),
    "an unknown method": request().replace(b"GET", b"BREW", 1),
    "HTTP/1.0": request().replace(b"HTTP/1.1", b"HTTP/1.0"),
    "HTTP/3.0": request().replace(b"HTTP/1.1", b"HTTP/3.0"),
    "no Host": request().replace(b"Host: localhost\r\n", b""),
    "a header without a colon": request(extra="Nonsense\r\n"),
    "a header with a zero byte": request(extra="X-Zero: \0\r\n"),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)) + b"\r\n\r\n",
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_handshakes_are_refused_and_the_worker_lives(service: Service, name: str) -> None:
    if not service.fast and name in {"a huge header", "many headers", "a huge path", "HTTP/1.0"}:
        pytest.skip("uvicorn never sends what its library refuses, and tells it that it was HTTP/1.1")
    with unharmed(service):
        with Peer(service.port, handshake=WRONG[name]) as peer:
            peer.half_close()
            said = peer.read_end()
        assert 400 <= peer.status < 500
        assert b"Traceback" not in said


def test_a_hundred_thousand_channel_names_leave_no_series_and_no_memory(service: Service) -> None:
    """No metric names a channel, and what a worker remembers of names that are gone is bounded."""
    if not service.fast:
        pytest.skip("no socket takes part")

    def publish(batches: int) -> None:
        for _ in range(batches):
            messages = [{"channel": f"random:{secrets.token_hex(12)}", "data": 1} for _ in range(1000)]
            answer = http.post("/api/v1/messages", content=orjson.dumps({"messages": messages}))
            assert answer.status_code == 200
            assert not any("error" in result for result in answer.json()["results"])

    def series() -> int:
        lines = service.get("/metrics").text.splitlines()
        assert not any("random:" in line for line in lines)
        return sum(not line.startswith("#") for line in lines)

    headers = {"content-type": "application/json"}
    with httpx.Client(base_url=service.url, verify=NO_TLS, timeout=30, headers=headers) as http:
        publish(12)  # more than a worker keeps routes for: what it takes at most is taken
        before, memory = series(), resident(service)
        publish(88)
    assert series() <= before + 50
    assert resident(service) < memory + 16 * MEBIBYTE


NAMED = ("api_key", "apikey", "x-api-key", "X-API-Key", "key", "token", "access_token", "channel=lobby&token")
QUERIES = [*(f"?{name}={API_KEY}" for name in NAMED), f"?authorization=Bearer%20{API_KEY}", f"?channel={API_KEY}"]
USERS = [f"{API_KEY}@", f"{API_KEY}:@", f"all:{API_KEY}@", f":{API_KEY}@"]


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "portable"])
def test_a_key_in_a_url_is_not_accepted_and_is_told_nobody(store: RedisServer, fast: bool) -> None:
    said: list[str] = []
    settings = {"api_keys": json.dumps({"all": API_KEY}), "log_level": "debug", "node": f"keyed-{fast}"}
    service = Service(store.url, fast=fast, settings=settings)
    with service, httpx.Client(base_url=service.url, verify=NO_TLS, timeout=10) as http:
        for query in QUERIES:
            for answer in (
                http.get(f"/api/v1/channels/room/messages{query}"),
                http.post(f"/api/v1/channels/room/messages{query}", json={"data": 1}),
                http.post(f"/api/v1/messages{query}", json={"messages": [{"channel": "room", "data": 1}]}),
                http.delete(f"/api/v1/channels/room/messages{query}"),
                http.get(f"/api/v1/channels{query}"),
                http.get(f"/api/v1/connect{query}"),
            ):
                assert answer.status_code == 401, query
                said += [answer.text, str(answer.headers)]
            said += [http.get(f"{path}{query}").text for path in ("/livez", "/readyz", "/metrics", "/nothing", "/")]
            with Peer(service.port, f"/ws{query}") as peer:
                assert peer.status == 401
                said += [peer.head, peer.read_end().decode()]
        for user in USERS:
            answer = httpx.get(f"http://{user}127.0.0.1:{service.port}/api/v1/connect", verify=NO_TLS)
            assert answer.status_code == 401
            whole = f"GET http://{user}localhost:{service.port}/api/v1/connect HTTP/1.1\r\nHost: localhost\r\n\r\n"
            with Peer(service.port, handshake=whole.encode()) as peer:
                assert 400 <= peer.status < 500
                peer.half_close()
                said += [answer.text, peer.head, peer.read_end().decode()]
        for path in (f"/api/v1/channels/{API_KEY}/messages", f"/{API_KEY}", f"/ws/{API_KEY}"):
            answer = http.get(path)
            assert answer.status_code in {401, 404}
            said.append(answer.text)
        assert http.get("/api/v1/connect", headers={"x-api-key": API_KEY}).status_code == 204
        said += [http.get("/metrics").text, service.log()]
    assert [text for text in said if API_KEY in text] == []
    assert [key for key in keys(store) if API_KEY in key] == []


SPOOFED = [
    {"x-forwarded-for": "127.0.0.1"},
    {"x-forwarded-for": "127.0.0.1, ::1"},
    {"x-forwarded-for": "::1", "x-forwarded-host": "localhost", "x-forwarded-proto": "https"},
    {"forwarded": "for=127.0.0.1;host=localhost;proto=http"},
    {"x-real-ip": "127.0.0.1", "x-forwarded-server": "localhost", "x-original-host": "localhost"},
]


@pytest.mark.parametrize("spoofed", SPOOFED, ids=lambda headers: "+".join(headers))
def test_what_a_request_says_of_where_it_comes_from_gives_no_access(service: Service, spoofed: dict[str, str]) -> None:
    """Also where uvicorn itself believes what comes from loopback, as it does here."""
    for path in ("/api/v1/connect", "/api/v1/channels", "/metrics", "/"):
        assert service.get(path, headers={**spoofed, "host": "example.org"}).status_code == 403, path
    lines = "".join(f"{name}: {value}\r\n" for name, value in spoofed.items())
    with Peer(service.port, handshake=request(extra=lines).replace(b"Host: localhost", b"Host: example.org")) as peer:
        assert peer.status == 403
    page = {**spoofed, "origin": "https://localhost.example.org"}
    assert service.get("/api/v1/connect", headers=page).status_code == 403


@pytest.mark.parametrize(
    "address", ["203.0.113.9", "not an address", ", ".join(["127.0.0.1"] * 200)], ids=["foreign", "nonsense", "long"]
)
def test_with_nothing_configured_what_came_through_a_proxy_is_not_from_this_machine(
    service: Service, address: str
) -> None:
    """A proxy without settings of its own sends us loopback's name: its clients are not this machine."""
    answer = service.get("/api/v1/connect", headers={"x-forwarded-for": address})
    assert answer.status_code == 403
    assert "proxy" in answer.json()["error"]["message"]


def post_head(*lines: str) -> bytes:
    """A publish by REST up to its body."""
    common = ("POST /api/v1/messages HTTP/1.1", "Host: localhost", "Content-Type: application/json")
    return "\r\n".join((*common, *lines, "", "")).encode()


CHUNK = b"10000\r\n" + b" " * 65_536 + b"\r\n"
BODY = b'{"messages": []}'


def pour(service: Service) -> int:
    """Send a body without an end; how many chunks were taken until the service cut it off."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as endless:
        endless.sendall(post_head("Transfer-Encoding: chunked"))
        for sent in range(1024):
            try:
                endless.sendall(CHUNK)
            except ConnectionError:
                return sent
    return 1024


def test_huge_bodies_are_refused_while_memory_stays_flat(service: Service) -> None:
    headers = {"content-type": "application/json"}
    address = f"{service.url}/api/v1/messages"
    full = BODY[:-2] + b" " * (MEBIBYTE - len(BODY)) + BODY[-2:]
    for _ in range(3):
        assert httpx.post(address, content=full, headers=headers, verify=NO_TLS).status_code == 200
    memory = resident(service)
    with unharmed(service):
        for declared in (MEBIBYTE + 1, 1 << 30, 1 << 62) * 10:
            with Peer(service.port, handshake=post_head(f"Content-Length: {declared}") + b"[" * 1000) as peer:
                assert peer.status == 413, declared
                peer.half_close()
                assert b"too_large" in peer.read_end()
        assert max(pour(service) for _ in range(5)) < 200  # of 64 KiB: 1 MiB, and what the kernel holds
        streamed = httpx.post(
            address, content=(b" " * 65_536 for _ in range(40)), headers=headers, verify=NO_TLS, timeout=10
        )
        assert (streamed.status_code, code_of(streamed)) == (413, "too_large")
    assert resident(service) < memory + 16 * MEBIBYTE


LYING = {
    "less than it says": post_head("Content-Length: 1000") + BODY,
    "more than it says": post_head("Content-Length: 4") + BODY + b" " * 100_000,
    "two lengths": post_head("Content-Length: 16", "Content-Length: 17") + BODY,
    "a length and chunks": post_head("Content-Length: 16", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "a length without end": post_head(f"Content-Length: {10**30}") + BODY,
    "a negative length": post_head("Content-Length: -1") + BODY,
    "a length in hexadecimal": post_head("Content-Length: 0x10") + BODY,
    "a length with a sign": post_head("Content-Length: +16") + BODY,
    "a chunk without a size": post_head("Transfer-Encoding: chunked") + b"zz\r\n",
    "a chunk without end": post_head("Transfer-Encoding: chunked") + b"f" * 30 + b"\r\n",
}


@pytest.mark.parametrize("name", LYING)
def test_a_body_that_is_not_as_long_as_it_says_is_refused(service: Service, name: str) -> None:
    with unharmed(service), socket.create_connection(("127.0.0.1", service.port), timeout=10) as sock:
        sock.sendall(LYING[name])
        sock.shutdown(socket.SHUT_WR)
        said = bytearray()
        with contextlib.suppress(ConnectionResetError):
            while more := sock.recv(65_536):
                said += more
    statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", bytes(said))]
    assert all(400 <= status < 500 for status in statuses), said
    assert b"Traceback" not in said


async def test_a_fault_of_ours_is_1011_or_500_and_shows_nothing_of_the_inside(
    service: Service, store: RedisServer
) -> None:
    """Provoked by a hand in the store: an entry whose attributes are no JSON, which only who reads them notices."""
    channel = f"room:{secrets.token_hex(5)}"
    epoch = service.post(channel, {"data": 1}).json()["id"].partition("-")[0]
    with store.client() as client:
        client.xadd(f"tocsin:{{{channel}}}:log", {"e": epoch, "m": b"t{nonsense\nx"}, id="2-0")
        client.hset(f"tocsin:{{{channel}}}:meta", "top", "2")
    answer = service.get(f"/api/v1/channels/{channel}/messages")
    assert (answer.status_code, code_of(answer)) == (500, "internal")
    async with converse(service) as broken:
        await broken.say("history", channel=channel)
        await broken.socket.wait_closed()
        assert broken.socket.close_code == 1011
        told = f"{broken.socket.close_reason} {answer.text} {answer.headers}"
    assert not re.search(r"Traceback|Error\b|\.py|nonsense|line \d|/app/", told), told
    assert "Traceback" in service.log()  # for the operator
