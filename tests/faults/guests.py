"""Clients with a token, who may be members of a room or watch it, and a hall full of them."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from typing import Any

import jwt
import websockets
from websockets.asyncio.client import ClientConnection, connect

from tests.faults.attendance import Attendance, Changed, Departure, Listed, Wrong, judge
from tests.faults.clients import Reader, open_socket
from tests.faults.record import Ended, Heard, Record
from tests.faults.scene import Scene, Terms

SECRET = "a secret of thirty-two bytes or more, for tests"
ADMIN = {"x-api-key": "a" * 20}
SETTINGS = (
    ("jwt_secret", SECRET),
    ("api_keys", json.dumps({"ops": {"key": ADMIN["x-api-key"], "admin": True}})),
    ("allow_anonymous", "true"),
)
ROOM = Terms(workers=3, veiled=True, settings=SETTINGS)
ALL = {verb: ["*"] for verb in ("publish", "subscribe", "history", "presence")}
GRACE = 2.0
"""Seconds for which a member may be away without leaving."""
SOON = 6.0
"""Seconds in which who is gone with its worker has left, and in which a worker that wakes up is right again."""
CALM = 10.0
"""Seconds from the beginning of a Redis's reign in which nobody is declared dead."""


def mint(user: str, *, exp: float | None = None, allows: dict[str, list[str]] | None = None) -> str:
    """A token; it ends in an hour or at `exp` (Unix seconds)."""
    end = int(time.time() + 3600 if exp is None else exp)
    return jwt.encode({"sub": user, "exp": end, "tocsin": ALL if allows is None else allows}, SECRET, "HS256")


class Guest(Reader):
    """A reader with a token. As a member it is in the room, as a watcher it notes who comes and leaves.

    Attributes:
        user: who it is, and the name of the member.
        token: shown at the next connection.
        worker: of the present or last connection.
        refused: answers to handshakes and subscribes that failed, by HTTP status or code.
        ended: when the last connection ended, seconds of the monotonic clock.
        moves: returns to another worker; `late`: those after more than the grace.
    """

    def __init__(
        self,
        scene: Scene,
        record: Record,
        user: str,
        name: str = "",
        *,
        room: Attendance | None = None,
        member: bool = False,
        native: bool = True,
        token: str | None = None,
    ) -> None:
        self.user = user
        self.token = token or mint(user)
        self.worker = ""
        self.refused: Counter[int | str] = Counter()
        self.ended = 0.0
        self.moves = self.late = 0
        self._room = room
        self._member = member
        self._lost: float | None = None
        base = f"ws://127.0.0.1:{scene.ground.service.port}/ws"
        url = base if native else f"{base}?channel={record.channel}"
        super().__init__(record, name or user, url, scene.chance, native=native)

    def drop(self) -> None:
        """Lose the connection as by a cut, and return soon."""
        self._lost = self._lost or time.monotonic()
        super().drop()

    def heard_after(self, code: int) -> int:
        """Messages that came behind the first end with this close code, on whatever connection."""
        events = self.events
        ends = [index for index, event in enumerate(events) if event == Ended(code)]
        return sum(isinstance(event, Heard) for event in events[ends[0] :]) if ends else 0

    def _connect(self) -> connect:
        return open_socket(self._url, native=self.native, token=self.token)

    def _command(self) -> dict[str, Any]:
        wish: dict[str, Any] = {} if self._room is None else {"presence": {"info": {}} if self._member else "watch"}
        return super()._command() | wish

    def _on_end(self, error: BaseException) -> None:
        if isinstance(error, websockets.InvalidStatus):
            self.refused[error.response.status_code] += 1
        if self.opened.is_set():
            self.ended = time.monotonic()
            self._lost = self._lost or self.ended
        super()._on_end(error)

    def _take(self, frame: dict[str, Any], socket: ClientConnection) -> None:
        now = time.monotonic()
        match frame["type"]:
            case "welcome":
                self.moves += bool(self.worker) and self.worker != frame["worker"]
                self.worker = frame["worker"]
            case "error":
                self.refused[frame["code"]] += 1
            case "subscribed" if self._room is not None and self._member:
                self._be_back(now, self._room)
            case "subscribed" if self._room is not None:
                assert frame["count"] == len(frame["members"]), "a watcher comes to a room of one page at most"
                self._room.tell(self.name, Listed(now, names(frame["members"])))
            case "presence" if self._room is not None and not self._member:
                joined, left = names(frame["joined"]), names(frame["left"])
                self._room.tell(self.name, Changed(now, tuple(joined), tuple(left), frame["count"]))
            case _:
                pass
        super()._take(frame, socket)

    def _be_back(self, now: float, room: Attendance) -> None:
        lost, self._lost = self._lost, None
        if lost is not None and now - lost > GRACE:
            self.late += 1
            room.departures.append(Departure(self.user, lost))


