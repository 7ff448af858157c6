"""How connections end (RFC 6455 section 7), whoever begins, and when no one reads."""

from __future__ import annotations

import time

import pytest

from tests.stage.frames import CLOSE, CONT, PING, TEXT, Peer, close, frame, text
from tests.wire.stage import LIMITS, Server, wait_for

SLACK = 1.5
"""Seconds that a slow machine may add to a deadline."""


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1007, 1008, 1011, 1012, 1014, 3000, 3999, 4000, 4999])
def test_the_peers_close_is_echoed(server: Server, code: int) -> None:
    with Peer(server.port) as peer:
        peer.send(close(code, b"bye"))
        assert peer.read_frame() == (CLOSE, code.to_bytes(2, "big") + b"bye")
        assert peer.read_frame() is None
    echo = server.echo_of(peer)
    assert wait_for(lambda: echo.code) == code
    assert echo.told == ["closed"]


def test_an_empty_close_is_echoed_empty(server: Server) -> None:
    with Peer(server.port) as peer:
        peer.send(close(None))
        assert peer.read_close() == 1005
    echo = server.echo_of(peer)
    assert wait_for(lambda: echo.code) == 1005


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2999, 5000, 65_535])
def test_codes_that_may_not_stand_in_a_close_frame(server: Server, code: int) -> None:
    with Peer(server.port) as peer:
        peer.send(close(code))
        assert peer.read_close() == 1002


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(CLOSE, b"\x03"), 1002),
        (frame(CLOSE, b"\x03\xe8" + b"x" * 124), 1002),
        (frame(CLOSE, b"\x03\xe8\xce\xba\xe1\xbd\xb9\xed\xa0\x80"), 1007),
    ],
    ids=["one byte", "too long", "bad utf-8"],
)
def test_bad_close_frames(server: Server, data: bytes, code: int) -> None:
    with Peer(server.port) as peer:
        peer.send(data)
        assert peer.read_close() == code


def test_nothing_after_the_peers_close_is_heard(server: Server, portable: bool) -> None:
    with Peer(server.port) as peer:
        peer.send(text("one"), close(), text("two"), frame(PING, b"three"))
        if not portable:  # uvicorn answers a close before the application has answered what came before it
            assert peer.read_text() == "one"
        assert peer.read_close() == 1000
    echo = server.echo_of(peer)
    assert wait_for(lambda: echo.code) == 1000
    assert echo.heard == ["one"]


def test_a_close_between_fragments_is_echoed(server: Server, portable: bool) -> None:
    with Peer(server.port) as peer:
        peer.send(frame(TEXT, b"one ", fin=False), close(3001), frame(CONT, b"two"))
        # The `websockets` library, which answers for uvicorn, takes the unfinished message for an error.
        code = 1002 if portable else 3001
        assert peer.read_close() == code
    echo = server.echo_of(peer)
    assert wait_for(lambda: echo.code) == code
    assert echo.heard == []
    assert echo.told == ["closed"]


def test_our_close_comes_after_what_is_waiting_and_ends_with_the_answer(server: Server, portable: bool) -> None:
    with Peer(server.port) as peer:
        peer.send(text("one"), text("!close 4001 enough"), text("two"))
        assert peer.read_text() == "one"
        assert peer.read_frame() == (CLOSE, b"\x0f\xa1enough")
        peer.send(text("three"), close(4002))
        assert peer.read_frame() is None
    echo = server.echo_of(peer)
    # uvicorn reports the code that we closed with as soon as we have.
    assert wait_for(lambda: echo.code) == (4001 if portable else 4002)
    assert echo.heard == ["one", "!close 4001 enough"]
    assert echo.told == ["closed"]


def test_a_long_reason_is_cut_between_characters(server: Server) -> None:
    with Peer(server.port) as peer:
        peer.send(text("!close 4001 " + "é" * 100))
        got = peer.read_frame()
        assert got is not None
        assert got[1][2:].decode() == "é" * 61


def test_our_close_without_an_answer_is_a_deadline(server: Server, portable: bool) -> None:
    if portable:
        pytest.skip("uvicorn waits 10 s, then for the peer to read")
    with Peer(server.port) as peer:
        peer.send(text("!close 4001"))
        assert peer.read_frame() == (CLOSE, b"\x0f\xa1")
        began = time.monotonic()
        assert peer.read_end() == b""
        assert time.monotonic() - began < LIMITS.close_seconds + SLACK
    echo = server.echo_of(peer)
    assert wait_for(lambda: echo.code) == 1006


