"""One supervised connection to Redis: connects, reads in bursts, and connects again.

redis-py makes the connection (URL, TLS, authentication, database); everything after the handshake is ours, because its
own reading costs several times as much per message, repeats writes and hides a reconnection. Nothing here repeats
anything, and a reply can never answer a later command: who misses a deadline drops the connection.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import hiredis
import structlog
from redis._parsers.hiredis import _AsyncHiredisParser
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, InvalidResponse, RedisError
from redis.retry import Retry

from app.brokers.address import SENTINEL_SCHEME, read_sentinel_url
from app.brokers.sentinel import Discovery, NoPrimary, PrimaryConnection

_NOT_YET = object()
FIRST_DELAY = 0.1
"""Seconds: bound of the first wait before connecting again; doubles with each failure."""
LAST_DELAY = 2.0
"""Seconds: bound of every later wait."""
HEALTHY_AFTER = 1.0
"""Seconds that a connection must have lived for the waits to begin anew."""

_log = structlog.get_logger("tocsin.broker")


class Refusal(Exception):
    """An error reply of Redis. `code` is its first word; where a script's error is wrapped, the one inside it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code = text.partition(" ")[0]
        if self.code == "ERR" and "@user_script" in text:  # Redis 6.2 wraps what a command in a script answered
            inner = text.rpartition(": -")[2].partition(" ")[0]
            self.code = inner if inner.isupper() else self.code


class BurstParser(_AsyncHiredisParser):
    """redis-py's parser for the handshake; then whole bursts of replies, errors as values."""

    _reader: Any

    def begin_bursts(self) -> None:
        """The handshake is over: error replies are `Refusal` values from here on."""
        self._reader = hiredis.Reader(protocolError=InvalidResponse, replyError=Refusal, notEnoughData=_NOT_YET)

    async def read_burst(self) -> list[Any]:
        """Wait for bytes and return all replies that are complete with them.

        Raises:
            ConnectionError: (redis-py's) the server closed the connection.
        """
        await self.read_from_socket()  # type: ignore[no-untyped-call]
        gets, replies = self._reader.gets, []
        while (reply := gets()) is not _NOT_YET:
            replies.append(reply)
        return replies


def connector(
    url: str, name: str, deadline: float, on_moved: Callable[[], None] = lambda: None
) -> Callable[[], AbstractConnection]:
    """A maker of connections to `url` that neither retry nor check health by themselves.

    Args:
        url: redis://, rediss://, unix:// or redis+sentinel://; its options cannot change what the reading relies on.
        name: client name in CLIENT LIST.
        deadline: seconds for the connection and for each answer of the handshake.
        on_moved: called when the Sentinels name another primary than before.

    Raises:
        ValueError: the address of the Sentinels cannot be read.
    """
    if url.startswith(f"{SENTINEL_SCHEME}://"):
        address = read_sentinel_url(url)
        pool = ConnectionPool(
            connection_class=PrimaryConnection,
            protocol=2,
            discovery=Discovery(address, deadline / 2, on_moved),
            username=address.username,
            password=address.password,
            db=address.db,
        )
    else:
        pool = ConnectionPool.from_url(url)
    pool.connection_kwargs.update(
        protocol=2,
        parser_class=BurstParser,
        decode_responses=False,
        retry=Retry(NoBackoff(), 0),
        retry_on_error=[],
        health_check_interval=0,
        socket_timeout=None,
        socket_connect_timeout=deadline,
        client_name=name,
        driver_info=None,
    )
    return pool.make_connection


class Link:
    """One connection, replaced when it fails, with full jitter between the tries.

    Args:
        label: what it is called in logs and reasons: "reader".
        make: makes an unconnected connection.
        deadline: seconds for connecting.
        on_up: called when connected.
        on_burst: given the replies that arrived together.
        on_down: called once after each `on_up`, when the connection is gone; `closing` tells whether for good.
    """

    def __init__(
        self,
        label: str,
        make: Callable[[], AbstractConnection],
        deadline: float,
        *,
        on_up: Callable[[], None],
        on_burst: Callable[[list[Any]], None],
        on_down: Callable[[], None],
    ) -> None:
        self.label = label
        self.up = False
        self.closing = False
        self.reason = "not connected"
        self.connections = 0
        self._make = make
        self._deadline = deadline
        self._on_up, self._on_burst, self._on_down = on_up, on_burst, on_down
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Connect, and stay connected until `close`."""
        self._task = asyncio.create_task(self._run(), name=f"tocsin {self.label}")

    async def close(self) -> None:
        """End the connection for good."""
        self.closing = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._task = None

    def send(self, data: bytes) -> None:
        """Write bytes; only while `up`."""
        assert self._writer is not None
        self._writer.write(data)

    def drop(self, reason: str) -> None:
        """Give the connection up; nothing that it still says is read. `on_down` follows in a later turn."""
        if self.up:
            self.up = False
            _log.warning("store_connection_dropped", link=self.label, reason=reason)
            assert self._writer is not None
            self._writer.transport.abort()  # close() would wait for a server that does not read

    async def _run(self) -> None:
        failures = 0
        loop = asyncio.get_running_loop()
        while True:
            healthy = False
            try:
                connection = await self._connect()
            except (OSError, RedisError) as error:  # TimeoutError is an OSError
                refused = isinstance(error, AuthenticationError) or isinstance(error.__cause__, AuthenticationError)
                self.reason = "it refuses the user or password" if refused else "not connected"
                if isinstance(error, NoPrimary):
                    self.reason = str(error)
                if failures == 0:
                    _log.warning("store_unreachable", link=self.label, error=type(error).__name__, reason=self.reason)
            else:
                began = loop.time()
                await self._serve(connection)
                healthy = loop.time() - began >= HEALTHY_AFTER
            failures = 0 if healthy else failures + 1
            await asyncio.sleep(random.random() * min(LAST_DELAY, FIRST_DELAY * 2.0**failures))  # noqa: S311 - jitter

    async def _connect(self) -> AbstractConnection:
        connection = self._make()
        try:
            async with asyncio.timeout(self._deadline):
                await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    async def _serve(self, connection: AbstractConnection) -> None:
        """Read until the connection fails or is dropped."""
        parser, self._writer = connection._parser, connection._writer
        assert isinstance(parser, BurstParser)
        parser.begin_bursts()
        self.up = True
        self.connections += 1
        if self.connections > 1:
            _log.info("store_connected_again", link=self.label)
        try:
            self._on_up()
            while self.up:
                replies = await parser.read_burst()
                if replies and self.up:
                    self._on_burst(replies)
        except (OSError, RedisError) as error:
            if self.up:
                _log.warning("store_connection_lost", link=self.label, error=type(error).__name__)
        except Exception:  # noqa: BLE001 - the boundary of what a burst calls: a fault there must not end the link
            _log.exception("store_connection_failed", link=self.label)
        finally:
            self.up = False
            if self._writer is not None:
                self._writer.transport.abort()
            self._writer = None
            await connection.disconnect(nowait=True)
            try:
                self._on_down()
            except Exception:  # noqa: BLE001 - likewise
                _log.exception("store_loss_not_taken", link=self.label)
