"""A real uvicorn in a thread, with a small application of the tests' own: it echoes, and does what a command says."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

import uvicorn

from app.sockets import EXTENSION, HANDSHAKE_SECONDS, Limits, Socket
from app.sockets.asgi import AsgiSocket, AsgiStream
from app.sockets.uvicorn import WebSocketProtocol
from tests.stage.frames import Peer

T = TypeVar("T")

LIMIT = 65_536
LIMITS = Limits(message=LIMIT, high_mark=131_072, close_seconds=1.0)
MUCH = b"x" * 6_000_000
OURS = "tests.wire.stage:Impatient"
HTTP = "app.sockets.handshake:HttpProtocol"


class Impatient(WebSocketProtocol):
    """Our protocol class, with little patience for the peers of an application that keeps its connections."""

    close_seconds = LIMITS.close_seconds


def wait_for(condition: Callable[[], T], seconds: float = 10) -> T:
    """Wait until the condition holds, and return its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.005)
    return value


class Echo:
    """A Receiver that sends back what it hears. A text beginning with `!` is a command.

    Attributes:
        heard: messages in order, text as str.
        told: names of the other callbacks, in order.
        code: with which it ended, else None.
    """

    def __init__(self) -> None:
        self.socket: Socket
        self.heard: list[str | bytes] = []
        self.told: list[str] = []
        self.code: int | None = None
        self.ready = threading.Event()

    def write(self, payload: bytes, *, text: bool = True) -> None:
        framing = self.socket.framing
        unit = framing.text(payload) if text else framing.binary(payload)
        for chunk in framing.join([unit]):
            self.socket.write(chunk)

    def on_text(self, payload: bytes) -> None:
        self.heard.append(payload.decode())
        if not payload.startswith(b"!"):
            self.write(payload)
            return
        match payload.decode().split():
            case ["!close", code, *reason]:
                self.socket.close(int(code), " ".join(reason))
            case ["!abort"]:
                self.socket.abort()
            case ["!pause"]:
                self.socket.pause_reading()
            case ["!blink"]:
                self.socket.pause_reading()
                self.socket.resume_reading()
            case ["!ping"]:
                [chunk] = self.socket.framing.join([self.socket.framing.text(b"alive")])
                self.socket.ping(chunk)
            case unknown:
                raise ValueError(unknown)

    def on_binary(self, payload: bytes) -> None:
        self.heard.append(payload)
        self.write(payload, text=False)

    def on_paused(self) -> None:
        self.told.append("paused")

    def on_resumed(self) -> None:
        self.told.append("resumed")

    def on_flooded(self) -> None:
        self.told.append("flooded")

    def on_shutdown(self) -> None:
        self.told.append("shutdown")
        self.socket.close(1012)

    def on_closed(self, code: int) -> None:
        self.told.append("closed")
        self.code = code


