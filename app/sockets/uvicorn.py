"""The fast path: a WebSocket protocol class for uvicorn whose connections can be given away.

`uvicorn --ws app.sockets.uvicorn:WebSocketProtocol`. Until the handover it is an ASGI WebSocket server like any other;
the application then returns, and of the request nothing is left (see `detached`). An application that does not know
`EXTENSION` works too, without keep-alive pings. Nothing is logged for a connection: its query string may hold secrets.

The class leans on uvicorn's internals; each attribute used has a contract test.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterable, Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, ClassVar, cast
from urllib.parse import unquote

import httptools
from uvicorn.config import Config
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.server import ServerState
from websockets.datastructures import Headers
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from app.core.errors import Close
from app.sockets import EXTENSION, Limits, Receiver, Socket
from app.sockets.detached import FRAMES, QUIET, DetachedSocket, dismiss

_LOGGER = logging.getLogger("uvicorn.error")
_BUFFER = 65_536
"""High mark (bytes) for an application that keeps the connection: its `send` waits above it."""
_ORDINARY_SIZE, _ORDINARY_HEADERS = 8192, 128
"""A request within these (bytes, header lines) is within all limits of the library."""
_BODY_HEADERS = frozenset({b"content-length", b"transfer-encoding"})
_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_READER = ServerProtocol(logger=QUIET)
"""Checks requests of all connections; it keeps nothing of them that it would look at again."""
_SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %b\r\n"
)


def _refusal(status: int, headers: Sequence[tuple[str, str]] = (), body: bytes = b"") -> bytes:
    """An HTTP answer after which the connection ends."""
    fields = Headers(headers)
    fields.setdefault("Date", formatdate(usegmt=True))
    fields.setdefault("Connection", "close")
    fields.setdefault("Content-Length", str(len(body)))
    fields.setdefault("Content-Type", "text/plain; charset=utf-8")
    return Response(status, _PHRASES.get(status, ""), fields, body).serialize()


def _decode(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


def _behind_request(http: Any) -> bytes:
    """What arrived in the same segment behind the handshake. uvicorn would drop it.

    With httptools we are called while uvicorn handles `HttpParserUpgrade`, whose argument says where in the caller's
    `data` the request ended; with h11 the parser has the rest.
    """
    error = sys.exception()
    if isinstance(error, httptools.HttpParserUpgrade) and error.__traceback__ is not None:
        data: bytes = error.__traceback__.tb_frame.f_locals["data"]
        return data[error.args[0] :]
    conn = getattr(http, "conn", None)
    return b"" if conn is None else bytes(conn.trailing_data[0])


class WebSocketProtocol(asyncio.Protocol):
    """One handshake, and the ASGI side of its connection until someone takes it over.

    It is also the `Receiver` of a connection that the application keeps.

    Args:
        config: uvicorn's.
        server_state: uvicorn's sets of connections and tasks.
        app_state: what lifespan left for each scope.
        _loop: event loop; the running one when None.
    """

    close_seconds: ClassVar[float] = 5.0
    """How long a peer may take to read a refusal, or to answer the close of an application that keeps it."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._config = config
        self._server_state = server_state
        self._connections: set[Any] = server_state.connections
        self._app_state = app_state
        self._loop = _loop or asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._http: Any = None
        self._early = b""
        self._key: str | None = None
        self._denial: tuple[int, list[tuple[str, str]], list[bytes]] | None = None
        self._socket: DetachedSocket | None = None
        self._refused = self._taken = self._closed = False
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._gone: dict[str, Any] | None = None
        self._writable: asyncio.Event | None = None

    # What the transport and the server tell, until the answer to the handshake.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take over from uvicorn's HTTP protocol, and cut the cycle in which its parser would leave it."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.pause_reading()
        self._connections.add(self)
        self._http = self._transport.get_protocol()
        self._early = _behind_request(self._http)
        self._http.parser = None

    def data_received(self, data: bytes) -> None:
        """The request, whole: uvicorn writes it anew. The application is asked in a task of its own."""
        request = self._parsed_request(data) or self._read_request(data)
        if request is not None and self._http.scope["http_version"] < "1.1":  # RFC 6455 section 4.2.1
            self._refuse(_refusal(400, body=b"a WebSocket needs HTTP/1.1\n"))
        elif request is not None:
            try:
                self._key, _, _ = _READER.process_request(request)
            except Exception:  # noqa: BLE001 - the library says what it makes of it
                self._refuse_request(request)
            else:
                self._inbox.put_nowait({"type": "websocket.connect"})
                task = self._loop.create_task(self._run(self._make_scope(request)))
                self._server_state.tasks.add(task)
                task.add_done_callback(self._server_state.tasks.discard)
        self._http = None

    def _parsed_request(self, data: bytes) -> Request | None:
        """The request as uvicorn's parser has it, where the library has nothing to say about its size or body: what
        was read once need not be read again. None: the library reads it.
        """
        given = self._http.headers
        if len(data) > _ORDINARY_SIZE or len(given) > _ORDINARY_HEADERS or not data.startswith(b"GET "):
            return None
        headers = Headers()
        for name, value in given:
            if name in _BODY_HEADERS:
                return None
            headers[name.decode("ascii")] = value.decode("latin-1")
        target = data[4 : data.index(b" ", 4)]
        return Request(target.decode("ascii"), headers) if target.isascii() else None

    def _read_request(self, data: bytes) -> Request | None:
        """The request as the library reads it; None: it does not, and has been refused."""
        handshake = ServerProtocol(logger=QUIET)
        handshake.receive_data(data)
        event = next(iter(handshake.events_received()), None)
        if not isinstance(event, Request):
            self._refuse(b"".join(handshake.data_to_send()) or _refusal(400, body=b"not a WebSocket handshake\n"))
        dismiss(handshake)
        return event if isinstance(event, Request) else None

    def _refuse_request(self, request: Request) -> None:
        """Refuse what the library would refuse, in its words."""
        handshake = ServerProtocol(logger=QUIET)
        answer = handshake.accept(request)
        request._exception = None  # with its traceback a cycle
        self._refuse(answer.serialize())
        dismiss(handshake)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 the application learns the code
        """The peer has gone before it was answered."""
        self._connections.discard(self)
        self.on_closed(Close.ABNORMAL)

    def shutdown(self) -> None:
        """Told by uvicorn when the server stops."""
        if not self._refused:
            self._refuse(_refusal(503, body=b"shutting down\n"))

    def _make_scope(self, request: Request) -> dict[str, Any]:
        raw_path, _, query = request.path.partition("?")
        root = self._config.root_path
        offered = request.headers.get_all("Sec-WebSocket-Protocol")
        return {
            "type": "websocket",
            "asgi": {"version": self._config.asgi_version, "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "wss" if self._http.scheme == "https" else "ws",
            "server": self._http.server,
            "client": self._http.client,
            "root_path": root,
            "path": root + unquote(raw_path),
            "raw_path": (root + raw_path).encode("ascii"),
            "query_string": query.encode("ascii"),
            "headers": self._http.headers,
            "subprotocols": [token.strip() for line in offered for token in line.split(",")],
            "state": self._app_state.copy(),
            "extensions": {"websocket.http.response": {}, EXTENSION: self._hand_over},
        }

    def _refuse(self, answer: bytes) -> None:
        """Answer the handshake with something else than 101, and end."""
        self._refused = True
        self._transport.write(answer)
        if self._transport.get_write_buffer_size():
            self._loop.call_later(self.close_seconds, self._transport.abort)
        self._transport.close()
        self.on_closed(Close.ABNORMAL)

    # The ASGI side.

    async def _run(self, scope: dict[str, Any]) -> None:
        """Run the application, and end what it has neither answered, closed nor given away."""
        code = Close.DONE
        try:
            await cast("Any", self._config.loaded_app)(scope, self._receive, self._send)
        except ClientDisconnected:
            pass
        except asyncio.CancelledError:
            code = Close.RESTART
            raise
        except Exception:
            code = Close.INTERNAL
            _LOGGER.exception("Exception in ASGI application\n")
        finally:
            if self._socket is not None:
                self._socket.close(code)
            elif not self._refused and not self._taken:
                self._refuse(_refusal(503 if code == Close.RESTART else 500, body=b"no answer from the application\n"))

    def _hand_over(self, receiver: Receiver, limits: Limits) -> Socket:
        """The `Handover` in the scope.

        Raises:
            RuntimeError: `websocket.accept` has not been sent, or the connection was given away before.
        """
        if self._socket is None:
            raise RuntimeError("hand a connection over once, after websocket.accept")
        socket, self._socket, self._taken = self._socket, None, True
        socket.attach(receiver, limits)
        return socket

    async def _receive(self) -> dict[str, Any]:
        """ASGI receive. Reading goes on only while the application waits here.

        Raises:
            RuntimeError: the connection has been handed over.
        """
        if self._taken:
            raise RuntimeError("the connection was handed over: its receiver hears it")
        if self._inbox.empty():
            if self._gone is not None:
                return self._gone
            if self._socket is not None:
                self._socket.resume_reading()
        return await self._inbox.get()

    async def _send(self, message: dict[str, Any]) -> None:
        """ASGI send.

        Raises:
            uvicorn.protocols.utils.ClientDisconnected: the connection is gone; an OSError, as ASGI says.
            RuntimeError: the message is not due.
        """
        if self._writable is not None:
            await self._writable.wait()
        if self._gone is not None and not self._closed:
            raise ClientDisconnected
        match message["type"]:
            case "websocket.accept" if self._key is not None and self._denial is None:
                self._accept(self._key, message)
            case "websocket.close" if self._key is not None and self._denial is None:
                self._refuse(_refusal(403))
            case "websocket.http.response.start" if self._key is not None and self._denial is None:
                self._denial = message["status"], _decode(message.get("headers", ())), []
            case "websocket.http.response.body" if self._denial is not None and not self._refused:
                status, headers, parts = self._denial
                parts.append(message.get("body", b""))
                if not message.get("more_body", False):
                    self._refuse(_refusal(status, headers, b"".join(parts)))
            case "websocket.send" if self._socket is not None and not self._closed:
                text = message.get("text")
                frame = FRAMES.binary(message["bytes"]) if text is None else FRAMES.text(text.encode())
                self._socket.write(frame)
            case "websocket.close" if self._socket is not None and not self._closed:
                self._closed = True
                self._socket.close(message.get("code", Close.DONE), message.get("reason") or "")
            case kind:
                raise RuntimeError(f"ASGI message '{kind}' is not due")

    def _accept(self, key: str, message: dict[str, Any]) -> None:
        """Send the 101; from here the connection is a `DetachedSocket`, whoever receives from it."""
        given = Headers(_decode(message.get("headers", ())))  # refuses values that would break out of a line
        if message.get("subprotocol"):
            given["Sec-WebSocket-Protocol"] = message["subprotocol"]
        ours = [b"%b: %b\r\n" % pair for pair in self._server_state.default_headers]
        self._key = None
        self._transport.write(b"".join((_SWITCHING % key.encode(), *ours, given.serialize())))
        self._connections.discard(self)
        limits = Limits(self._config.ws_max_size, _BUFFER, self.close_seconds)
        self._socket = DetachedSocket(
            self._transport,
            loop=self._loop,
            connections=self._connections,
            receiver=self,
            limits=limits,
            early=self._early,
        )

    # The Receiver of a connection that the application keeps.

    def on_text(self, payload: bytes) -> None:
        """One message at a time: the next is read when the application asks."""
        self._put({"type": "websocket.receive", "text": payload.decode()})

    def on_binary(self, payload: bytes) -> None:
        """Likewise."""
        self._put({"type": "websocket.receive", "bytes": payload})

    def _put(self, message: dict[str, Any]) -> None:
        self._inbox.put_nowait(message)
        if self._socket is not None:
            self._socket.pause_reading()

    def on_paused(self) -> None:
        """`send` waits from here on."""
        self._writable = asyncio.Event()

    def on_resumed(self) -> None:
        """`send` goes on."""
        if self._writable is not None:
            self._writable.set()
            self._writable = None

    def on_flooded(self) -> None:
        """No rate is asked for here."""

    def on_closed(self, code: int) -> None:
        """Tell the application."""
        self._gone = {"type": "websocket.disconnect", "code": int(code), "reason": ""}
        self._inbox.put_nowait(self._gone)
        self._key = None
        self.on_resumed()

    def on_shutdown(self) -> None:
        """An ordinary application is not asked."""
        if self._socket is not None:
            self._socket.close(Close.RESTART)
