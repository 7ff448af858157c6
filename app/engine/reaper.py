"""The reaper: what a dead worker has left in rooms is removed by one of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import structlog

from app.brokers import Fate, Presence
from app.core.errors import TocsinError

log = structlog.get_logger("tocsin.reaper")

ROOMS = 50
"""Rooms that are cleared up at once."""


class Reaper:
    """Clears up after other workers.

    Args:
        store: who is in which room.
        spawn: runs a coroutine under supervision.
        reaped: told how many clients were removed.
    """

    def __init__(
        self,
        store: Presence,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        reaped: Callable[[int], None],
    ) -> None:
        self._store = store
        self._spawn = spawn
        self._reaped = reaped
        self._busy: set[str] = set()

    def look(self, lapsed: Iterable[str], by: str) -> None:
        """These incarnations have no lease; `by` is ours. Only for a worker whose own link has been good for a TTL:
        when the store was away, everybody's lease is over.
        """
        for incarnation in lapsed:
            if incarnation not in self._busy:
                self._busy.add(incarnation)
                self._spawn(self._clear(incarnation, by))

    async def _clear(self, incarnation: str, by: str) -> None:
        removed, done = 0, list[str]()
        try:
            while await self._store.bury(incarnation, by) is Fate.DEAD:
                done = await self._store.estate(incarnation, done)
                if not done:
                    log.warning("a worker is dead, its members have left", incarnation=incarnation, clients=removed)
                    return
                for start in range(0, len(done), ROOMS):
                    some = done[start : start + ROOMS]
                    counts = await asyncio.gather(*(self._store.reap(room, incarnation) for room in some))
                    removed += sum(counts)
                    self._reaped(sum(counts))
        except TocsinError as error:
            log.warning("a dead worker could not be cleared up after", incarnation=incarnation, reason=error.message)
        finally:
            self._busy.discard(incarnation)
