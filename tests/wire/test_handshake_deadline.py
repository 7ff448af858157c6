"""Requests that do not arrive: slow ones, half ones, endless ones."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator

import pytest

from app.sockets.handshake import HEAD_LIMIT, LINGER_SECONDS
from tests.stage.frames import Peer, request, text
from tests.wire.stage import HTTP, OURS, Server, wait_for

DEADLINE = 0.4
SLACK = 1.5
"""Seconds that a slow machine may add to a deadline."""
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"
CHUNKED = b"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def held(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that holds its peers to a short deadline."""
    with Server(ws=OURS, http=HTTP, loop=request.param, handshake_seconds=DEADLINE) as server:
        yield server


@pytest.fixture
def line(held: Server) -> Iterator[socket.socket]:
    """A connection to it that has said nothing yet."""
    with socket.create_connection(("127.0.0.1", held.port), 10) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield sock


def read_all(sock: socket.socket) -> bytes:
    """What comes until the end."""
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while more := sock.recv(65_536):
            got += more
    return got


def read_answer(sock: socket.socket, end: bytes = b"\r\n\r\n") -> bytes:
    """What comes until it ends so."""
    got = b""
    while not got.endswith(end):
        more = sock.recv(65_536)
        assert more, got
        got += more
    return got


def dribble(sock: socket.socket, data: bytes, pause: float = 0.05) -> float:
    """Send a byte now and then until the server answers or ends; how many seconds it took."""
    began = time.monotonic()
    sock.settimeout(pause)
    for byte in data:
        with contextlib.suppress(OSError):
            sock.sendall(bytes([byte]))
        try:
            sock.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            continue
        except ConnectionResetError:
            pass
        break
    sock.settimeout(10)
    return time.monotonic() - began


def assert_late(answer: bytes, seconds: float) -> None:
    """One answer, 408, in time."""
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n"), answer
    assert answer.count(b"HTTP/1.1") == 1
    assert b"connection: close\r\n" in answer
    assert answer.endswith(b"\r\n\r\nRequest Timeout\n")
    assert DEADLINE - 0.05 < seconds < DEADLINE + SLACK


@pytest.mark.parametrize("sent", [b"", b"G", request()[:-2], GET[:-1]], ids=["nothing", "a byte", "upgrade", "a head"])
def test_who_does_not_finish_is_answered_and_closed(line: socket.socket, sent: bytes) -> None:
    began = time.monotonic()
    line.sendall(sent)
    assert_late(read_all(line), time.monotonic() - began)


def test_a_refused_peer_that_stays_is_aborted(held: Server, line: socket.socket) -> None:
    line.sendall(GET[:9])
    assert read_all(line).startswith(b"HTTP/1.1 408")
    wait_for(lambda: held.connections == 0, LINGER_SECONDS + SLACK)


@pytest.mark.parametrize("head", [request(extra=f"X: {'y' * 200}\r\n"), b"\r\n" * 200], ids=["upgrade", "empty lines"])
def test_a_byte_now_and_then_gains_no_time(line: socket.socket, head: bytes) -> None:
    seconds = dribble(line, head)
    assert_late(read_all(line), seconds)


def test_a_slow_handshake_that_is_whole_in_time_works_and_its_clock_stops(held: Server) -> None:
    with socket.create_connection(("127.0.0.1", held.port), 10) as slow:
        for part in (request()[:10], request()[10:60], request()[60:]):
            slow.sendall(part)
            time.sleep(DEADLINE / 5)
        assert read_answer(slow).startswith(b"HTTP/1.1 101")
        time.sleep(2 * DEADLINE)  # that nothing happens then is what is promised
        slow.sendall(text("there"))
        assert read_answer(slow, b"there") == b"\x81\x05there"


@pytest.mark.parametrize("head", [POST, CHUNKED], ids=["length", "chunked"])
def test_a_slow_body_is_late(held: Server, line: socket.socket, head: bytes) -> None:
    before = held.disconnects
    began = time.monotonic()
    line.sendall(head)
    dribble(line, b"1\r\nx\r\n" * 50 if head is CHUNKED else b"123456789")
    assert_late(read_all(line), time.monotonic() - began)
    wait_for(lambda: held.disconnects == before + 1)


def test_head_and_body_have_their_seconds_each(line: socket.socket) -> None:
    line.sendall(POST[:20])
    time.sleep(DEADLINE * 0.7)
    line.sendall(POST[20:])
    time.sleep(DEADLINE * 0.7)
    line.sendall(b"x" * 10)
    assert read_answer(line, b"\r\n\r\n10").startswith(b"HTTP/1.1 200")


def test_a_body_that_comes_after_its_answer_has_no_second_one(line: socket.socket) -> None:
    began = time.monotonic()
    line.sendall(POST.replace(b"/body", b"/"))
    answer = read_all(line)
    assert answer.startswith(b"HTTP/1.1 204")
    assert answer.count(b"HTTP/1.1") == 1
    assert time.monotonic() - began < DEADLINE + SLACK


def test_a_second_request_has_its_own_deadline_from_its_first_byte(line: socket.socket) -> None:
    line.sendall(GET)
    assert read_answer(line).startswith(b"HTTP/1.1 204")
    time.sleep(1.5 * DEADLINE)  # between two requests uvicorn's keep-alive timeout rules
    line.sendall(POST)
    line.sendall(b"x" * 10)
    assert read_answer(line, b"\r\n\r\n10").startswith(b"HTTP/1.1 200")
    began = time.monotonic()
    line.sendall(GET[:10])
    assert_late(read_all(line), time.monotonic() - began)


