"""The whole service, opened and left in every way: nothing of a client stays, without the garbage collector.

The service runs in a process of its own, which is this module: `python -m tests.integration.test_engine_leaks URL`.
"""

from __future__ import annotations

import gc
import json
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import uvicorn

from tests.stage.frames import CLOSE, TEXT, Peer, close, frame, request, text
from tests.stage.redis import RedisServer

COUNT = 120
ENDINGS = 10
GAP = b"gap: diverged; reload and connect without since"
OURS = ("app.", "websockets.", "uvicorn.", "uvloop.", "_asyncio", "asyncio.")
"""Modules whose objects are counted: the client of REST in this process leaves some of its own."""


def test_clients_leave_no_objects(redis_server: RedisServer, prefix: str) -> None:
    command = [sys.executable, "-m", "tests.integration.test_engine_leaks", redis_server.url, prefix]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    grown = json.loads(done.stdout.splitlines()[-1])
    assert grown == {}


class Running:
    """The service in a thread."""

    def __init__(self, url: str, prefix: str) -> None:
        from app.engine import hub
        from app.main import create_app
        from app.settings import Settings

        hub.LINGER_SECONDS = 0.1
        # The high mark is small, so that a slow reader is one soon; pings are rare, so that none comes between.
        settings = Settings(
            redis_url=url, redis_prefix=prefix, high_mark=131_072, ping_seconds=300, log_level="warning"
        )
        self.app = create_app(settings)
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            self.app,
            loop="uvloop",
            http="app.sockets.handshake:HttpProtocol",
            ws="app.sockets.uvicorn:WebSocketProtocol",
            log_level="warning",
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]}, daemon=True)
        self.thread.start()
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}")
        self.wait(lambda: self.server.started and self.http.get("/readyz").status_code == 200)

    def wait(self, condition: Callable[[], bool]) -> None:
        """Until it is true."""
        deadline = time.monotonic() + 15
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def publish(self, channel: str, data: str) -> str:
        """By REST; returns the id."""
        answer = self.http.post(f"/api/v1/channels/{channel}/messages", json={"data": data})
        assert answer.status_code == 201, answer.text
        identifier: str = answer.json()["id"]
        return identifier

    def rest(self) -> None:
        """Until nobody is connected any more and every channel is forgotten."""
        edge = self.app.websocket_edge
        self.wait(lambda: not edge.roster.count and not edge.roster.opening and not edge.hub.channels)


def fill(running: Running, peer: Peer, channel: str) -> None:
    """Publish until this peer, which does not read, has left its group."""
    counters = running.app.websocket_edge.hub.counters
    lagged = counters.lagged
    with Peer(running.port, f"/ws?channel={channel}&echo=false") as publisher:
        while counters.lagged == lagged:
            publisher.send(frame(TEXT, b"y" * 60_000))
            time.sleep(0.002)


def visit(running: Running, index: int) -> None:
    """One client after the other, each leaving in its own way."""
    port, channel = running.port, f"user:{index % 7}"
    ending = index % ENDINGS
    with Peer(port, f"/ws?channel={channel}&echo={'true' if index % 2 else 'false'}") as other:
        assert other.status == 101
        first = running.publish(channel, "a")
        running.publish(channel, "b")
        assert other.read_text() == "a"
        match ending:
            case 0:
                other.send(close())
                other.read_end()
            case 1:
                other.reset()
            case 2:  # resumes
                with Peer(port, f"/ws?channel={channel}&since={first}") as peer:
                    assert peer.read_text() == "b"
            case 3:  # cannot be made whole
                with Peer(port, f"/ws?channel={channel}&since=abc-5") as peer:
                    assert peer.read_frame() == (CLOSE, (4510).to_bytes(2, "big") + GAP)
                    peer.send(close(4510))
                    peer.read_end()
            case 4:  # begins with history
                with Peer(port, f"/ws?channel={channel}&history=2&echo=false") as peer:
                    peer.send(text("own"))
                    assert [peer.read_text(), peer.read_text()] == ["a", "b"]
            case 5:  # has gone before it is answered
                with socket.create_connection(("127.0.0.1", port)) as hasty:
                    hasty.sendall(request(f"/ws?channel={channel}:new"))
            case 6:  # is refused
                with Peer(port, "/ws?channel=%20") as peer:
                    assert peer.status == 400
            case 7:  # is too slow, and leaves
                with Peer(port, f"/ws?channel={channel}", receive_buffer=4096) as peer:
                    fill(running, peer, channel)
                    peer.reset()
            case 8:  # is too slow, and comes back
                with Peer(port, f"/ws?channel={channel}", receive_buffer=4096) as peer:
                    fill(running, peer, channel)
                    running.publish(channel, "end")
                    while peer.read_text() != "end":
                        pass
            case _:  # unfinished
                other.send(frame(TEXT, b"x", fin=False))


def count() -> Counter[str]:
    """Objects by type."""
    names = (f"{type(thing).__module__}.{type(thing).__qualname__}" for thing in gc.get_objects())
    return Counter(name for name in names if name.startswith(OURS))


def main(url: str, prefix: str) -> dict[str, int]:
    """Which types have more objects after `COUNT` clients, and how many more."""
    running = Running(url, prefix)
    for index in range(2 * ENDINGS):
        visit(running, index)
    running.rest()
    gc.collect()
    gc.disable()
    before = count()
    for index in range(COUNT):
        visit(running, index)
    running.rest()
    deadline = time.monotonic() + 5
    while (grown := more_than(before)) and time.monotonic() < deadline:
        time.sleep(0.2)  # timers that are still to come, of SUBSCRIBEs and closes
    running.http.close()
    running.server.should_exit = True
    running.thread.join(20)
    return grown


def more_than(before: Counter[str]) -> dict[str, int]:
    """Types of which there are more, at least one for each client of some ending."""
    return {name: more - before[name] for name, more in count().items() if more - before[name] >= COUNT / ENDINGS}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2])))
