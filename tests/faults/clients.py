"""Clients that behave as docs/protocol.md asks of them, and write down everything that they try and see."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from typing import Any

import httpx
import orjson
import websockets
from websockets.asyncio.client import ClientConnection, connect

from tests.faults.record import Acknowledged, Began, Ended, Record, Told
from tests.stage.native import offered

ANSWER_SECONDS = 5.0
"""How long a writer waits for an answer before it takes the connection for dead."""
WINDOW = 100
"""Subscribes of a crowd that wait for their answers at most."""
FAILED = (OSError, TimeoutError, websockets.InvalidHandshake, websockets.ConnectionClosed, httpx.HTTPError)
"""What a connection may end with; anything else is a fault of the harness."""
FATAL = frozenset({1002, 1003, 1007, 1008, 1009})
"""Close codes that say that one side broke the protocol."""


def open_socket(url: str, *, native: bool, token: str | None = None) -> connect:
    """A WebSocket without what would hide faults: compression, own pings, long waits."""
    return connect(
        url,
        subprotocols=offered("tocsin.v1" if native else "tocsin.plain", token) if native or token else None,
        compression=None,
        ping_interval=None,
        open_timeout=4,
        close_timeout=0.2,
        max_queue=None,
    )


class Reader:
    """Subscribes to one channel and returns after each loss of its connection: native with `since`, plain without.

    Attributes:
        ends: close codes so far.
        last: the position to resume from.
        mark: the last payload that began with "mark".
        silent: seconds without a frame after which the connection is taken for dead.
    """

    def __init__(self, record: Record, name: str, url: str, chance: random.Random, *, native: bool) -> None:
        self.record = record
        self.name = name
        self.native = native
        self.events = record.clients.setdefault(name, [])
        self.ends: list[int] = []
        self.last: str | None = None
        self.mark: str | None = None
        self.silent = 50.0
        self.opened = asyncio.Event()
        self._url = url
        self._chance = chance
        self._here = asyncio.Event()
        self._here.set()
        self._socket: ClientConnection | None = None
        self._touched = time.monotonic()
        self._task = asyncio.create_task(self._run())

    @property
    def port(self) -> int | None:
        """Our TCP port of the present connection."""
        if self._socket is None:
            return None
        name = self._socket.transport.get_extra_info("sockname")
        return None if name is None else int(name[1])

    def drop(self) -> None:
        """Lose the connection as by a cut, and return soon."""
        if self._socket is not None:
            self._socket.transport.abort()

    def leave(self) -> None:
        """Lose the connection, and stay away."""
        self._here.clear()
        self.opened.clear()
        self.drop()

    def come_back(self) -> None:
        """End of `leave`."""
        self._here.set()

    def watch(self) -> None:
        """Give up a connection that has been silent for too long (docs/protocol.md: Keep-alive)."""
        if self.opened.is_set() and time.monotonic() - self._touched > self.silent:
            self.drop()

    async def stop(self) -> None:
        """Leave for good."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if not self._task.cancelled():
            error = self._task.exception()
            if error is not None:
                raise error

    async def _run(self) -> None:
        while True:
            await self._here.wait()
            try:
                async with self._connect() as socket:
                    self._socket = socket
                    self._touched = time.monotonic()
                    await self._listen(socket)
            except FAILED as error:
                self._on_end(error)
            finally:
                self._socket = None
                self.opened.clear()
            await asyncio.sleep(self._chance.uniform(0.02, 0.2))

    def _connect(self) -> connect:
        return open_socket(self._url, native=self.native)

    def _command(self) -> dict[str, Any]:
        command: dict[str, Any] = {"type": "subscribe", "ref": 1, "channel": self.record.channel}
        return command if self.last is None else command | {"since": self.last}

    async def _listen(self, socket: ClientConnection) -> None:
        if not self._here.is_set():
            socket.transport.abort()
        if not self.native:
            self.events.append(Began())
            self.opened.set()
            async for text in socket:
                self._touched = time.monotonic()
                self._hear(None, str(text))
        else:
            await socket.send(orjson.dumps(self._command()).decode())
            async for text in socket:
                self._touched = time.monotonic()
                self._take(orjson.loads(text), socket)
        raise websockets.ConnectionClosedOK(None, None)

    def _hear(self, identity: str | None, payload: str) -> None:
        self.events.append(self.record.heard(identity, payload))
        if payload.startswith("mark"):
            self.mark = payload

    def _on_end(self, error: BaseException) -> None:
        code = 1006
        if isinstance(error, websockets.ConnectionClosed) and self._socket is not None:
            code = self._socket.close_code or 1006
        if self.opened.is_set():
            self.events.append(Ended(code))
            self.ends.append(code)

    def _take(self, frame: dict[str, Any], socket: ClientConnection) -> None:
        match frame["type"]:
            case "message":
                self.last = frame["id"]
                self._hear(self.last, frame["data"])
            case "subscribed":
                since = self.last
                self.last = frame["position"]
                began = Began(self.last, since, frame["recovered"], frame["replayed"], frame.get("reason"))
                self.events.append(began)
                self.opened.set()
            case "gap":
                self.last = frame["position"]
                self.events.append(Told(frame["reason"], frame["position"]))
            case "welcome":
                self.silent = 2.0 * frame["ping"]
            case "error":  # the channel could not be opened: begin anew
                socket.transport.abort()
            case _:
                pass


class Conflict(Exception):
    """A key was refused for carrying another body: nobody of ours does that."""


