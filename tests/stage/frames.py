"""A WebSocket client made of bytes (RFC 6455): it can say what no library would, and stop reading when it likes."""

from __future__ import annotations

import secrets
import socket
import struct
from types import TracebackType
from typing import Self

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def mask(payload: bytes, key: bytes) -> bytes:
    """Apply a masking key (section 5.3)."""
    repeated = (key * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")).to_bytes(len(payload), "big")


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool = True, rsv: int = 0, size: int | None = None
) -> bytes:
    """One frame as a client sends it; `size` announces another length than the payload has."""
    announced = len(payload) if size is None else size
    head = bytes([fin << 7 | rsv << 4 | opcode])
    bit = masked << 7
    if announced < 126:
        head += bytes([bit | announced])
    elif announced < 65_536:
        head += struct.pack("!BH", bit | 126, announced)
    else:
        head += struct.pack("!BQ", bit | 127, announced)
    if not masked:
        return head + payload
    key = secrets.token_bytes(4)
    return head + key + mask(payload, key)


def text(payload: str) -> bytes:
    """A masked text frame."""
    return frame(TEXT, payload.encode())


def binary(payload: bytes) -> bytes:
    """A masked binary frame."""
    return frame(BINARY, payload)


def close(code: int | None = 1000, reason: bytes = b"") -> bytes:
    """A masked close frame; without a code its payload is empty."""
    return frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason)


def request(path: str = "/ws", *, key: str | None = KEY, version: str | None = "13", extra: str = "") -> bytes:
    """A handshake (section 4.1); `extra` holds more header lines, each with its end."""
    lines = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    if key is not None:
        lines += f"Sec-WebSocket-Key: {key}\r\n"
    if version is not None:
        lines += f"Sec-WebSocket-Version: {version}\r\n"
    return f"{lines}{extra}\r\n".encode()


class Peer:
    """A blocking client on 127.0.0.1; a context manager. Every wait ends after `patience` seconds.

    Attributes:
        head: status line and headers of the answer to the handshake.
        port: our own TCP port, by which the server knows this peer.
    """

    def __init__(
        self,
        port: int,
        path: str = "/ws",
        *,
        behind: bytes = b"",
        handshake: bytes | None = None,
        receive_buffer: int | None = None,
        patience: float = 10,
    ) -> None:
        self.sock = socket.socket()
        self.sock.settimeout(patience)
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.connect(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port: int = self.sock.getsockname()[1]
        self._read = bytearray()
        self.sock.sendall((request(path) if handshake is None else handshake) + behind)
        while b"\r\n\r\n" not in self._read and self._fill():
            pass
        head, _, rest = bytes(self._read).partition(b"\r\n\r\n")
        self.head = head.decode()
        self._read = bytearray(rest)

    @property
    def status(self) -> int:
        """HTTP status of the answer to the handshake; 0 when there was none."""
        return int(self.head.split()[1]) if self.head else 0

    def send(self, *chunks: bytes) -> None:
        """Send all in one segment, as far as TCP allows."""
        self.sock.sendall(b"".join(chunks))

    def half_close(self) -> None:
        """End our direction of the TCP connection."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """End the connection with a TCP reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def _fill(self) -> bool:
        try:
            more = self.sock.recv(65_536)
        except ConnectionResetError:
            return False
        self._read += more
        return bool(more)

    def _take(self, size: int) -> bytes | None:
        while len(self._read) < size:
            if not self._fill():
                return None
        taken = bytes(self._read[:size])
        del self._read[:size]
        return taken

    def read_frame(self) -> tuple[int, bytes] | None:
        """Opcode and payload of the next frame; None at the end of the connection. The server may neither mask nor
        fragment, and must write lengths in their shortest form.
        """
        head = self._take(2)
        if head is None:
            return None
        assert head[0] & 0xF0 == 0x80, "whole frames without extension bits"
        size = head[1]
        if size == 126:
            size = int.from_bytes(self._take(2) or b"", "big")
            assert size > 125
        elif size == 127:
            size = int.from_bytes(self._take(8) or b"", "big")
            assert size > 65_535
        assert head[1] < 128, "a server does not mask"
        payload = self._take(size)
        assert payload is not None, "a frame was cut off"
        return head[0] & 0x0F, payload

    def read_text(self) -> str:
        """The next frame that is no ping, which must be text."""
        got = self.read_frame()
        while got is not None and got[0] == PING:
            got = self.read_frame()
        assert got is not None
        assert got[0] == TEXT, got
        return got[1].decode()

    def read_close(self) -> int | None:
        """Skip to the close frame and past the end of the connection: its code (1005: empty), None if none came."""
        code: int | None = None
        while (got := self.read_frame()) is not None:
            if got[0] == CLOSE:
                code = int.from_bytes(got[1][:2], "big") if got[1] else 1005
        return code

    def read_end(self) -> bytes:
        """What is left, until the server ends the connection."""
        while self._fill():
            pass
        return bytes(self._read)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sock.close()
