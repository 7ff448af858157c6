"""Pausing both ways: a receiver that wants no more, and a peer that does not read."""

from __future__ import annotations

import time

import pytest

from tests.stage.frames import CONT, PING, PONG, TEXT, Peer, close, frame, text
from tests.wire.stage import LIMITS, Echo, Server, wait_for

CHUNK = b"x" * 16_000


def fill(server: Server, echo: Echo) -> int:
    """Write until the socket says that its peer is slow; how many chunks that took."""
    count = 0
    while not echo.socket.paused:
        server.call(lambda: echo.write(CHUNK, text=False))
        count += 1
        assert count < 5_000, "never paused"
    return count


def test_pausing_in_the_middle_of_a_buffer_keeps_the_order(server: Server) -> None:
    with Peer(server.port) as peer:
        peer.send(*(text(str(i)) for i in range(10)), text("!pause"), *(text(str(i)) for i in range(10, 700)))
        for i in range(10):
            assert peer.read_text() == str(i)
        echo = server.echo_of(peer)
        wait_for(lambda: "!pause" in echo.heard)
        peer.send(text("700"))
        assert len(echo.heard) == 11
        server.call(echo.socket.resume_reading)
        for i in range(10, 701):
            assert peer.read_text() == str(i)


def test_pausing_in_the_middle_of_fragments(server: Server) -> None:
    with Peer(server.port) as peer:
        peer.send(text("!pause"), frame(TEXT, b"a", fin=False), frame(CONT, b"b"), text("!pause"), text("c"))
        echo = server.echo_of(peer)
        wait_for(lambda: echo.heard == ["!pause"])
        server.call(echo.socket.resume_reading)
        assert peer.read_text() == "ab"
        wait_for(lambda: echo.heard == ["!pause", "ab", "!pause"])
        server.call(echo.socket.resume_reading)
        assert peer.read_text() == "c"


def test_pausing_and_resuming_at_once_loses_nothing(server: Server) -> None:
    with Peer(server.port) as peer:
        peer.send(*(text("!blink") + text(str(i)) for i in range(400)))
        for i in range(400):
            assert peer.read_text() == str(i)


def test_a_close_behind_a_pause_is_found(server: Server, portable: bool) -> None:
    with Peer(server.port) as peer:
        peer.send(text("!pause"), text("held"), close(4123))
        echo = server.echo_of(peer)
        wait_for(lambda: echo.heard == ["!pause"])
        server.call(echo.socket.resume_reading)
        if not portable:  # uvicorn has answered the close long since
            assert peer.read_text() == "held"
        assert peer.read_close() == 4123
        assert wait_for(lambda: echo.code) == 4123
        assert echo.heard == ["!pause", "held"]


def test_closing_a_paused_socket_drops_what_was_held(server: Server, portable: bool) -> None:
    with Peer(server.port) as peer:
        peer.send(text("!pause"), text("held"))
        echo = server.echo_of(peer)
        wait_for(lambda: echo.heard == ["!pause"])
        server.call(lambda: echo.socket.close(4100))
        peer.send(close(4101))
        assert peer.read_close() == 4100
        assert wait_for(lambda: echo.code) == (4100 if portable else 4101)
        assert echo.heard == ["!pause"]


def test_a_ping_carries_its_chunk(server: Server, kind: str) -> None:
    with Peer(server.port) as peer:
        peer.send(text("!ping"))
        if kind.startswith("fast"):  # elsewhere the server pings
            got = peer.read_frame()
            assert got is not None
            assert got[0] == PING
            peer.send(frame(PONG, got[1]))
        assert peer.read_text() == "alive"


def test_pongs_count_as_life(server: Server, kind: str) -> None:
    with Peer(server.port) as peer:
        peer.send(text("x"))
        assert peer.read_text() == "x"
        echo = server.echo_of(peer)
        before = echo.socket.heard
        if kind.startswith("fast"):
            while echo.socket.heard == before:  # the loop's clock counts in milliseconds
                peer.send(frame(PONG))
                time.sleep(0.001)
        else:  # the server keeps the pongs, and ends a silent peer itself
            assert before == float("inf")


def test_a_stalled_peer_is_reported_and_costs_bounded_memory(server: Server) -> None:
    with Peer(server.port, receive_buffer=4096) as peer:
        echo = server.echo_of(peer)
        fill(server, echo)
        assert wait_for(lambda: echo.told) == ["paused"]
        # It reads again: all comes, in order, and the receiver is told.
        while echo.told == ["paused"]:
            assert peer.read_frame() == (2, CHUNK)
        assert echo.told == ["paused", "resumed"]
        assert not echo.socket.paused


def test_a_peer_that_pings_and_does_not_read(server: Server, kind: str) -> None:
    if kind == "portable":
        pytest.skip("uvicorn answers every ping into a buffer without end")
    with Peer(server.port, receive_buffer=4096) as peer:
        echo = server.echo_of(peer)
        fill(server, echo)
        peer.send(frame(PING, b"x" * 125) * 3000, text("there"))
        wait_for(lambda: echo.heard)
        while (got := peer.read_frame()) != (TEXT, b"there"):
            assert got is not None


def test_closing_a_stalled_peer_frees_it_within_the_deadline(server: Server, portable: bool) -> None:
    if portable:
        pytest.skip("uvicorn waits for ever for such a peer to read")
    wait_for(lambda: server.connections == 0)
    with Peer(server.port, receive_buffer=4096) as peer:
        echo = server.echo_of(peer)
        fill(server, echo)
        assert server.connections == 1
        began = time.monotonic()
        server.call(lambda: echo.socket.close(4508))
        wait_for(lambda: server.connections == 0)
        assert time.monotonic() - began < LIMITS.close_seconds + 1.5
        assert wait_for(lambda: echo.code) == 1006


def test_a_stalled_peer_that_closes_is_freed_within_the_deadline(server: Server, portable: bool) -> None:
    if portable:
        pytest.skip("uvicorn waits for ever for such a peer to read")
    wait_for(lambda: server.connections == 0)
    with Peer(server.port, receive_buffer=4096) as peer:
        echo = server.echo_of(peer)
        fill(server, echo)
        peer.send(close(4000))
        wait_for(lambda: server.connections == 0)
        assert wait_for(lambda: echo.code) == 4000


def test_aborting_a_stalled_peer_frees_it_at_once(server: Server, kind: str) -> None:
    if kind == "portable":
        pytest.skip("no ASGI message aborts: uvicorn waits for the peer to read")
    wait_for(lambda: server.connections == 0)
    with Peer(server.port, receive_buffer=4096) as peer:
        echo = server.echo_of(peer)
        fill(server, echo)
        began = time.monotonic()
        server.call(echo.socket.abort)
        assert wait_for(lambda: echo.code) == 1006
        if kind == "kept":  # the application returns, and our protocol class closes with its own deadline
            wait_for(lambda: server.connections == 0)
        else:
            wait_for(lambda: server.connections == 0, 0.5)
            assert time.monotonic() - began < LIMITS.close_seconds
