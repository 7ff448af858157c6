"""The portable path against servers that behave as servers do."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from app.sockets import JOIN_LIMIT, Limits
from app.sockets.asgi import AsgiSocket

LIMITS = Limits(message=10, high_mark=100, close_seconds=0.05)


class Asgi:
    """The server's side: what it has received for us, and what we have sent."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: list[Any] = []
        self.open = asyncio.Event()
        self.open.set()
        self.error: Exception | None = None

    async def receive(self) -> dict[str, Any]:
        return await self.inbox.get()

    async def send(self, message: Any) -> None:
        await self.open.wait()
        if self.error is not None:
            raise self.error
        self.sent.append(message)

    def put(self, **message: Any) -> None:
        self.inbox.put_nowait({"type": "websocket.receive", **message})

    def disconnect(self, code: int = 1001) -> None:
        self.inbox.put_nowait({"type": "websocket.disconnect", "code": code})


class Log:
    """A Receiver that notes everything."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def on_text(self, payload: bytes) -> None:
        self.heard.append(payload.decode())

    def on_binary(self, payload: bytes) -> None:
        self.heard.append(payload)

    def on_paused(self) -> None:
        self.heard.append("paused")

    def on_resumed(self) -> None:
        self.heard.append("resumed")

    def on_flooded(self) -> None:
        self.heard.append("flooded")

    def on_closed(self, code: int) -> None:
        self.heard.append(code)

    def on_shutdown(self) -> None:
        raise AssertionError("no ASGI server tells")


def start(asgi: Asgi) -> tuple[AsgiSocket, Log, asyncio.Task[None]]:
    log = Log()
    ours = AsgiSocket(asgi.receive, asgi.send, LIMITS)
    return ours, log, asyncio.create_task(ours.run(log))


def write(ours: AsgiSocket, payload: bytes) -> None:
    for chunk in ours.framing.join([ours.framing.text(payload)]):
        ours.write(chunk)


async def turns(count: int = 10) -> None:
    """Let the tasks do what they can."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_messages_of_both_types() -> None:
    asgi = Asgi()
    _, log, task = start(asgi)
    asgi.put(text="é")
    asgi.put(bytes=b"b")
    asgi.put(text=None, bytes=b"c")
    asgi.put(text="d", bytes=None)
    asgi.disconnect()
    await task
    assert log.heard == ["é", b"b", b"c", "d", 1001]


@pytest.mark.parametrize(("text", "code"), [("\ud800", 1007), ("x" * 11, 1009), ("éééééé", 1009)])
async def test_what_breaks_the_rules_closes(text: str, code: int) -> None:
    asgi = Asgi()
    _, log, task = start(asgi)
    asgi.put(text=text)
    asgi.put(text="late")
    await turns()
    assert [message["code"] for message in asgi.sent] == [code]
    asgi.disconnect(code)
    await task
    assert log.heard == [code]


async def test_a_server_that_never_reports_the_end_meets_the_deadline() -> None:
    asgi = Asgi()
    ours, log, task = start(asgi)
    write(ours, b"x")
    ours.close(4000, "é" * 100)
    write(ours, b"late")
    ours.close(4001)
    await asyncio.wait_for(task, 5)
    assert [message["type"] for message in asgi.sent] == ["websocket.send", "websocket.close"]
    assert asgi.sent[1]["reason"] == "é" * 61
    assert log.heard == [1006]


@pytest.mark.parametrize("error", [OSError(), RuntimeError("after close"), ValueError("whatever")])
async def test_whatever_send_raises_is_the_end(error: Exception) -> None:
    asgi = Asgi()
    ours, log, task = start(asgi)
    asgi.error = error
    write(ours, b"x")
    await asyncio.wait_for(task, 5)
    assert log.heard == [1006]


async def test_the_code_of_a_close_that_made_send_fail_is_told() -> None:
    asgi = Asgi()
    ours, log, task = start(asgi)
    ours.pause_reading()
    asgi.error = OSError()
    asgi.disconnect(4000)
    write(ours, b"x")
    await task
    assert log.heard == [4000]


async def test_a_receive_that_raises_is_the_end() -> None:
    async def receive() -> dict[str, Any]:
        raise RuntimeError("not connected")

    log = Log()
    await AsgiSocket(receive, Asgi().send, LIMITS).run(log)
    assert log.heard == [1006]


async def test_nothing_is_delivered_while_paused() -> None:
    asgi = Asgi()
    ours, log, task = start(asgi)
    await turns()
    ours.pause_reading()
    asgi.put(text="1")
    asgi.put(text="2")
    await turns()
    assert log.heard == []
    ours.resume_reading()
    asgi.disconnect()
    await task
    assert log.heard == ["1", "2", 1001]


async def test_a_slow_peer_is_reported_and_bounded() -> None:
    asgi = Asgi()
    asgi.open.clear()
    ours, log, task = start(asgi)
    for _ in range(11):
        write(ours, b"x" * 10)
    assert ours.paused
    await turns()
    assert log.heard == ["paused"]
    asgi.open.set()
    await turns(20)
    assert not ours.paused
    assert log.heard == ["paused", "resumed"]
    asgi.open.clear()
    for _ in range((4 * LIMITS.high_mark + JOIN_LIMIT) // 1000 + 2):
        write(ours, b"x" * 1000)
    await asyncio.wait_for(task, 5)
    assert log.heard[-1] == 1006


async def test_abort_ends_the_application() -> None:
    asgi = Asgi()
    asgi.open.clear()
    ours, log, task = start(asgi)
    write(ours, b"x")
    await turns()
    ours.abort()
    await asyncio.wait_for(task, 5)
    assert log.heard == [1006]
    write(ours, b"late")


async def test_a_cancelled_application_tells_its_receiver() -> None:
    asgi = Asgi()
    _, log, task = start(asgi)
    await turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log.heard == [1006]


async def test_a_receiver_that_raises_is_a_bug_of_the_application() -> None:
    class Broken(Log):
        def on_text(self, payload: bytes) -> None:
            raise ZeroDivisionError

    asgi = Asgi()
    log = Broken()
    asgi.put(text="x")
    with pytest.raises(ZeroDivisionError):
        await AsgiSocket(asgi.receive, asgi.send, LIMITS).run(log)
    assert log.heard == [1006]


async def test_a_flood_leaves_the_loop_to_others() -> None:
    asgi = Asgi()
    ours, log, task = start(asgi)
    for _ in range(5000):
        asgi.put(text="x")
    await turns(3)
    assert 0 < len(log.heard) < 2000
    ours.abort()
    await task


async def test_a_ping_is_only_its_chunk() -> None:
    asgi = Asgi()
    ours, _, task = start(asgi)
    ours.ping(None)
    [chunk] = ours.framing.join([ours.framing.text(b"alive")])
    ours.ping(chunk)
    await turns()
    assert [message["text"] for message in asgi.sent] == ["alive"]
    asgi.disconnect()
    await task


async def test_messages_over_the_rate_wait_with_the_server() -> None:
    asgi = Asgi()
    log = Log()
    ours = AsgiSocket(asgi.receive, asgi.send, replace(LIMITS, frame_rate=20))
    task = asyncio.create_task(ours.run(log))
    for i in range(60):
        asgi.put(text=str(i))
    await turns(20)
    assert "flooded" in log.heard
    assert len(log.heard) < 50
    assert asgi.inbox.qsize() > 10
    asgi.disconnect()
    while not task.done():
        await asyncio.sleep(0.01)
    assert [entry for entry in log.heard if entry != "flooded"] == [*map(str, range(60)), 1001]
