"""An ordinary Starlette application on our protocol class: it knows nothing of handovers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from tests.stage.frames import CLOSE, CONT, PING, PONG, TEXT, Peer, close, frame, text
from tests.wire.stage import Server, wait_for

codes: list[int] = []


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnect as gone:
        codes.append(gone.code)


async def greet(websocket: WebSocket) -> None:
    await websocket.accept(subprotocol="greeting", headers=[(b"x-hello", b"there")])
    await websocket.send_bytes(b"hello")
    await websocket.close(4000, "bye")


async def deny(websocket: WebSocket) -> None:
    await websocket.send_denial_response(JSONResponse({"error": {"code": "unauthorized"}}, 401))


async def stream(websocket: WebSocket) -> None:
    """Sends until the peer is gone; `send` has to wait for it."""
    await websocket.accept()
    try:
        while True:
            await websocket.send_bytes(b"x" * 60_000)
    except WebSocketDisconnect as gone:
        codes.append(gone.code)


@pytest.fixture(scope="module")
def starlette() -> Iterator[Server]:
    endpoints = {"/ws": echo, "/greet": greet, "/deny": deny, "/stream": stream}
    app = Starlette(routes=[WebSocketRoute(path, endpoint) for path, endpoint in endpoints.items()])
    with Server(app=app) as server:
        yield server


def test_messages(starlette: Server) -> None:
    codes.clear()
    with Peer(starlette.port, behind=text("early")) as peer:
        peer.send(*(text(str(i)) for i in range(300)), frame(TEXT, b"a", fin=False), frame(PING), frame(CONT, b"b"))
        assert peer.read_text() == "early"
        for i in range(300):
            assert peer.read_text() == str(i)
        assert peer.read_frame() == (PONG, b"")
        assert peer.read_text() == "ab"
        peer.send(close(4321))
        assert peer.read_close() == 4321
    assert wait_for(lambda: codes) == [4321]


def test_violations_reach_the_application_as_a_disconnect(starlette: Server) -> None:
    codes.clear()
    with Peer(starlette.port) as peer:
        peer.send(frame(TEXT, b"\xff"))
        assert peer.read_close() == 1007
    assert wait_for(lambda: codes) == [1007]


def test_headers_subprotocol_and_close(starlette: Server) -> None:
    with Peer(starlette.port, "/greet") as peer:
        assert "x-hello: there" in peer.head.lower()
        assert "sec-websocket-protocol: greeting" in peer.head.lower()
        assert peer.read_frame() == (2, b"hello")
        assert peer.read_frame() == (CLOSE, b"\x0f\xa0bye")
        peer.send(close(4000))
        assert peer.read_frame() is None


def test_denial(starlette: Server) -> None:
    with Peer(starlette.port, "/deny") as peer:
        assert peer.status == 401
        assert peer.read_end() == b'{"error":{"code":"unauthorized"}}'


def test_no_route_is_403(starlette: Server) -> None:
    with Peer(starlette.port, "/elsewhere") as peer:
        assert peer.status == 403


def test_sending_waits_for_a_slow_peer_and_ends_with_it(starlette: Server) -> None:
    codes.clear()
    peer = Peer(starlette.port, "/stream", receive_buffer=4096)
    assert peer.read_frame() == (2, b"x" * 60_000)
    connections: set[Any] = starlette.server.server_state.connections
    wait_for(lambda: any(connection.paused for connection in list(connections)))
    peer.reset()
    assert wait_for(lambda: codes) == [1006]


def test_a_stopping_server_closes_it() -> None:
    with Server(app=Starlette(routes=[WebSocketRoute("/ws", echo)])) as server, Peer(server.port) as peer:
        peer.send(text("x"))
        assert peer.read_text() == "x"
        server.server.should_exit = True
        assert peer.read_close() == 1012