def test_empty_lines_between_requests_keep_no_connection(line: socket.socket) -> None:
    line.sendall(GET)
    assert read_answer(line).startswith(b"HTTP/1.1 204")
    seconds = dribble(line, b"\r\n" * 200)
    assert_late(read_all(line), seconds)


def test_a_slow_application_is_not_the_peers_fault(line: socket.socket) -> None:
    line.sendall(b"POST /late HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000)
    assert read_answer(line, b"\r\n\r\n300000").startswith(b"HTTP/1.1 200")
    line.sendall(GET.replace(b"/", b"/late", 1))
    assert read_answer(line, b"\r\n\r\n0").startswith(b"HTTP/1.1 200")


def test_what_arrived_while_the_loop_stood_still_is_in_time(held: Server, line: socket.socket) -> None:
    line.sendall(GET[:9])
    wait_for(lambda: held.connections == 1)
    stalled = threading.Thread(target=held.call, args=(lambda: time.sleep(2 * DEADLINE),))
    stalled.start()
    line.sendall(GET[9:])
    assert read_answer(line).startswith(b"HTTP/1.1 204")
    stalled.join()


def test_requests_behind_each_other_are_answered_in_order(line: socket.socket) -> None:
    line.sendall(GET.replace(b"/", b"/late", 1) + POST + b"x" * 10 + GET + GET[:9])
    got = read_answer(line)
    while got.count(b"HTTP/1.1") < 3:
        got += read_answer(line)
    assert [part[:3] for part in got.split(b"HTTP/1.1 ")[1:]] == [b"200", b"200", b"204"]
    line.sendall(GET[9:])
    assert read_answer(line).startswith(b"HTTP/1.1 204")


def test_a_good_client_among_many_slow_ones(held: Server) -> None:
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(("127.0.0.1", held.port), 10)) for _ in range(500)]
        for sock in slow:
            sock.sendall(b"GET /ws HTT")
        began = time.monotonic()
        with Peer(held.port) as good:
            good.send(text("here"))
            assert good.read_text() == "here"
        assert time.monotonic() - began < 1
        for sock in slow:
            assert read_all(sock).startswith(b"HTTP/1.1 408")
    wait_for(lambda: held.connections == 0)


def flood(sock: socket.socket, head: bytes, more: Callable[[int], bytes], size: int = 20_000_000) -> bytes:
    """Send without end, as far as the server takes it; what it says."""
    sock.settimeout(5)
    with contextlib.suppress(OSError):
        sock.sendall(head)
        sent = turn = 0
        while sent < size:
            sent += sock.send(more(turn))
            turn += 1
    return read_all(sock)


ENDLESS = {
    "request line": (b"GET /", lambda _: b"x" * 65_536),
    "header": (b"GET / HTTP/1.1\r\nX: ", lambda _: b"x" * 65_536),
    "header of an upgrade": (request()[:-2] + b"X: ", lambda _: b"x" * 65_536),
    "headers": (b"GET / HTTP/1.1\r\n", lambda turn: b"".join(b"X-%d-%d: y\r\n" % (turn, i) for i in range(5000))),
    "short headers": (b"GET / HTTP/1.1\r\n", lambda _: b"a:b\r\n" * 13_000),
    "empty lines": (b"", lambda _: b"\r\n" * 32_768),
    "trailer": (CHUNKED + b"0\r\nX: ", lambda _: b"x" * 65_536),
    "trailers": (CHUNKED + b"0\r\n", lambda _: b"a:b\r\n" * 13_000),
    "chunk extension": (CHUNKED + b"1;x=", lambda _: b"x" * 65_536),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_endless_heads_are_refused_in_flat_memory(line: socket.socket, name: str) -> None:
    head, more = ENDLESS[name]
    tracemalloc.start()
    try:
        answer = flood(line, head, more)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n"), answer
    assert answer.count(b"HTTP/1.1") == 1
    assert peak < 4_000_000


def test_a_large_head_within_the_limit_passes(line: socket.socket) -> None:
    line.sendall(GET[:-2] + b"X: " + b"y" * (HEAD_LIMIT - 200) + b"\r\n\r\n")
    assert read_answer(line).startswith(b"HTTP/1.1 204")
    line.sendall(CHUNKED + b"186a0\r\n" + b"x" * 100_000 + b"\r\n0\r\nT: " + b"t" * 1000 + b"\r\n\r\n")
    assert read_answer(line, b"\r\n\r\n100000").startswith(b"HTTP/1.1 200")


def test_what_is_no_http_is_400(line: socket.socket) -> None:
    line.sendall(b"\x16\x03\x01\x02\x00" * 20)
    assert read_all(line).startswith(b"HTTP/1.1 400 Bad Request\r\n")


def test_a_stopping_server_does_not_wait_for_half_a_request() -> None:
    with Server(ws=OURS, http=HTTP, handshake_seconds=60) as server:
        with socket.create_connection(("127.0.0.1", server.port), 10) as sock:
            sock.sendall(GET[:9])
            wait_for(lambda: server.connections == 1)
            server.server.should_exit = True
            assert read_all(sock) == b""
        server.thread.join(5)
        assert not server.thread.is_alive()
