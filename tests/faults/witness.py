"""Hears at the servers themselves what they tell of a channel.

What only plain sockets heard, and the store then lost, has an id that no client saw and no log keeps. Without it the
checker would take such a message for the one that its retry became.
"""

from __future__ import annotations

import asyncio

import orjson
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from app.brokers.envelope import read_envelope, read_id
from app.core.messages import Kind
from tests.faults.record import Record
from tests.stage.redis import RedisServer

AGAIN_SECONDS = 0.02
"""Between two tries to reach a server that is gone."""


class Witness:
    """A subscriber of one server, of one channel; it returns after each loss of its connection.

    Attributes:
        listening: it has subscribed.
    """

    def __init__(self, server: RedisServer, record: Record) -> None:
        self.listening = asyncio.Event()
        self._port = server.port
        self._channel = f"tocsin:{{{record.channel}}}"
        self._heard = record.witnessed.setdefault(server.port, [])
        self._record = record
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Leave."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if not self._task.cancelled() and (error := self._task.exception()) is not None:
            raise error

    async def _run(self) -> None:
        while True:
            try:
                await self._listen()
            except (OSError, redis.RedisError):
                await asyncio.sleep(AGAIN_SECONDS)

    async def _listen(self) -> None:
        retry = Retry(NoBackoff(), 0)
        async with redis.asyncio.Redis(port=self._port, retry=retry) as client, client.pubsub() as told:
            await told.subscribe(self._channel)
            async for event in told.listen():
                if event["type"] == "subscribe":
                    self.listening.set()
                else:
                    self._note(event["data"])

    def _note(self, data: bytes) -> None:
        position, _, envelope = data.partition(b" ")
        if position == b"-":
            return
        found = read_envelope(read_id(position), envelope)
        if found.kind is Kind.TEXT or found.kind is Kind.JSON:
            payload = found.payload.decode() if found.kind is Kind.TEXT else orjson.loads(found.payload)
            self._heard.append(self._record.heard(str(found.position), payload))