class Server:
    """uvicorn with one kind of socket; a context manager.

    Args:
        ws: protocol class of uvicorn.
        loop: uvloop or asyncio.
        http: httptools or h11.
        take: whether the application takes the handover when it is offered.
        limits: of each socket.
        handshake_seconds: what the application names as the deadline of requests; None: nothing.
    """

    def __init__(
        self,
        *,
        ws: str = OURS,
        loop: str = "uvloop",
        http: str = "httptools",
        take: bool = True,
        app: Any = None,
        limits: Limits = LIMITS,
        handshake_seconds: float | None = None,
    ) -> None:
        self.take = take
        self.limits = limits
        self.handshake_seconds = handshake_seconds
        self.echoes: dict[int, Echo] = {}
        self.disconnects = 0
        self.config = uvicorn.Config(
            app or self.app,
            host="127.0.0.1",
            port=0,
            ws=ws,
            loop=loop,
            http=http,
            interface="asgi3",
            lifespan="off" if handshake_seconds is None else "on",
            log_config=None,
            ws_max_size=LIMIT,
            ws_per_message_deflate=False,
            timeout_graceful_shutdown=5,
        )
        self.server = uvicorn.Server(self.config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.loop: asyncio.AbstractEventLoop
        self.port = 0

    async def app(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """The ASGI application."""
        if scope["type"] != "websocket":
            await (self.live if scope["type"] == "lifespan" else self.answer)(scope, receive, send)
            return
        assert (await receive())["type"] == "websocket.connect"
        match scope["path"]:
            case "/refuse":
                headers = [(b"content-type", b"application/json"), (b"retry-after", b"3")]
                await send({"type": "websocket.http.response.start", "status": 503, "headers": headers})
                await send({"type": "websocket.http.response.body", "body": b'{"error"', "more_body": True})
                await send({"type": "websocket.http.response.body", "body": b": 1}"})
                return
            case "/close":
                await send({"type": "websocket.close"})
                return
            case "/raise":
                raise RuntimeError("as the test wants")
            case "/nothing":
                return
            case _:
                pass
        await send({"type": "websocket.accept", "subprotocol": next(iter(scope["subprotocols"]), None)})
        match scope["path"]:
            case "/leave":
                return
            case "/break":
                raise RuntimeError("as the test wants")
            case _:
                pass
        echo = Echo()
        self.echoes[scope["client"][1]] = echo
        handover = scope.get("extensions", {}).get(EXTENSION)
        if self.take and handover is not None:
            echo.socket = handover(echo, self.limits)
            echo.ready.set()
        else:
            echo.socket = socket = AsgiSocket(receive, send, self.limits)
            echo.ready.set()
            await socket.run(echo)

    async def live(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """The lifespan of the application."""
        assert (await receive())["type"] == "lifespan.startup"
        scope["state"][HANDSHAKE_SECONDS] = self.handshake_seconds
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        await send({"type": "lifespan.shutdown.complete"})

    async def answer(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """An HTTP request: 204, at once and whatever the body, except for `/body` (200 with the size of the body),
        `/late`, which does the same after twice the deadline, and those that go on: `/stream` begins with a word,
        `/much` with more than a peer takes unread, `/gone` when the peer has left, `/closing` (with much) when the
        transport is about to close.
        """
        if scope["path"] in {"/stream", "/much", "/gone", "/closing"}:
            await self.stream(scope, receive, send)
            return
        headers: list[tuple[bytes, bytes]] = []
        if scope["path"] not in {"/body", "/late"}:
            await send({"type": "http.response.start", "status": 204, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return
        if scope["path"] == "/late":
            assert self.handshake_seconds is not None
            await asyncio.sleep(2 * self.handshake_seconds)
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.disconnects += 1
                return
            size += len(message["body"])
            more = message["more_body"]
        body = str(size).encode()
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def stream(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """A response without end, given away where that is offered."""
        handover = scope.get("extensions", {}).get(EXTENSION)
        while scope["path"] == "/gone" and (await receive())["type"] != "http.disconnect":
            pass
        word = b"word\n" if scope["path"] in {"/stream", "/gone"} else MUCH
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": word, "more_body": True})
        while scope["path"] == "/closing" and not handover.func.__self__.transport.is_closing():
            await asyncio.sleep(0.005)
        echo = Echo()
        self.echoes[scope["client"][1]] = echo
        echo.socket = AsgiStream(receive, send, self.limits) if handover is None else handover(echo, self.limits)
        echo.ready.set()
        if isinstance(echo.socket, AsgiStream):
            await echo.socket.run(echo)

    @property
    def connections(self) -> int:
        """How many connections the server knows."""
        return len(self.server.server_state.connections)

    def echo_of(self, peer: Peer) -> Echo:
        """The receiver of this peer's connection."""
        echo = wait_for(lambda: self.echoes.get(peer.port))
        assert echo is not None
        assert echo.ready.wait(10)
        return echo

    def call(self, function: Callable[[], T]) -> T:
        """Run a function in the server's loop, and return what it returns."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001 the caller's thread raises it
                future.set_exception(error)

        self.loop.call_soon_threadsafe(run)
        return future.result(10)

    def __enter__(self) -> Self:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)
        self.thread.start()
        wait_for(lambda: self.server.started)
        [listener] = self.server.servers
        self.port = listener.sockets[0].getsockname()[1]
        self.loop = listener.get_loop()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive(), "the server did not stop"