def test_a_peer_that_talks_on_after_our_close_meets_the_deadline(server: Server, portable: bool) -> None:
    if portable:
        pytest.skip("uvicorn waits 10 s")
    with Peer(server.port) as peer:
        peer.send(text("!close 4001"))
        assert peer.read_frame() == (CLOSE, b"\x0f\xa1")
        began = time.monotonic()
        with pytest.raises(OSError):  # noqa: PT012 the loop is what ends
            while time.monotonic() - began < LIMITS.close_seconds + SLACK:
                peer.send(text("x") * 10, frame(PING))
                time.sleep(0.01)
    echo = server.echo_of(peer)
    assert wait_for(lambda: echo.code) == 1006
    assert echo.heard == ["!close 4001"]


def test_abort_ends_at_once_and_delivers_nothing_more(server: Server) -> None:
    with Peer(server.port) as peer:
        peer.send(text("one"), text("!abort"), text("two"))
        began = time.monotonic()
        peer.read_close()
        assert time.monotonic() - began < SLACK
    echo = server.echo_of(peer)
    assert wait_for(lambda: echo.code) == 1006
    assert echo.heard == ["one", "!abort"]


def test_half_closed(server: Server) -> None:
    with Peer(server.port) as peer:
        peer.send(text("last words"))
        assert peer.read_text() == "last words"
        peer.half_close()
        assert peer.read_close() is None
    echo = server.echo_of(peer)
    wait_for(lambda: echo.code)
    assert echo.told == ["closed"]


def test_reset(server: Server, portable: bool) -> None:
    peer = Peer(server.port)
    peer.send(text("x"))
    assert peer.read_text() == "x"
    peer.reset()
    echo = server.echo_of(peer)
    # uvicorn calls every loss 1005.
    assert wait_for(lambda: echo.code) == (1005 if portable else 1006)
    assert echo.told == ["closed"]


def test_writing_after_the_end_does_nothing(server: Server) -> None:
    with Peer(server.port) as peer:
        peer.send(close())
        assert peer.read_close() == 1000
    echo = server.echo_of(peer)
    wait_for(lambda: echo.code)

    def all_of_it() -> None:
        echo.write(b"too late")
        echo.socket.ping(None)
        echo.socket.pause_reading()
        echo.socket.resume_reading()
        echo.socket.close(1000)
        echo.socket.abort()

    server.call(all_of_it)
    assert echo.told == ["closed"]


def test_a_broadcast_goes_on_while_peers_vanish(server: Server) -> None:
    peers = [Peer(server.port) for _ in range(20)]
    echoes = [server.echo_of(peer) for peer in peers]
    for peer in peers[::2]:
        peer.reset()

    def write_all(payload: bytes) -> None:
        for echo in echoes:
            echo.write(payload)

    while sum(echo.code is not None for echo in echoes) < 10:
        server.call(lambda: write_all(b"news"))
    server.call(lambda: write_all(b"last"))
    for peer in peers[1::2]:
        while peer.read_text() != "last":
            pass
        peer.sock.close()


def test_a_stopping_server_asks_and_waits(kind: str) -> None:
    from tests.wire.conftest import KINDS

    with Server(**KINDS[kind]) as server, Peer(server.port) as peer:
        peer.send(text("hello"))
        assert peer.read_text() == "hello"
        server.server.should_exit = True
        assert peer.read_frame() == (CLOSE, (1012).to_bytes(2, "big"))
        peer.send(close(1012))
        assert peer.read_frame() is None
        echo = server.echo_of(peer)
        assert wait_for(lambda: echo.code) == 1012
        # Only a connection that was handed over can ask its receiver.
        assert ("shutdown" in echo.told) == kind.startswith("fast")


def test_messages_before_a_close_in_one_segment(server: Server, portable: bool) -> None:
    with Peer(server.port) as peer:
        peer.send(*(text(str(i)) for i in range(300)), close(3001))
        if not portable:  # as above
            for i in range(300):
                assert peer.read_frame() == (TEXT, str(i).encode())
        assert peer.read_close() == 3001
    echo = server.echo_of(peer)
    assert wait_for(lambda: echo.code) == 3001
    assert echo.heard == [str(i) for i in range(300)]