def names(members: list[dict[str, Any]]) -> frozenset[str]:
    """Who they are."""
    return frozenset(one["member"] for one in members)


class Hall:
    """A room with members on every worker and two who watch it, while messages flow.

    Attributes:
        members: who is in the room, by user.
        watchers: who is told.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.record = scene.channel()
        self.room = Attendance()
        self.members: dict[str, Guest] = {}
        self.watchers: list[Guest] = []
        self._named = 0

    async def fill(self, count: int) -> None:
        """Watchers first, then members, and a writer."""
        scene = self.scene
        self.watchers = [Guest(scene, self.record, f"watcher-{number}", room=self.room) for number in range(2)]
        await self._come(self.watchers)
        await self.admit(count)
        scene.write(self.record, 1, pause=0.1)

    async def admit(self, count: int) -> None:
        """Members until there are so many or more, and some on each worker: the kernel chooses the worker."""
        while len(self.members) < count or len(self._workers()) < self.scene.ground.terms.workers:
            more = []
            for _ in range(min(10, max(1, count - len(self.members)))):
                guest = Guest(self.scene, self.record, f"user-{self._named}", room=self.room, member=True)
                self._named += 1
                self.members[guest.user] = guest
                more.append(guest)
            await self._come(more)
        await self.scene.until(lambda: self.room.believed(set(self.members)), SOON, "everybody is seen")

    async def _come(self, guests: list[Guest]) -> None:
        self.scene.readers += guests
        async with asyncio.timeout(30):
            for guest in guests:
                await guest.opened.wait()

    def _workers(self) -> set[str]:
        return {guest.worker for guest in self.members.values()}

    async def calm(self) -> None:
        """Wait until a worker may be declared dead: Redis has led for a while."""
        now, _ = self.scene.ground.command("TIME")
        since = self.scene.ground.command("GET", "tocsin:{workers}:reign").split()[1]
        await asyncio.sleep(max(0.0, CALM + int(since) / 1000 - int(now)))

    def victims(self) -> tuple[int, dict[str, Guest]]:
        """A worker without a watcher, as a process id, and its members."""
        worker = min(self._workers() - {watcher.worker for watcher in self.watchers})
        guests = {user: guest for user, guest in self.members.items() if guest.worker == worker}
        port = next(iter(guests.values())).port
        found = None if port is None else self.scene.ground.service.pid_serving(port)
        assert found is not None
        return found, guests

    def gone(self, guests: dict[str, Guest], within: float | None = SOON) -> None:
        """From now on these are away; each watcher has to be told in so many seconds."""
        now = time.monotonic()
        self.room.departures += [Departure(user, now, within) for user in guests]

    async def dismiss(self, guest: Guest) -> None:
        """One leaves for good."""
        del self.members[guest.user]
        self.scene.readers.remove(guest)
        await guest.stop()

    async def listed(self) -> dict[str, int]:
        """Connections of each member, by REST."""
        found: dict[str, int] = {}
        cursor: str | None = None
        while True:
            path = f"/api/v1/channels/{self.record.channel}/members"
            query = {"limit": "1000"} if cursor is None else {"limit": "1000", "cursor": cursor}
            answer = await asyncio.to_thread(self.scene.ground.service.get, path, params=query)
            page = answer.raise_for_status().json()
            found |= {one["member"]: one["clients"] for one in page["members"]}
            cursor = page["cursor"]
            if cursor is None:
                return found

    async def right(self, what: str, seconds: float = SOON) -> None:
        """Wait until watchers and REST tell of just the members. Notes the seconds it took."""
        started = time.monotonic()
        here = dict.fromkeys(self.members, 1)
        while not self.room.believed(set(here)) or await self.listed() != here:
            if time.monotonic() - started > seconds:
                break
            await asyncio.sleep(0.1)
        self.scene.note(what, time.monotonic() - started, seconds)

    async def judged(self) -> None:
        """What watchers and REST tell now is judged; a later push would come too late."""
        self.room.here = dict.fromkeys(self.members, 1)
        self.room.listed = await self.listed()
        finding = judge(self.room)
        if finding.slowest:
            self.scene.note("leaves told after, s", finding.slowest)
        for wrong in Wrong:
            self.scene.note(str(wrong), finding.found[wrong])
        self.scene.outcome.broken += finding.samples
