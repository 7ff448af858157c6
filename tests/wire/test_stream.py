"""Responses that are given away: what goes out as their body, and how they end."""

from __future__ import annotations

import contextlib
import gc
import logging
import socket
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any, Self

import pytest

from app.sockets import JOIN_LIMIT
from app.sockets.stream import DEAF_MS, ROOM
from tests.wire.stage import HTTP, LIMITS, OURS, Echo, Server, wait_for
from tests.wire.test_leaks import CACHES

GET = b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n"
OLD = b"GET /stream HTTP/1.0\r\nHost: x\r\n\r\n"
HELD: dict[str, dict[str, Any]] = {
    "fast": {"ws": OURS, "http": HTTP},
    "fast-asyncio": {"ws": OURS, "http": HTTP, "loop": "asyncio"},
    "portable": {"ws": "none", "http": "httptools"},
}


@pytest.fixture(scope="module", params=HELD)
def held(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server with this kind of stream."""
    with Server(**HELD[request.param]) as server:
        yield server


class Reader:
    """One response; a context manager."""

    def __init__(self, server: Server, request: bytes = GET, receive_buffer: int | None = None) -> None:
        self.sock = socket.socket()
        self.sock.settimeout(10)
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.connect(("127.0.0.1", server.port))
        self.port = self.sock.getsockname()[1]
        self.sock.sendall(request)
        self.head = self.until(b"\r\n\r\n")
        wait_for(lambda: self.port in server.echoes)
        self.echo = server.echoes[self.port]
        assert self.echo.ready.wait(10)

    def has_ended(self) -> bool:
        """Whether the server knows that it is over."""
        return self.echo.code is not None

    def until(self, end: bytes) -> bytes:
        """What comes up to here."""
        got = b""
        while not got.endswith(end):
            more = self.sock.recv(1)
            assert more, got
            got += more
        return got

    def rest(self) -> bytes:
        """All that comes until the end of the body, or of the connection."""
        got = b""
        with contextlib.suppress(ConnectionResetError):
            while not got.endswith(b"\r\n0\r\n\r\n") and (more := self.sock.recv(65_536)):
                got += more
        return got

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


def get(path: str) -> bytes:
    """A request for another path."""
    return GET.replace(b"/stream", path.encode())


def write(server: Server, echo: Echo, *payloads: bytes) -> None:
    """Write several units in one go."""

    def run() -> None:
        framing = echo.socket.framing
        for chunk in framing.join([framing.text(payload) for payload in payloads]):
            echo.socket.write(chunk)

    server.call(run)


def joined(body: bytes) -> bytes:
    """The payload of a chunked body (RFC 9112 section 7.1), which must be whole."""
    payload = b""
    while True:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        payload += body[:length]
        assert body[length : length + 2] == b"\r\n"
        body = body[length + 2 :]
        if not length:
            assert body == b""
            return payload


def test_the_body_is_chunks_and_ends_as_it_should(held: Server) -> None:
    with Reader(held) as reader:
        assert b"transfer-encoding: chunked" in reader.head.lower()
        write(held, reader.echo, b"a\n", b"b\n", b"c" * 20_000)
        held.call(lambda: reader.echo.socket.ping(reader.echo.socket.framing.join([b"1\r\np\r\n"])[0]))
        held.call(lambda: reader.echo.socket.close(4401, "said to nobody"))
        held.call(lambda: reader.echo.socket.close(1012))
        body = joined(reader.rest())
        assert body.startswith(b"word\na\nb\n" + b"c" * 20_000)
        wait_for(reader.has_ended)
        assert reader.echo.told == ["closed"]
        held.call(lambda: reader.echo.socket.close(1000))  # nothing happens


def test_units_of_one_write_leave_in_one_segment() -> None:
    with Server(**HELD["fast"]) as server, Reader(server) as reader:
        reader.until(b"word\n\r\n")
        write(server, reader.echo, b"a", b"bb", b"ccc")
        assert reader.sock.recv(1000) == b"1\r\na\r\n2\r\nbb\r\n3\r\nccc\r\n"
        framing = reader.echo.socket.framing
        many = framing.join([framing.text(b"x" * 1000)] * 1000)
        assert [len(chunk) <= JOIN_LIMIT for chunk in many] == [True] * 4


def test_a_client_of_http_1_0_gets_no_chunks(held: Server) -> None:
    with Reader(held, OLD) as reader:
        if held.config.http == "httptools":
            pytest.skip("uvicorn sends chunks to everybody")
        assert b"chunked" not in reader.head
        assert b"connection: close" in reader.head.lower()
        write(held, reader.echo, b"a", b"b")
        held.call(lambda: reader.echo.socket.close(1000))
        assert reader.rest() == b"word\nab"


def test_other_responses_to_http_1_0_stay_as_they_were(held: Server) -> None:
    with socket.create_connection(("127.0.0.1", held.port), 10) as sock:
        sock.sendall(b"POST /body HTTP/1.0\r\nHost: x\r\nContent-Length: 2\r\n\r\nab")
        got = b""
        while more := sock.recv(1000):
            got += more
    assert got.startswith(b"HTTP/1.1 200")
    assert got.endswith(b"\r\n\r\n2")


def test_a_peer_that_leaves_is_known_at_once(held: Server) -> None:
    for leave in ("close", "half", "reset"):
        with Reader(held) as reader:
            if leave == "reset":
                reader.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                reader.sock.close()
            elif leave == "half":
                reader.sock.shutdown(socket.SHUT_WR)
            else:
                reader.sock.close()
            began = time.monotonic()
            wait_for(reader.has_ended)
            assert time.monotonic() - began < 1
            assert reader.echo.told == ["closed"]
            write(held, reader.echo, b"to nobody")
    wait_for(lambda: not held.connections)


@pytest.mark.parametrize("behind", ["", "/", "/stream"])
def test_a_peer_that_left_before_the_head_is_an_end_like_others(
    held: Server, caplog: pytest.LogCaptureFixture, behind: str
) -> None:
    if behind and held.config.http != HTTP:
        pytest.skip("uvicorn tells the last of several requests only")
    with caplog.at_level(logging.ERROR, "uvicorn.error"):
        with socket.create_connection(("127.0.0.1", held.port), 10) as sock:
            port = sock.getsockname()[1]
            sock.sendall(get("/") + get("/gone") + (get(behind) if behind else b""))
            assert sock.recv(1000).startswith(b"HTTP/1.1 204")
        echo = wait_for(lambda: held.echoes.get(port))
        assert echo is not None
        wait_for(lambda: echo.code is not None)
        write(held, echo, b"to nobody")
        held.call(partial(echo.socket.close, 1012))
        held.call(echo.socket.abort)
        wait_for(lambda: not held.connections)
        assert echo.told == ["closed"]
    assert not caplog.records


def test_a_transport_that_is_closing_is_not_taken_over(held: Server, caplog: pytest.LogCaptureFixture) -> None:
    if held.config.http != HTTP:
        pytest.skip("nothing is taken over")
    with caplog.at_level(logging.ERROR, "uvicorn.error"), socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(10)
        sock.connect(("127.0.0.1", held.port))
        port = sock.getsockname()[1]
        sock.sendall(get("/closing"))
        assert sock.recv(10)
        sock.shutdown(socket.SHUT_WR)
        echo = wait_for(lambda: held.echoes.get(port))
        assert echo is not None
        wait_for(lambda: echo.code is not None)
        write(held, echo, b"to nobody")
        while sock.recv(1_000_000):  # what was waiting is not lost
            pass
        wait_for(lambda: not held.connections)
        assert echo.told == ["closed"]
    assert not caplog.records


def test_a_peer_that_was_slow_before_is_slow(held: Server) -> None:
    if held.config.http != HTTP:
        pytest.skip("nothing is taken over")
    with Reader(held, get("/much"), receive_buffer=4096) as reader:
        assert reader.echo.socket.paused
        wait_for(lambda: reader.echo.told == ["paused"])
        write(held, reader.echo, b"more")
        tail = b""
        while tail != b"4\r\nmore\r\n":
            tail = (tail + reader.sock.recv(1_000_000))[-9:]
        wait_for(lambda: reader.echo.told == ["paused", "resumed"])
        assert not reader.echo.socket.paused


def test_a_request_before_one_that_is_refused_is_at_its_end(held: Server, caplog: pytest.LogCaptureFixture) -> None:
    if held.config.http != HTTP:
        pytest.skip("uvicorn tells the last of several requests only")
    with (
        caplog.at_level(logging.ERROR, "uvicorn.error"),
        socket.create_connection(("127.0.0.1", held.port), 10) as sock,
    ):
        sock.sendall(get("/gone") + get("/") + b"no request\r\n\r\n")
        assert sock.recv(1000) == b""
        echo = wait_for(lambda: held.echoes.get(sock.getsockname()[1]))
        assert echo is not None
        wait_for(lambda: echo.told == ["closed"])
    wait_for(lambda: not held.connections)
    assert not caplog.records


def test_what_stands_behind_the_request_is_not_answered(held: Server) -> None:
    if held.config.http != HTTP:
        pytest.skip("uvicorn goes on with the next request")
    with Reader(held, GET + GET) as reader:
        reader.sock.sendall(GET)
        write(held, reader.echo, b"a")
        held.call(lambda: reader.echo.socket.close(1000))
        assert joined(reader.rest()) == b"word\na"


def test_a_flood_behind_the_request_is_the_end() -> None:
    with Server(**HELD["fast"]) as server, Reader(server) as reader, contextlib.suppress(OSError):
        for _ in range(4 * ROOM // 16_384):
            reader.sock.sendall(b"x" * 16_384)
        wait_for(reader.has_ended)
        assert reader.echo.told == ["closed"]


def test_a_peer_that_does_not_read_is_slow_then_brisk_and_has_everything(held: Server) -> None:
    with Reader(held, receive_buffer=4096) as reader:
        sent = 0
        while not reader.echo.socket.paused:
            write(held, reader.echo, b"%08d" % sent * 2000)
            sent += 1
            assert sent < 2000
        assert reader.echo.told == ["paused"]
        got = b""
        while "resumed" not in reader.echo.told:
            got += reader.sock.recv(65_536)
        held.call(lambda: reader.echo.socket.close(1000))
        body = joined(got + reader.rest())
        assert body == b"word\n" + b"".join(b"%08d" % number * 2000 for number in range(sent))


def test_a_close_does_not_wait_for_a_peer_that_does_not_read() -> None:
    with Server(**HELD["fast"]) as server, Reader(server, receive_buffer=4096) as reader:
        while not reader.echo.socket.paused:
            write(server, reader.echo, b"x" * 16_000)
        began = time.monotonic()
        server.call(lambda: reader.echo.socket.close(1012))
        wait_for(reader.has_ended)
        assert LIMITS.close_seconds - 0.1 < time.monotonic() - began < LIMITS.close_seconds + 2
        assert reader.echo.told == ["paused", "closed"]


def test_an_abort_is_at_once(held: Server) -> None:
    with Reader(held) as reader:
        held.call(reader.echo.socket.abort)
        wait_for(reader.has_ended)
        assert not reader.rest().endswith(b"0\r\n\r\n")


def test_a_server_that_stops_says_so(held: Server) -> None:
    if held.config.http != HTTP:
        pytest.skip("uvicorn tells nobody: the integration tests stop a process")
    with Server(**HELD["fast"]) as server, Reader(server) as reader:
        server.server.should_exit = True
        assert joined(reader.rest()) == b"word\n"
        wait_for(reader.has_ended)
        assert reader.echo.told == ["shutdown", "closed"]


def test_what_a_silent_peer_does_not_acknowledge_ends_the_connection() -> None:
    with Server(**HELD["fast"]) as server, Reader(server) as reader:
        transport = reader.echo.socket._transport  # type: ignore[attr-defined]
        sock = transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == DEAF_MS


def test_a_stream_leaves_nothing_behind_without_the_collector() -> None:
    def visit(count: int) -> None:
        for index in range(count):
            with Reader(server, OLD if index % 5 == 4 else GET + GET * (index % 2)) as reader:
                socket = reader.echo.socket
                match index % 3:
                    case 0:
                        write(server, reader.echo, b"x" * 1000)
                    case 1:
                        server.call(partial(socket.close, 1000))
                        reader.rest()
                    case _:
                        server.call(socket.abort)
            wait_for(reader.has_ended)
            del server.echoes[reader.port]

    with Server(**HELD["fast"]) as server:
        visit(20)
        gc.collect()
        gc.disable()
        try:
            before = Counter(type(thing).__name__ for thing in gc.get_objects())
            visit(600)
            wait_for(lambda: not server.connections)
            server.call(lambda: None)
            after = Counter(type(thing).__name__ for thing in gc.get_objects())
        finally:
            gc.enable()
    ours = {name: more - before[name] for name, more in after.items() if name not in CACHES}
    grown = {name: more for name, more in ours.items() if more >= 100}
    assert not grown
