"""Which server is the primary now: asked of the Sentinels before every connection.

A Sentinel that is cut off from the others goes on naming the primary it knew. So all are asked at once, and of what the
first majority says, or those that answer where fewer do, the newest configuration counts. What a wrong server could do
is fenced elsewhere: scripts refuse on a replica, and epochs tell two primaries apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.connection import Connection
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from app.brokers.address import SentinelAddress

_log = structlog.get_logger("tocsin.broker")


class NoPrimary(RedisConnectionError):
    """The Sentinels name no primary. The text is a sentence without hosts."""


class Discovery:
    """The primary that the Sentinels name.

    Args:
        address: the Sentinels and the name.
        deadline: seconds for the answer of a Sentinel.
        on_moved: called when another server is named than the last time.

    Attributes:
        last: host and port that were named last.
    """

    def __init__(self, address: SentinelAddress, deadline: float, on_moved: Callable[[], None]) -> None:
        self._address = address
        self._on_moved = on_moved
        self.last: tuple[str, int] | None = None
        self._options = {
            "username": address.sentinel_username,
            "password": address.sentinel_password,
            "protocol": 2,
            "socket_timeout": deadline,
            "socket_connect_timeout": deadline,
            "retry": Retry(NoBackoff(), 0),
        }

    async def find(self) -> tuple[str, int]:
        """Ask now.

        Raises:
            NoPrimary: none that works is named.
            AuthenticationError: (redis-py's) no Sentinel knows us.
        """
        states = await self._ask()
        if not states:
            raise NoPrimary("Sentinel names no primary that works")
        found = max(states)[1:]
        if self.last not in (None, found):
            _log.warning("store_primary_moved")
            self._on_moved()
        self.last = found
        return found

    async def _ask(self) -> list[tuple[int, str, int]]:
        """What those of the first majority to answer say of a primary that they find working: the epoch of the
        configuration, host, port.
        """
        name, answers, states = self._address.name, 0, []
        reason: RedisError | OSError = NoPrimary("no Sentinel can be asked")
        async with Sentinel(self._address.sentinels, sentinel_kwargs=self._options) as sentinel:  # type: ignore[no-untyped-call]
            asked = [asyncio.create_task(_masters(client)) for client in sentinel.sentinels]
            try:
                for answer in asyncio.as_completed(asked):
                    try:
                        state = (await answer).get(name)
                    except AuthenticationError as error:
                        reason = error
                        continue
                    except (RedisError, OSError, LookupError, ValueError):  # away, or it answers what no Sentinel does
                        continue
                    answers += 1
                    if state is not None and sentinel.check_master_state(state, name):
                        states.append((int(state["config-epoch"]), str(state["ip"]), int(state["port"])))
                    if answers * 2 > len(asked):
                        break
            finally:
                for task in asked:
                    task.cancel()
                await asyncio.gather(*asked, return_exceptions=True)
        if not answers:
            raise reason
        return states


async def _masters(client: Redis) -> dict[str, Any]:
    masters: dict[str, Any] = await client.sentinel_masters()  # type: ignore[assignment]
    return masters


class PrimaryConnection(Connection):
    """A connection that is told where to go each time it connects.

    Args:
        discovery: tells.
        options: see `redis.asyncio.connection.Connection`.
    """

    def __init__(self, *, discovery: Discovery, **options: Any) -> None:
        super().__init__(**options)
        self._discovery = discovery

    async def connect(self) -> None:
        """Connect to the primary of this moment.

        Raises:
            NoPrimary: another one was named meanwhile.
        """
        found = await self._discovery.find()
        self.host, self.port = found
        await super().connect()  # type: ignore[no-untyped-call]
        if self._discovery.last != found:
            await self.disconnect()
            raise NoPrimary("Sentinel names another primary now")