class Writer:
    """Publishes with a key each, one at a time, and repeats until it has an answer or the key may have run out.

    Attributes:
        answers: seconds from the first try to the answer, of each message.
        unknown: messages given up.
        refused: answers `unavailable`.
        padding: appended to each message of `run`.
        mark: the last message by which a scene asks whether everybody is whole.
    """

    mark = ""
    padding = ""

    def __init__(self, record: Record, name: str, url: str, chance: random.Random) -> None:
        self.record = record
        self.name = name
        self.answers: list[float] = []
        self.unknown = 0
        self.refused = 0
        self.key_seconds = 120.0
        self.stopping = False
        self._url = url
        self._chance = chance
        self._number = 0

    async def run(self, pause: float, count: int = 2**31) -> None:
        """Publish until `stop`, `count` at most, with `pause` seconds from one to the next."""
        due = time.monotonic()
        for _ in range(count):
            if self.stopping:
                return
            self._number += 1
            await self.publish(f"{self.name}-{self._number}{self.padding}")
            due = max(due + pause, time.monotonic() - 0.5)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def publish(self, payload: str) -> Acknowledged | None:
        """One message, until it is answered; None when it had to be given up."""
        key = f"{self._chance.getrandbits(96):024x}"
        started = time.monotonic()
        while time.monotonic() - started < 0.8 * self.key_seconds:
            self.record.tried(payload)
            try:
                answer = await self.attempt(payload, key)
            except FAILED:
                answer = None
                await self.give_up()
            if answer is not None:
                self.answers.append(time.monotonic() - started)
                self.record.acknowledged.append(answer)
                return answer
            await asyncio.sleep(self._chance.uniform(0.02, 0.2))
        self.unknown += 1
        return None

    async def attempt(self, payload: str, key: str) -> Acknowledged | None:
        """One try; None: refused for now. Raises one of `FAILED` when the outcome is unknown."""
        raise NotImplementedError

    async def give_up(self) -> None:
        """The connection is no good any more."""


class SocketWriter(Writer):
    """Over `tocsin.v1`."""

    _socket: ClientConnection | None = None
    _ref = 0

    @property
    def port(self) -> int | None:
        """Our TCP port of the present connection."""
        return None if self._socket is None else int(self._socket.local_address[1])

    async def attempt(self, payload: str, key: str) -> Acknowledged | None:
        """One try."""
        if self._socket is None:
            self._socket = await open_socket(self._url, native=True)
        self._ref += 1
        command = {"type": "publish", "ref": self._ref, "channel": self.record.channel, "data": payload, "key": key}
        async with asyncio.timeout(ANSWER_SECONDS):
            await self._socket.send(orjson.dumps(command).decode())
            while True:
                frame = orjson.loads(await self._socket.recv())
                if frame["type"] == "welcome":
                    self.key_seconds = frame["key_seconds"]
                if frame.get("ref") == self._ref:
                    break
        if frame["type"] == "published":
            return Acknowledged(payload, frame["id"], frame["duplicate"])
        if frame["code"] == "conflict":
            raise Conflict(payload)
        self.refused += 1
        return None

    async def give_up(self) -> None:
        """Abort; the next try opens another."""
        socket, self._socket = self._socket, None
        if socket is not None:
            socket.transport.abort()
            with contextlib.suppress(Exception):
                await socket.wait_closed()


class RestWriter(Writer):
    """Over REST, with `Idempotency-Key`."""

    _client: httpx.AsyncClient | None = None

    async def attempt(self, payload: str, key: str) -> Acknowledged | None:
        """One try."""
        if self._client is None:
            self._client = httpx.AsyncClient(timeout=ANSWER_SECONDS)
        url = f"{self._url}/api/v1/channels/{self.record.channel}/messages"
        answer = await self._client.post(url, json={"data": payload}, headers={"idempotency-key": key})
        if answer.status_code in {200, 201}:
            found = answer.json()
            return Acknowledged(payload, found["id"], found["duplicate"])
        if answer.status_code == 409:
            raise Conflict(payload)
        self.refused += 1
        return None

    async def give_up(self) -> None:
        """Forget the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


class Crowd:
    """One native socket with many channels, which only notes where it hears something.

    Attributes:
        heard: channels with a message.
        subscribed: all of them are.
    """

    def __init__(self, url: str, channels: Sequence[str]) -> None:
        self.heard: set[str] = set()
        self.subscribed = asyncio.Event()
        self._url = url
        self._channels = channels
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Leave."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        waiting = list(enumerate(self._channels))
        live = 0
        async with open_socket(self._url, native=True) as socket:
            for _ in range(WINDOW):
                await self._subscribe(socket, waiting)
            async for text in socket:
                frame = orjson.loads(text)
                if frame["type"] == "message":
                    self.heard.add(frame["channel"])
                elif frame["type"] == "subscribed":
                    live += 1
                    await self._subscribe(socket, waiting)
                elif frame["type"] == "error":
                    waiting.append((frame["ref"], self._channels[frame["ref"]]))
                    await self._subscribe(socket, waiting)
                if live == len(self._channels):
                    self.subscribed.set()

    @staticmethod
    async def _subscribe(socket: ClientConnection, waiting: list[tuple[int, str]]) -> None:
        if waiting:
            ref, channel = waiting.pop()
            await socket.send(orjson.dumps({"type": "subscribe", "ref": ref, "channel": channel}).decode())
