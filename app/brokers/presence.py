"""Presence on Redis: two hashes a room and a set of rooms an incarnation. What is done to them is in the scripts.

`{workers}` is a slot of its own, so that no step touches a room and an incarnation at once: the room is registered
first, and what is left over is found again.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from app.brokers import Attendee, Fate, Look, Roll
from app.brokers.commands import away
from app.brokers.envelope import read_member
from app.brokers.scripts import Argument
from app.core.errors import BadRequest
from app.core.messages import Member, PresencePage

Script = Callable[[str, Sequence[Argument], Sequence[Argument]], Awaitable[Any]]
"""Runs `lua/<name>.lua` with keys and arguments; raises `Unavailable`."""

BATCH = 500
"""Joins and leaves in one call at most; clients in one call of `absent`; rooms in one of `register` and `estate`."""
STEP = 1_000
"""Clients of a room that one call of a reaper looks at (about)."""
ROLLS = 2_000
"""Members in one answer of `rolls`, after which it ends."""
CLAIM_MS = 3_000
DAY_MS = 86_400_000
_CURSOR = re.compile(r"([0-9]{1,20})(?:\.(.*))?", re.DOTALL)


class RedisPresence:
    """`Presence` on one Redis; see there for the guarantees.

    Args:
        script: `RedisBroker.script`.
        prefix: of all keys and Pub/Sub channels.
    """

    def __init__(self, script: Script, prefix: str) -> None:
        self._script = script
        self._prefix = prefix
        self._workers = f"{prefix}:{{workers}}"

    async def attend(self, room: str, incarnation: str, joins: Sequence[Attendee], leaves: Sequence[str]) -> None:
        """See `Presence`."""
        arguments: list[Argument] = [self._channel(room), incarnation, DAY_MS, len(joins)]
        for one in joins:
            arguments += (one.client, one.member, one.info)
        await self._script("attend", self._keys(room), [*arguments, *leaves])

    async def absent(self, incarnation: str, attendees: Sequence[tuple[str, Attendee]]) -> Look:
        """See `Presence`."""
        absent: list[int] = []
        strangers: list[tuple[str, str]] = []
        for start in range(0, len(attendees), BATCH):
            keys: list[Argument] = []
            arguments: list[Argument] = [incarnation, DAY_MS]
            for room, one in attendees[start : start + BATCH]:
                keys += self._keys(room)
                arguments += (one.client, one.member, one.info)
            numbers, others = await self._script("absent", keys, arguments)
            absent += [start + number - 1 for number in numbers]
            for number, client in zip(others[::2], others[1::2], strict=True):
                strangers.append((attendees[start + number - 1][0], client.decode("utf-8", "replace")))
        asked = {(room, one.client) for room, one in attendees}
        return Look(absent, [one for one in dict.fromkeys(strangers) if one not in asked])

    async def members(self, room: str, limit: int, cursor: str | None) -> PresencePage:
        """See `Presence`."""
        at = read_cursor(cursor)
        members: list[Member] = []
        while True:
            reply = await self._script("members", self._keys(room)[1:], [limit - len(members), *at])
            scan, name, count, flat, cut = reply
            members += _read_flat(flat)
            at = (scan, name) if cut else (scan,)
            if cut or scan == b"0" or len(members) >= limit:
                return PresencePage(tuple(members), count, None if at == (b"0",) else write_cursor(at))

    async def rolls(self, rooms: Sequence[str], limit: int) -> list[Roll]:
        """See `Presence`."""
        rolls: list[Roll] = []
        while len(rolls) < len(rooms):
            due = rooms[len(rolls) : len(rolls) + BATCH]
            replies = await self._script("rolls", [self._keys(room)[1] for room in due], [limit, ROLLS])
            rolls += [Roll(count, None if count > limit else _read_flat(flat)) for count, *flat in replies]
        return rolls

    async def register(self, incarnation: str, rooms: Sequence[str], *, here: bool) -> None:
        """See `Presence`."""
        for start in range(0, len(rooms), BATCH):
            arguments = ["SADD" if here else "SREM", DAY_MS, *rooms[start : start + BATCH]]
            await self._script("register", [f"{self._workers}:rooms:{incarnation}"], arguments)

    async def bury(self, incarnation: str, by: str) -> Fate:
        """See `Presence`."""
        keys = ("dead", f"lease:{incarnation}", "reign", f"reaper:{incarnation}")
        reply = await self._script("bury", [f"{self._workers}:{key}" for key in keys], [incarnation, by, CLAIM_MS])
        return Fate(reply.decode())

    async def estate(self, incarnation: str, done: Sequence[str]) -> list[str]:
        """See `Presence`."""
        keys = [f"{self._workers}:rooms:{incarnation}", f"{self._workers}:all"]
        return [room.decode() for room in await self._script("estate", keys, [incarnation, BATCH, *done])]

    async def reap(self, room: str, incarnation: str) -> int:
        """See `Presence`."""
        removed, cursor = 0, b"0"
        while True:
            arguments: list[Argument] = [self._channel(room), incarnation, cursor, STEP]
            cursor, count = await self._script("reap", self._keys(room), arguments)
            removed += int(count)
            if cursor == b"0":
                return removed

    def _channel(self, room: str) -> str:
        return f"{self._prefix}:{{{room}}}"

    def _keys(self, room: str) -> tuple[str, str]:
        return f"{self._prefix}:{{{room}}}:members", f"{self._prefix}:{{{room}}}:users"


def read_cursor(cursor: str | None) -> tuple[bytes, ...]:
    """`<cursor of HSCAN>`, and after a point the name of the last member that was given of what it gives.

    Raises:
        BadRequest: it is none of ours.
    """
    match = _CURSOR.fullmatch("0" if cursor is None else cursor)
    if match is None or int(match[1]) >= 2**64:
        raise BadRequest("a cursor is taken from the page before, unchanged")
    try:
        return tuple(part.encode() for part in match.groups() if part is not None)
    except UnicodeEncodeError:
        raise BadRequest("a cursor is taken from the page before, unchanged") from None


def write_cursor(at: tuple[bytes, ...]) -> str:
    """What `read_cursor` reads."""
    return b".".join(at).decode("utf-8", "replace")


def _read_flat(flat: list[Any]) -> tuple[Member, ...]:
    """member, clients, info, member, ...

    Raises:
        Unavailable: somebody has written into our keys.
    """
    try:
        return tuple(
            read_member(flat[at].decode("utf-8", "replace"), int(flat[at + 1]), flat[at + 2])
            for at in range(0, len(flat), 3)
        )
    except (ValueError, AttributeError, IndexError):
        raise away("the store holds something else than what we wrote") from None
