"""The frame rate: what comes too fast waits with the peer, and nothing of it is lost."""

from __future__ import annotations

import contextlib
import gc
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace

import pytest

from app.sockets import BURST_SECONDS
from tests.stage.frames import CONT, PING, PONG, TEXT, Peer, binary, close, frame, text
from tests.wire.conftest import KINDS
from tests.wire.stage import LIMITS, Echo, Server, wait_for

RATE = 200
BURST = int(BURST_SECONDS * RATE)
OVER = 200
"""Messages beyond the burst that a flood has: a second of the rate."""


@pytest.fixture(scope="module")
def limited(kind: str) -> Iterator[Server]:
    """A server whose sockets have a rate."""
    with Server(**KINDS[kind], limits=replace(LIMITS, frame_rate=RATE)) as server:
        yield server


def flood(server: Server, peer: Peer, count: int = BURST + OVER) -> Echo:
    """Send so many messages at once, and wait until the server holds the rest back."""
    peer.send(*(text(str(i)) for i in range(count)))
    echo = server.echo_of(peer)
    wait_for(lambda: "flooded" in echo.told)
    return echo


def test_a_burst_passes_and_the_rest_comes_at_the_rate_in_order(limited: Server) -> None:
    with Peer(limited.port) as peer:
        began = time.monotonic()
        peer.send(*(text(str(i)) for i in range(BURST + OVER)))
        for i in range(BURST):
            assert peer.read_text() == str(i)
        burst = time.monotonic() - began
        for i in range(BURST, BURST + OVER):
            assert peer.read_text() == str(i)
        whole = time.monotonic() - began
        assert burst < 0.5
        assert 0.8 * OVER / RATE < whole < 1.5 * OVER / RATE + 0.5
        echo = limited.echo_of(peer)
        assert "flooded" in echo.told
        assert set(echo.told) == {"flooded"}


