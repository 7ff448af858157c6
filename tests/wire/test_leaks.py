"""A connection leaves nothing behind, without the help of the garbage collector."""

from __future__ import annotations

import gc
from collections import Counter

import pytest

from tests.stage.frames import CONT, PING, TEXT, Peer, close, frame, request, text
from tests.wire.stage import HTTP, OURS, Server, wait_for

CACHES = {"builtin_function_or_method", "ReferenceType"}
"""What abstract base classes remember of the first classes that they see."""
ASYNCIO = {"_SelectorSocketTransport", "TransportSocket", "socket", "method", "dict", "tuple", "TimerHandle", "Context"}
"""A transport of asyncio's own loop is a cycle in itself, and a cancelled timer stays until it is due."""


def run(server: Server, count: int) -> None:
    """Connections that end in every way, each after a bit of everything."""
    for i in range(count):
        with Peer(server.port) as peer:
            peer.send(text("x"), frame(PING), frame(TEXT, b"a", fin=False), frame(CONT, b"b"))
            assert peer.read_text() == "x"
            match i % 6:
                case 0:
                    peer.send(close())
                    peer.read_end()
                case 1:
                    peer.reset()
                case 2:
                    peer.send(text("!abort"), close())
                    peer.read_end()
                case 3:
                    peer.send(frame(3))
                    peer.read_end()
                case 4:
                    peer.send(text("!close 4000"), close(4000))
                    peer.read_end()
                case _:
                    peer.send(frame(TEXT, b"unfinished", fin=False))
        endless = request(extra=f"X: {'y' * 90_000}\r\n")
        for handshake in (request(key="wrong"), request("/refuse"), request(extra=f"X: {'y' * 9000}\r\n"), endless):
            with Peer(server.port, handshake=handshake) as peer:
                peer.read_end()
    wait_for(lambda: server.connections == 0)
    server.echoes.clear()


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("http", [HTTP, "httptools", "h11"])
@pytest.mark.parametrize("take", [True, False], ids=["taken", "kept"])
def test_opens_and_closes_leave_no_objects(loop: str, http: str, take: bool) -> None:
    count = 60
    with Server(ws=OURS, loop=loop, http=http, take=take) as server:
        run(server, count // 2)
        run(server, count // 2)
        gc.collect()
        gc.disable()
        try:
            before = Counter(type(thing).__name__ for thing in gc.get_objects())
            run(server, count)
            server.call(lambda: None)
            after = Counter(type(thing).__name__ for thing in gc.get_objects())
        finally:
            gc.enable()
    ignored = CACHES | ASYNCIO if loop == "asyncio" else CACHES
    grown = {
        name: more - before[name]
        for name, more in after.items()
        if more - before[name] >= count / 6 and name not in ignored
    }
    assert not grown
