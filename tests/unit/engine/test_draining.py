"""A stopping worker sends its clients away so that they neither wait in vain nor return all at once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from app.core.identity import Identity
from app.engine.roster import LOOK_SECONDS, RETURN_SECONDS, START_SECONDS, Roster
from app.sockets import Chunk, Socket
from tests.unit.engine.clock import run
from tests.unit.engine.crowd import Wire

DRAIN = 20.0


class Guest:
    """A connection that notes when it was sent away, and until when."""

    held = one_way = False
    keepalive: Chunk | None = None
    identity = Identity()

    def __init__(self) -> None:
        self.socket: Socket = Wire(lambda _: None, lambda _: None)
        self.slot = 0
        self.left = self.back = -1.0

    def end(self, after: float) -> None:
        self.left = asyncio.get_running_loop().time()
        self.back = self.left + after


async def drain(count: int, *, alone_after: float | None) -> list[Guest]:
    roster = Roster(ping_seconds=25, stall_seconds=30, drain_seconds=DRAIN, chance=random.Random(1).random)
    guests = [Guest() for _ in range(count)]
    for guest in guests:
        roster.add(guest)
    for guest in guests:
        roster.retire(guest)
    if alone_after is not None:
        await asyncio.sleep(alone_after)
        roster.alone = True
    await asyncio.sleep(DRAIN)
    assert all(0 <= guest.left <= DRAIN for guest in guests)
    return guests


def test_where_another_worker_serves_clients_leave_over_the_drain_and_return_at_once() -> None:
    async def check() -> None:
        guests = await drain(1000, alone_after=None)
        assert min(guest.left for guest in guests) >= LOOK_SECONDS
        assert max(guest.back - guest.left for guest in guests) <= RETURN_SECONDS
        assert max(Counter(int(guest.back) for guest in guests).values()) < 80

    run(check())


@pytest.mark.parametrize(("count", "spread"), [(10, 0.5), (1000, DRAIN)])
def test_where_all_stop_they_return_after_that_and_the_fewer_the_sooner(count: int, spread: float) -> None:
    async def check() -> None:
        guests = await drain(count, alone_after=LOOK_SECONDS)
        begin = DRAIN + min(START_SECONDS, spread)
        assert min(guest.back for guest in guests) >= begin
        assert max(guest.back for guest in guests) <= begin + spread + RETURN_SECONDS
        if count == 1000:
            assert max(Counter(int(guest.back) for guest in guests).values()) < 80

    run(check())
