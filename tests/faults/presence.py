"""Faults of presence and permission: members come, go and die with their workers; rights end while messages flow."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import replace

import httpx

from tests.faults.guests import ADMIN, ALL, GRACE, ROOM, SOON, Guest, Hall, mint
from tests.faults.record import Ended, Record
from tests.faults.scene import Fault, Scene
from tests.stage.redis import free_port

PATIENT = replace(ROOM, patience=120)
"""The supervisor lets a worker stand still; it would wait as long for one that is killed under its question."""
LEEWAY = 10
"""Seconds that the service allows for clocks when a token ends."""
LATE = 2.0
"""Seconds after its end, or its revocation, in which a connection must be closed (the wheel turns once a second)."""


async def returns(scene: Scene) -> None:
    """Members drop at random and are back within two seconds, often on another worker: nobody is said to leave."""
    hall = Hall(scene)
    await hall.fill(scene.scale(24, 200))
    times = scene.share(2, 20)

    async def come_and_go(guest: Guest) -> None:
        for _ in range(times):
            await asyncio.sleep(scene.chance.uniform(0.1, 1.0))
            guest.leave()
            await asyncio.sleep(scene.chance.uniform(0.0, 1.2))
            guest.come_back()
            await asyncio.wait_for(guest.opened.wait(), 15)

    guests = list(hall.members.values())
    await asyncio.gather(*(come_and_go(guest) for guest in guests))
    await asyncio.sleep(GRACE + 1.0)  # in which an old connection would be taken for the member
    await hall.right("right after, s")
    late = sum(guest.late for guest in guests)
    scene.note("returns", len(guests) * times)
    scene.note("on another worker", sum(guest.moves for guest in guests))
    scene.note("returns after more than 2 s", late)
    scene.expect(sum(guest.moves for guest in guests) > 0, "nobody came to another worker")
    scene.expect(late <= len(guests) * times // 10, f"{late} of {len(guests) * times} came back late")
    await hall.judged()


async def worker_killed(scene: Scene) -> None:
    """A worker is killed. Half of its members stay away and leave; the others come back elsewhere and do not."""
    hall = Hall(scene)
    await hall.fill(scene.scale(24, 200))
    await hall.calm()
    for number in range(scene.share(1, 10)):
        if number:
            await scene.ground.ready()
            await hall.admit(scene.scale(24, 200))
            await asyncio.sleep(SOON)  # only who has been well for as long as a lease may bury others
        victim, guests = hall.victims()
        away = dict(list(guests.items())[::2])
        os.kill(victim, signal.SIGKILL)
        hall.gone(away)
        for guest in away.values():
            guest.leave()
        for guest in away.values():
            await hall.dismiss(guest)
        await hall.right("ghosts gone after, s")
    await scene.ground.ready()
    await hall.judged()


async def outage(scene: Scene) -> None:
    """Redis is away for longer than the leases, and back for one worker sooner than for another: no room is emptied,
    nobody is said to leave.
    """
    hall = Hall(scene)
    await hall.fill(scene.scale(24, 200))
    await hall.calm()  # later on nothing but the rules of the leases protects the members
    redis, veil, seconds = scene.ground.redis, scene.ground.veil, scene.span(8, 30)
    assert veil is not None
    redis.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds - 5)
        veil.target = free_port()  # nothing listens: each worker tries again at a moment of its own
        veil.close()
        redis.signal(signal.SIGCONT)
        await asyncio.sleep(5)  # what it was sent before it stopped has renewed the leases once more
    finally:
        redis.signal(signal.SIGCONT)
        veil.target = redis.port
    scene.expect(not any(guest.ends for guest in hall.members.values()), "a socket was not kept")
    well = time.monotonic() + SOON  # a worker that has been well for as long as a lease could bury others by then
    await asyncio.sleep(SOON / 2)
    one = next(iter(hall.members.values()))
    hall.gone({one.user: one})  # the watchers are not deaf
    await hall.dismiss(one)
    await hall.right("right after, s")
    await asyncio.sleep(max(0.0, well - time.monotonic()))
    await hall.judged()


async def frozen(scene: Scene) -> None:
    """A worker stands still: its members leave, and are right again when it wakes up."""
    hall = Hall(scene)
    await hall.fill(scene.scale(24, 200))
    await hall.calm()
    pid, victims = hall.victims()
    everyone = hall.members
    os.kill(pid, signal.SIGSTOP)
    started = time.monotonic()
    try:
        hall.gone(victims)
        hall.members = {user: guest for user, guest in everyone.items() if user not in victims}
        await hall.right("its members gone after, s")
        await asyncio.sleep(scene.span(12, 60) - (time.monotonic() - started))
        scene.expect(await hall.listed() == dict.fromkeys(hall.members, 1), "a frozen worker's member is listed")
    finally:
        os.kill(pid, signal.SIGCONT)
        hall.members = everyone
    await hall.right("right again after, s")
    await asyncio.sleep(scene.scale(3, 6))  # what the old incarnation has left, or says late, would show
    await scene.ground.ready()
    await hall.judged()


# -- permission


async def revoked(scene: Scene) -> None:
    """A user is revoked, tokens end and rights are taken away, each of some among many, while messages flow."""
    record = scene.channel()
    scene.write(record, 3, 1, pause=0.02)
    size = scene.scale(8, 60)
    exp = int(time.time()) - LEEWAY + scene.scale(4, 12)
    user = f"out-of-{record.channel}"  # refused for longer than this run
    stay = _guests(scene, record, "stays", size)
    less = _guests(scene, record, "less", size // 2)
    ending = _guests(scene, record, "ends", size, token=mint("ends", exp=exp))
    out = _guests(scene, record, user, size)
    try:
        scene.readers += [*stay, *less]
        await _all_here([*stay, *less, *ending, *out])
        while len({guest.worker for guest in out if guest.native}) < scene.ground.terms.workers:
            out.append(Guest(scene, record, user, f"{user} {len(out)}"))
            await _all_here(out)
        await _taken_away(scene, record, less)
        await _revoked(scene, record, out)
        await _ran_out(scene, record, ending, exp + LEEWAY)
        scene.expect(not any(guest.ends for guest in stay), "somebody else was closed")
        for guest in (*ending, *out):
            wrong = {code for code in guest.ends if code not in {4401, 4403}}
            scene.expect(not wrong, f"{guest.name} was closed with {wrong}")
        after = sum(guest.heard_after(4403) + guest.heard_after(4401) for guest in (*ending, *out))
        scene.note("messages after the close", after, 0)
    finally:
        for guest in (*ending, *out):
            await guest.stop()


def _guests(scene: Scene, record: Record, user: str, count: int, token: str | None = None) -> list[Guest]:
    """Connections of one user; every fourth is plain."""
    return [
        Guest(scene, record, user, f"{user} {number}", native=number % 4 != 3, token=token) for number in range(count)
    ]


async def _all_here(guests: Sequence[Guest]) -> None:
    async with asyncio.timeout(30):
        await asyncio.gather(*(guest.opened.wait() for guest in guests))


async def _taken_away(scene: Scene, record: Record, guests: Sequence[Guest]) -> None:
    """They come back with a token that does not name the channel, again and again; then with one that does."""

    def refused(guest: Guest) -> int:
        return guest.refused["forbidden"] + guest.refused[403]

    for guest in guests:
        guest.token = mint(guest.user, allows=ALL | {"subscribe": ["elsewhere"]})
        guest.drop()
    times, before = scene.share(3, 20), len(record.attempts)
    await scene.until(lambda: all(refused(guest) >= times for guest in guests), 30, "they are refused")
    await scene.tried(record, before + 20)
    scene.note("resumes refused", sum(refused(guest) for guest in guests))
    scene.note("replayed to them", sum(guest.events[-1] != Ended(1006) for guest in guests), 0)
    for guest in guests:
        guest.token = mint(guest.user)


async def _revoked(scene: Scene, record: Record, guests: Sequence[Guest]) -> None:
    """One user is put out of all workers and not let in again."""
    url = f"{scene.ground.service.url}/api/v1/users/{guests[0].user}/disconnect"
    async with httpx.AsyncClient(timeout=10) as client:
        asked = time.monotonic()
        answer = await client.post(url, json={"refuse_seconds": 300}, headers=ADMIN)
    scene.expect(answer.status_code == 202, f"revoking was answered with {answer.status_code}")
    await scene.until(lambda: all(guest.ends == [4403] for guest in guests), 5, "the user is out")
    scene.note("out after, s", max((guest.ended - asked for guest in guests if guest.ends), default=0.0), LATE)
    await scene.tried(record, len(record.attempts) + 50)
    await scene.until(lambda: all(guest.refused[403] > 0 for guest in guests), 10, "the user is not let in")


async def _ran_out(scene: Scene, record: Record, guests: Sequence[Guest], end: float) -> None:
    """Their tokens end at `end` (Unix seconds), leeway included."""
    await scene.until(lambda: all(guest.ends == [4401] for guest in guests), end - time.time() + 5, "tokens end")
    offset = time.time() - time.monotonic()
    moments = [guest.ended + offset - end for guest in guests if guest.ends]
    scene.note("out after the end of the token, s", max(moments, default=0.0), LATE)
    scene.expect(min(moments, default=0.0) > -1.1, f"closed {-min(moments, default=0.0):.1f} s before the end")
    await scene.tried(record, len(record.attempts) + 50)
    await scene.until(lambda: all(guest.refused[401] > 0 for guest in guests), 10, "a token that ended is refused")


FAULTS = (
    Fault(
        "presence-returns",
        "Members drop at random and return within 2 s, on other workers too",
        "one join a member, no leave",
        returns,
        ROOM,
    ),
    Fault(
        "revoked",
        "A user revoked, tokens at their end, rights taken away, while messages flow",
        "closed on time on every worker, 0 messages after, `forbidden`, nobody else touched",
        revoked,
        ROOM,
    ),
    Fault(
        "presence-killed",
        "A worker with members is killed; half of them return",
        "ghosts 0, leaves told in 6 s, none of who returned",
        worker_killed,
        ROOM,
    ),
    Fault(
        "presence-frozen",
        "A worker with members stopped (SIGSTOP) and continued",
        "its members leave in 6 s, right again in 6 s",
        frozen,
        PATIENT,
    ),
    Fault(
        "presence-outage",
        "Redis away under members: stopped (SIGSTOP), then unreachable",
        "no room emptied, no leave",
        outage,
        ROOM,
    ),
)
