"""What our protocol class uses of uvicorn, websockets and the loops that is nobody's public promise.

Each test fails when a version moves it; `app/sockets` is what then has to follow.
"""

from __future__ import annotations

import asyncio
import inspect
import signal
import socket
import sys
from typing import cast

import httptools
import pytest
import uvloop
from uvicorn.config import Config
from uvicorn.lifespan.on import LifespanOn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.server import Server, ServerState
from websockets.http11 import Request
from websockets.protocol import OPEN, SERVER
from websockets.protocol import Protocol as Library
from websockets.server import ServerProtocol

from app.sockets.asgi import server_is_stopping
from app.sockets.handshake import HttpProtocol
from app.sockets.uvicorn import WebSocketProtocol

HTTP = pytest.mark.parametrize("http", [HttpToolsProtocol, H11Protocol])


async def nobody(scope: object, receive: object, send: object) -> None:
    """An application that is never called."""


@pytest.fixture
def config() -> Config:
    config = Config(nobody, interface="asgi3", ws="app.sockets.uvicorn:WebSocketProtocol", lifespan="off")
    config.load()
    return config


def test_the_class_is_found_by_its_name(config: Config) -> None:
    assert config.ws_protocol_class is WebSocketProtocol


def test_config(config: Config) -> None:
    assert config.loaded_app is not None
    assert config.root_path == ""
    assert config.asgi_version == "3.0"
    assert isinstance(config.ws_max_size, int)


def test_server_state() -> None:
    state = ServerState()
    assert state.connections == set()
    assert state.tasks == set()
    assert state.default_headers == []


@HTTP
def test_the_upgrade_goes_connection_data_protocol(http: type) -> None:
    """In this order, with the request in one piece, and with no look at what we did to the transport."""
    source = inspect.getsource(http.handle_websocket_upgrade)  # type: ignore[attr-defined]
    made = source.index("protocol.connection_made(self.transport)")
    data = source.index('protocol.data_received(b"".join(output))')
    assert source.index("self.connections.discard(self)") < made < data
    assert data < source.index("self.transport.set_protocol(protocol)")
    assert (
        "config=self.config,\n            server_state=self.server_state,\n            app_state=self.app_state,"
        in source
    )


@HTTP
async def test_the_http_protocol_knows_its_addresses(http: type, config: Config) -> None:
    protocol = http(config=config, server_state=ServerState(), app_state={})
    assert protocol.server is None
    assert protocol.client is None
    assert protocol.scheme is None


async def test_the_parser_of_httptools_may_be_dropped_during_the_upgrade(config: Config) -> None:
    protocol = HttpToolsProtocol(config=config, server_state=ServerState(), app_state={})
    assert isinstance(protocol.parser, httptools.HttpRequestParser)
    assert "self.parser" not in inspect.getsource(HttpToolsProtocol.handle_websocket_upgrade)
    assert "self.parser = None" in inspect.getsource(HttpToolsProtocol.connection_lost)


def test_the_upgrade_happens_while_the_parsers_exception_is_handled() -> None:
    """Its argument says where the request ended in the local variable `data`."""
    source = inspect.getsource(HttpToolsProtocol.data_received)
    assert "def data_received(self, data: bytes)" in source
    assert "except httptools.HttpParserUpgrade:" in source
    parser = httptools.HttpRequestParser(object())
    request = b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    parser.feed_data(request[:20])
    with pytest.raises(httptools.HttpParserUpgrade) as caught:
        parser.feed_data(request[20:] + b"behind")
    assert caught.value.args[0] == len(request) - 20
    assert sys.exception() is None


async def test_h11_keeps_what_stands_behind_the_request(config: Config) -> None:
    protocol = H11Protocol(config=config, server_state=ServerState(), app_state={})
    assert protocol.conn.trailing_data == (b"", False)


def test_the_http_class_is_found_by_its_name() -> None:
    config = Config(nobody, interface="asgi3", http="app.sockets.handshake:HttpProtocol", lifespan="off")
    config.load()
    assert config.http_protocol_class is HttpProtocol


def test_protocols_are_made_with_the_state_that_lifespan_was_given() -> None:
    assert "app_state=self.lifespan.state," in inspect.getsource(Server.startup)
    assert '"state": self.state' in inspect.getsource(LifespanOn.main)


def test_the_parser_calls_what_the_http_class_overrides(config: Config) -> None:
    """Once each, and the answer to what it cannot read is one method."""
    names = ("on_message_begin", "on_url", "on_header", "on_headers_complete", "on_body", "on_message_complete")
    assert all(callable(getattr(HttpToolsProtocol, name)) for name in names)
    assert inspect.getsource(HttpToolsProtocol).count("self.send_400_response(") == 1
    assert "self.scope = {" in inspect.getsource(HttpToolsProtocol.on_message_begin)
    assert "scope=self.scope," in inspect.getsource(HttpToolsProtocol.on_headers_complete)
    assert "flow=self.flow," in inspect.getsource(HttpToolsProtocol.on_headers_complete)
    assert STATUS_LINE[408] == b"HTTP/1.1 408 Request Timeout\r\n"