def test_who_keeps_to_the_rate_is_never_held_back(limited: Server) -> None:
    with Peer(limited.port) as peer:
        for _ in range(2):
            peer.send(*(text(str(i)) for i in range(BURST // 2)))
            for i in range(BURST // 2):
                assert peer.read_text() == str(i)
        for i in range(40):
            time.sleep(1.2 / RATE)
            peer.send(text(str(i)))
            assert peer.read_text() == str(i)
        assert limited.echo_of(peer).told == []


def test_frames_of_every_kind_count(limited: Server, kind: str) -> None:
    if not kind.startswith("fast"):
        pytest.skip("only messages are seen here")
    group = (frame(PING, b"1"), frame(PONG), frame(TEXT, fin=False), frame(CONT, b"x"), binary(b""))
    count = (BURST + OVER) // len(group)
    with Peer(limited.port) as peer:
        began = time.monotonic()
        peer.send(*group * count)
        got = [peer.read_frame() for _ in range(3 * count)]
        assert time.monotonic() - began > 0.8 * OVER / RATE
        assert got == [(PONG, b"1"), (TEXT, b"x"), (2, b"")] * count


def test_a_flood_of_pings_is_answered_at_the_rate(limited: Server, kind: str) -> None:
    if not kind.startswith("fast"):
        pytest.skip("pings are the server's here")
    with Peer(limited.port) as peer:
        began = time.monotonic()
        peer.send(*(frame(PING, str(i).encode()) for i in range(BURST + OVER)))
        for i in range(BURST + OVER):
            assert peer.read_frame() == (PONG, str(i).encode())
        assert time.monotonic() - began > 0.8 * OVER / RATE
        echo = limited.echo_of(peer)
        assert 1 <= len(echo.told) <= 20  # a pause for many frames, not for each


@pytest.mark.parametrize("block", [frame(PONG) * 10_000, binary(b"") * 10_000, binary(b"x" * 1000) * 60])
def test_what_waits_costs_no_memory(limited: Server, kind: str, block: bytes) -> None:
    if kind == "portable":
        pytest.skip("uvicorn parses a whole segment in one go")
    if kind == "kept" and block.startswith(frame(PONG)[:2]):
        pytest.skip("only messages are seen here")
    with Peer(limited.port) as peer:
        peer.sock.settimeout(0.3)
        tracemalloc.start()
        try:
            sent = 0
            with contextlib.suppress(TimeoutError):
                while sent < 20_000_000:
                    sent += peer.sock.send(block)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert sent < 20_000_000, "TCP has not pushed back"
        assert peak < 3_000_000
        peer.reset()
    wait_for(lambda: limited.connections == 0)


def test_closing_a_flooder(limited: Server, portable: bool) -> None:
    with Peer(limited.port) as peer:
        echo = flood(limited, peer, BURST + 20 * OVER)
        began = time.monotonic()
        limited.call(lambda: echo.socket.close(4100))
        peer.send(close(4101))
        assert peer.read_close() == 4100
        assert wait_for(lambda: echo.code) == (4100 if portable else 4101)
        assert time.monotonic() - began < 1
    assert len(echo.heard) < BURST + OVER


def test_aborting_a_flooder(limited: Server) -> None:
    with Peer(limited.port) as peer:
        echo = flood(limited, peer, BURST + 20 * OVER)
        limited.call(echo.socket.abort)
        assert wait_for(lambda: echo.code, 1) == 1006
        heard = len(echo.heard)
        peer.read_close()
        assert len(echo.heard) == heard


def test_a_flooder_that_vanishes_leaves_nothing_behind(limited: Server) -> None:
    with Peer(limited.port) as peer:
        echo = flood(limited, peer)
        peer.reset()
    wait_for(lambda: limited.connections == 0)
    wait_for(lambda: echo.code)
    assert echo.told[-1] == "closed"


def test_the_close_of_a_flooder_is_found_behind_all_that_it_sent(limited: Server, portable: bool) -> None:
    if portable:
        pytest.skip("uvicorn answers a close before the application has answered what came before it")
    with Peer(limited.port) as peer:
        peer.send(*(text(str(i)) for i in range(BURST + OVER // 4)), close(4000))
        for i in range(BURST + OVER // 4):
            assert peer.read_text() == str(i)
        assert peer.read_close() == 4000


def test_a_socket_paused_by_both_waits_for_both(limited: Server) -> None:
    with Peer(limited.port) as peer:
        echo = flood(limited, peer)
        limited.call(echo.socket.pause_reading)
        heard = len(echo.heard)
        assert heard < BURST + OVER
        time.sleep(0.4)  # several pauses of the rate
        assert len(echo.heard) == heard
        limited.call(echo.socket.resume_reading)
        for i in range(BURST + OVER):
            assert peer.read_text() == str(i)


def test_pausing_and_resuming_gains_a_flooder_nothing(limited: Server) -> None:
    with Peer(limited.port) as peer:
        began = time.monotonic()
        echo = flood(limited, peer)

        def blink() -> None:
            echo.socket.resume_reading()
            echo.socket.pause_reading()
            echo.socket.resume_reading()

        while len(echo.heard) < BURST + OVER:
            limited.call(blink)
            time.sleep(0.005)
            assert len(echo.heard) < BURST + (time.monotonic() - began + 0.1) * RATE
        for i in range(BURST + OVER):
            assert peer.read_text() == str(i)


def test_a_flooder_is_not_silent_while_we_hold_it_back(limited: Server, kind: str) -> None:
    if not kind.startswith("fast"):
        pytest.skip("silence is the server's business here")
    with Peer(limited.port) as peer:
        echo = flood(limited, peer)
        first = echo.socket.heard
        wait_for(lambda: echo.socket.heard > first + 0.3, 2)


def test_a_message_of_many_fragments_is_one_object_while_it_grows(server: Server, kind: str) -> None:
    if not kind.startswith("fast"):
        pytest.skip("put together by whoever keeps the connection")
    count = 30_000
    with Peer(server.port) as peer:
        peer.send(text("ready"))
        assert peer.read_text() == "ready"
        fragments = frame(TEXT, b"x", fin=False) + frame(CONT, b"x", fin=False) * (count - 1)
        gc.collect()
        tracemalloc.start()
        try:
            peer.send(fragments, frame(PING, b"here"))
            assert peer.read_frame() == (PONG, b"here")
            now, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert now < 400_000
        peer.send(frame(CONT, b"!"))
        assert peer.read_text() == "x" * count + "!"
