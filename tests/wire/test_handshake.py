"""The opening handshake (RFC 6455 section 4), refusals, and what comes right behind it."""

from __future__ import annotations

import pytest

from tests.stage.frames import CONT, KEY, PONG, TEXT, Peer, close, frame, request, text
from tests.wire.stage import Server, wait_for


def test_accepted(server: Server) -> None:
    with Peer(server.port, handshake=request(extra="Sec-WebSocket-Protocol: tocsin.v1, other\r\n")) as peer:
        assert peer.status == 101
        assert "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=" in peer.head.lower()
        assert "sec-websocket-protocol: tocsin.v1" in peer.head.lower()
        assert "sec-websocket-extensions" not in peer.head.lower()
        assert peer.head.lower().count("\r\ndate:") == 1
        peer.send(text("x"))
        assert peer.read_text() == "x"


def test_compression_is_not_agreed_upon(server: Server) -> None:
    with Peer(server.port, handshake=request(extra="Sec-WebSocket-Extensions: permessage-deflate\r\n")) as peer:
        assert peer.status == 101
        assert "sec-websocket-extensions" not in peer.head.lower()


WRONG = {
    "no key": request(key=None),
    "bad key": request(key="tooshort"),
    "two keys": request(extra=f"Sec-WebSocket-Key: {KEY}\r\n"),
    "no version": request(version=None),
    "old version": request(version="8"),
    "two versions": request(extra="Sec-WebSocket-Version: 13\r\n"),
    "huge header": request(extra=f"X-Big: {'x' * 20_000}\r\n"),
    "many headers": request(extra="".join(f"X-{i}: y\r\n" for i in range(300))),
    "huge path": request("/ws?" + "x" * 20_000),
    "http 1.0": request().replace(b"HTTP/1.1", b"HTTP/1.0"),
    "post": request().replace(b"GET", b"POST", 1),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_handshakes_are_refused_and_the_server_lives(server: Server, name: str, portable: bool) -> None:
    if portable and name in {"huge header", "many headers", "huge path"}:
        pytest.skip("uvicorn never sends the refusal that the library has written")
    if portable and name == "http 1.0":
        pytest.skip("uvicorn tells its library that it was 1.1")
    with Peer(server.port, handshake=WRONG[name]) as peer:
        assert 400 <= peer.status < 500
        peer.read_end()
    with Peer(server.port) as peer:
        peer.send(text("alive"))
        assert peer.read_text() == "alive"


def test_http_beside_it(server: Server) -> None:
    with Peer(server.port, handshake=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") as peer:
        assert peer.status == 204


def test_an_upgrade_on_a_connection_that_was_used_before(server: Server) -> None:
    with Peer(server.port, handshake=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") as peer:
        assert peer.status == 204
        peer.send(request())
        while b"\r\n\r\n" not in peer._read:
            assert peer._fill()
        assert peer._read.startswith(b"HTTP/1.1 101")
        peer._read.clear()
        peer.send(text("x"))
        assert peer.read_text() == "x"


def test_the_application_refuses_with_any_status(server: Server) -> None:
    with Peer(server.port, "/refuse") as peer:
        assert peer.status == 503
        assert "retry-after: 3" in peer.head.lower()
        assert "content-type: application/json" in peer.head.lower()
        assert peer.read_end() == b'{"error": 1}'


def test_closing_before_accepting_is_403(server: Server) -> None:
    with Peer(server.port, "/close") as peer:
        assert peer.status == 403
        peer.read_end()


@pytest.mark.parametrize("path", ["/raise", "/nothing"])
def test_an_application_that_fails_before_its_answer_is_500(server: Server, path: str) -> None:
    with Peer(server.port, path) as peer:
        assert peer.status == 500
        peer.read_end()


@pytest.mark.parametrize(("path", "code"), [("/leave", 1000), ("/break", 1011)])
def test_an_application_that_leaves_after_accepting(server: Server, path: str, code: int, portable: bool) -> None:
    with Peer(server.port, path) as peer:
        assert peer.status == 101
        # uvicorn just cuts the connection.
        assert peer.read_close() == (None if portable else code)


def test_frames_in_the_segment_of_the_request(server: Server, portable: bool) -> None:
    if portable:
        pytest.skip("uvicorn drops them")
    behind = text("1") + frame(PONG) + frame(TEXT, b"2", fin=False) + frame(CONT, b"3") + text("4")[:3]
    with Peer(server.port, behind=behind) as peer:
        peer.send(frame(CONT))  # completes neither: the cut frame is not text("4") any more
        assert peer.read_text() == "1"
        assert peer.read_text() == "23"


def test_frames_behind_the_request_in_order_with_later_ones(server: Server, portable: bool) -> None:
    if portable:
        pytest.skip("uvicorn drops them")
    whole = b"".join(text(str(i)) for i in range(50)) + close(4000)
    for cut in (0, 1, 7, 100, len(whole)):
        with Peer(server.port, behind=whole[:cut]) as peer:
            peer.send(whole[cut:])
            for i in range(50):
                assert peer.read_text() == str(i)
            assert peer.read_close() == 4000


def test_nothing_is_logged_for_a_connection(server: Server, portable: bool, caplog: pytest.LogCaptureFixture) -> None:
    if portable:
        pytest.skip("uvicorn logs each, with its query string")
    with caplog.at_level("INFO"), caplog.at_level("INFO", "uvicorn.error"):
        for path in ("/ws?token=secret", "/refuse?token=secret", "/close?token=secret"):
            with Peer(server.port, path) as peer:
                if peer.status == 101:
                    peer.send(close())
                    assert wait_for(lambda: server.echo_of(peer).code) == 1000
                peer.read_end()
        with Peer(server.port, handshake=request("/ws?token=secret", key="wrong")) as peer:
            peer.read_end()
    assert not caplog.records