def test_a_disconnected_request_neither_writes_nor_closes() -> None:
    """What is set on a request that was refused is what uvicorn sets when its peer is gone."""
    source = inspect.getsource(HttpToolsProtocol.connection_lost)
    assert "self.cycle.disconnected = True" in source
    assert "self.cycle.message_event.set()" in source
    assert "if self.disconnected:\n            return" in inspect.getsource(RequestResponseCycle.send)


def test_a_stopping_server_tells_each_connection_and_waits_for_the_set() -> None:
    assert "connection.shutdown()" in inspect.getsource(Server.shutdown)
    assert "while self.server_state.connections" in inspect.getsource(Server._wait_tasks_to_complete)


def test_a_gone_client_is_an_oserror() -> None:
    """Starlette makes WebSocketDisconnect of it."""
    assert issubclass(ClientDisconnected, OSError)


def test_the_library_can_be_dismissed() -> None:
    library = Library(SERVER, state=OPEN)
    assert library.parser is not None
    assert library.parser_exc is None
    assert library.handshake_exc is None
    assert library.current_size is None
    handshake = ServerProtocol()
    handshake.receive_data(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    [request] = handshake.events_received()
    assert isinstance(request, Request)
    assert handshake.accept(request).status_code == 426
    assert request._exception is handshake.handshake_exc


@pytest.mark.parametrize("new_loop", [uvloop.new_event_loop, asyncio.new_event_loop])
def test_transports(new_loop: object) -> None:
    """`abort` ends a closing transport; the socket takes options; what a lost transport may still be asked."""

    async def check() -> None:
        loop = asyncio.get_running_loop()
        made: asyncio.Future[asyncio.Transport] = loop.create_future()
        lost = asyncio.Event()

        class Probe(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                made.set_result(cast("asyncio.Transport", transport))

            def connection_lost(self, exc: Exception | None) -> None:
                lost.set()

        server = await loop.create_server(Probe, "127.0.0.1", 0)
        with socket.create_connection(server.sockets[0].getsockname()):
            transport = await asyncio.wait_for(made, 5)
            assert isinstance(transport.get_protocol(), Probe)
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 131_072)
            transport.write(b"x" * 8_000_000)
            transport.close()
            assert transport.get_write_buffer_size()
            transport.abort()
            transport.write(b"ignored")
            await asyncio.wait_for(lost.wait(), 5)
            transport.abort()
            transport.close()
        server.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:  # type: ignore[arg-type]
        runner.run(check())


def test_an_application_is_started_in_one_place_with_its_scope() -> None:
    """There it gets the offer to take the connection over, and a `send` that knows HTTP/1.0."""
    assert "(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None" in inspect.getsource(
        HttpToolsProtocol._start_asgi_task
    )
    source = inspect.getsource(HttpToolsProtocol)
    assert source.count("cycle.run_asgi(app)") == inspect.getsource(HttpToolsProtocol._start_asgi_task).count(
        "cycle.run_asgi(app)"
    )
    assert "self.scope, self.receive, self.send" in inspect.getsource(RequestResponseCycle.run_asgi)


def test_a_response_that_was_given_away_is_over_for_uvicorn() -> None:
    run = inspect.getsource(RequestResponseCycle.run_asgi)
    assert "elif not self.response_started and not self.disconnected:" in run
    assert "elif not self.response_complete and not self.disconnected:" in run
    assert "self.on_response = lambda: None" in run
    send = inspect.getsource(RequestResponseCycle.send)
    assert "self.response_started = True" in send
    assert "self.response_complete = True" in send


def test_a_response_with_a_length_or_without_one_has_no_chunks() -> None:
    """What is set for HTTP/1.0 before the head is sent."""
    source = inspect.getsource(RequestResponseCycle.send)
    assert "if self.chunked_encoding is None and self.scope" in source
    assert "if num_bytes > self.expected_content_length:" in source
    assert "self.expected_content_length -= num_bytes" in source
    assert "if self.expected_content_length != 0:" in source
    assert "chunked_encoding: bool | None = None" in inspect.getsource(RequestResponseCycle)


def test_a_server_that_stops_is_found_by_its_handler_of_sigterm() -> None:
    """`app.sockets.asgi` looks there: an HTTP application is told nothing."""
    assert "signal.signal(sig, self.handle_exit) for sig in HANDLED_SIGNALS" in inspect.getsource(Server)
    assert "self.should_exit = True" in inspect.getsource(Server.handle_exit)
    assert not server_is_stopping()
    server = Server(Config(nobody))
    before = signal.signal(signal.SIGTERM, server.handle_exit)
    try:
        assert not server_is_stopping()
        server.should_exit = True
        assert server_is_stopping()
    finally:
        signal.signal(signal.SIGTERM, before)
