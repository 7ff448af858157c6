"""A service of `tocsin.v1` in memory and a driver without a loop: the client's session in virtual time.

The service here follows docs/protocol.md: positions, resumes, keys with a window. Nothing moves by itself: a test says
which frames are carried, which are lost, and how much time passes.
"""

from __future__ import annotations

import json
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from tocsin.effects import Changed, Connect, Deliver, Drop, Ended, Opened, Renew, Send, Settle
from tocsin.errors import TocsinError
from tocsin.events import Ack, Change, Members, Page, State
from tocsin.line import Backoff, read_refusal
from tocsin.session import Session

KEY_SECONDS = 120.0
PING = 25.0
ROOM = "room"


@dataclass
class Wire:
    """One connection: frames under way in both directions."""

    up: deque[dict[str, Any]] = field(default_factory=deque)
    down: deque[dict[str, Any]] = field(default_factory=deque)
    hears: bool = False
    alive_at: float = 0.0


@dataclass
class Entry:
    """What the log holds."""

    epoch: int
    offset: int
    data: Any
    key: str | None


class Service:
    """One channel of a service.

    Attributes:
        log: what it has, in order.
        ever: what it ever had.
        trouble: how the next publishes are answered: `before` they take effect or `after`, or with `slow` down.
    """

    def __init__(self) -> None:
        self.log: list[Entry] = []
        self.ever: list[Entry] = []
        self.epoch = 1
        self.first_of_epoch = 1
        self.top = 0
        self.cleared = False
        self.keys: dict[str, tuple[str, float]] = {}
        self.wires: list[Wire] = []
        self.trouble: deque[str] = deque()

    def accept(self, now: float, **welcome: Any) -> Wire:
        """A new connection."""
        wire = Wire(alive_at=now + PING)
        wire.down.append(
            {
                "type": "welcome",
                "client": "c",
                "user": None,
                "worker": "w/1",
                "ping": PING,
                "max_data": 65_536,
                "key_seconds": KEY_SECONDS,
                "expires_at": None,
            }
            | welcome
        )
        self.wires.append(wire)
        return wire

    def identity(self, offset: int, epoch: int | None = None) -> str:
        """A position."""
        return f"{self.epoch if epoch is None else epoch:012x}-{offset}"

    def store(self, data: Any, key: str | None, now: float) -> tuple[str, bool]:
        """Append, unless the key is known: the id, and whether it was."""
        if key is not None and key in self.keys and now - self.keys[key][1] < KEY_SECONDS:
            return self.keys[key][0], True
        self.top += 1
        entry = Entry(self.epoch, self.top, data, key)
        self.log.append(entry)
        self.ever.append(entry)
        identity = self.identity(self.top)
        if key is not None:
            self.keys[key] = (identity, now)
        for wire in self.wires:
            if wire.hears:
                wire.down.append(self.frame(entry))
        return identity, False

    def frame(self, entry: Entry) -> dict[str, Any]:
        """As a push."""
        identity = self.identity(entry.offset, entry.epoch)
        return {"type": "message", "channel": ROOM, "id": identity, "data": entry.data, "from": None, "at": 0}

    def trim(self, keep: int) -> None:
        """The log forgets its oldest."""
        self.log = self.log[len(self.log) - keep :] if keep < len(self.log) else self.log

    def clear(self) -> None:
        """A new epoch begins; offsets go on."""
        self.log.clear()
        self.epoch += 1
        self.first_of_epoch = self.top + 1
        for wire in self.wires:
            if wire.hears:
                wire.down.append(
                    {"type": "gap", "channel": ROOM, "reason": "cleared", "position": self.identity(self.top)}
                )

    def serve(self, wire: Wire, now: float) -> None:
        """Take one command of a connection."""
        command = wire.up.popleft()
        ref: int = command["ref"]
        match command["type"]:
            case "subscribe":
                self._subscribe(wire, ref, command.get("since"))
            case "unsubscribe":
                wire.hears = False
                wire.down.append({"type": "unsubscribed", "ref": ref, "channel": ROOM})
            case "publish":
                self._publish(wire, ref, command, now)
            case "authenticate":
                wire.down.append({"type": "authenticated", "ref": ref, "user": "ada", "expires_at": None})
            case other:
                raise AssertionError(other)

    def _publish(self, wire: Wire, ref: int, command: dict[str, Any], now: float) -> None:
        trouble = self.trouble.popleft() if self.trouble else ""
        if trouble == "slow":
            wire.down.append(error(ref, "rate_limited", 0.01))
            return
        if trouble != "before":
            identity, duplicate = self.store(command["data"], command.get("key"), now)
            if not trouble:
                wire.down.append({"type": "published", "ref": ref, "id": identity, "duplicate": duplicate})
                return
        wire.down.append(error(ref, "unavailable", 1.0))

    def _subscribe(self, wire: Wire, ref: int, since: str | None) -> None:
        assert not wire.hears, "subscribed twice"
        wire.hears = True
        answer: dict[str, Any] = {"type": "subscribed", "ref": ref, "channel": ROOM}
        if since is None:
            wire.down.append(answer | {"position": self.identity(self.top), "recovered": None, "replayed": 0})
            return
        epoch, _, offset = since.rpartition("-")
        missed = [entry for entry in self.log if entry.offset > int(offset)]
        if int(epoch, 16) != self.epoch or int(offset) > self.top:
            reason = "diverged"
        elif len(missed) != self.top - int(offset):
            reason = "expired"
        else:
            wire.down.append(answer | {"position": since, "recovered": True, "replayed": len(missed)})
            wire.down.extend(map(self.frame, missed))
            return
        position = self.identity(self.top)
        wire.down.append(answer | {"position": position, "recovered": False, "replayed": 0, "reason": reason})


def error(ref: int, code: str, retry_after: float | None = None) -> dict[str, Any]:
    """An answer that refuses."""
    return {"type": "error", "ref": ref, "code": code, "message": code, "retry_after": retry_after}


class Player:
    """Drives one session by hand.

    Attributes:
        now: virtual seconds.
        heard: what was delivered.
        settled: what came of each command.
        changes: states of the connection.
        dialing: the session wants a connection.
        renewing: it wants a token.
        sent: every command, over all connections.
    """

    def __init__(self, *, seed: int = 0, wall: bool = False, outbox: int = 1000) -> None:
        self.now = 1000.0
        self.service = Service()
        chance = random.Random(seed)
        clock = (lambda: 1_790_000_000 + self.now) if wall else None
        self.session = Session(backoff=Backoff(), chance=chance, outbox=outbox, wall=clock)
        self.wire: Wire | None = None
        self.heard: list[Any] = []
        self.settled: dict[int, Ack | Page | Members | TocsinError] = {}
        self.ended: dict[str, TocsinError | None] = {}
        self.opened: list[str] = []
        self.changes: list[Change] = []
        self.sent: list[dict[str, Any]] = []
        self.dialing = False
        self.renewing = False
        self.session.start(self.now)
        self.act()

    def act(self) -> None:
        """Perform the effects."""
        for effect in self.session.effects():
            match effect:
                case Connect():
                    assert not self.dialing
                    assert self.wire is None
                    self.dialing = True
                case Send(data):
                    assert isinstance(data, str)
                    assert self.wire is not None, "sent without a connection"
                    self.sent.append(json.loads(data))
                    self.wire.up.append(self.sent[-1])
                case Drop():
                    self.dialing = False
                    self.cut(report=False)
                case Renew():
                    self.renewing = True
                case Changed(change):
                    self.changes.append(change)
                case Opened(channel):
                    self.opened.append(channel)
                case Deliver(_, event):
                    self.heard.append(event)
                case Ended(channel, why):
                    self.ended[channel] = why
                case Settle(ref, outcome):
                    assert ref not in self.settled, "settled twice"
                    self.settled[ref] = outcome

    # The network

    def wait(self) -> None:
        """Time passes until it wants to connect."""
        while not self.dialing:
            deadline = self.session.deadline
            assert deadline is not None
            self.advance(max(0.0, deadline - self.now))

    def accept(self, **welcome: Any) -> None:
        """The upgrade succeeds."""
        assert self.dialing
        self.dialing = False
        self.wire = self.service.accept(self.now, **welcome)
        self.session.connected(self.now)
        self.act()

    def refuse(self, status: int, retry_after: str | None = None, **given: Any) -> None:
        """The upgrade is answered by HTTP."""
        assert self.dialing
        self.dialing = False
        self.session.refused(read_refusal(status, {"error": given} if given else None, retry_after), self.now)
        self.act()

    def fail(self) -> None:
        """Nobody answers."""
        assert self.dialing
        self.dialing = False
        self.session.failed("nobody is there", self.now)
        self.act()

    def cut(self, code: int = 1006, reason: str = "", *, report: bool = True) -> None:
        """The connection ends; what is under way is lost."""
        if self.wire is None:
            return
        self.service.wires.remove(self.wire)
        self.wire = None
        if report:
            self.session.closed(code, reason, self.now)
            self.act()

    def carry_up(self, count: int = 10_000) -> None:
        """The service takes so many commands."""
        while count and self.wire is not None and self.wire.up:
            self.service.serve(self.wire, self.now)
            count -= 1

    def carry_down(self, count: int = 10_000) -> None:
        """The client takes so many frames."""
        while count and self.wire is not None and self.wire.down:
            self.session.receive(json.dumps(self.wire.down.popleft()), self.now)
            self.act()
            count -= 1

    def carry(self) -> None:
        """Everything, both ways, until nothing is under way."""
        while self.wire is not None and (self.wire.up or self.wire.down):
            self.carry_up()
            self.carry_down()

    def push(self, **frame: Any) -> None:
        """A frame of the test's own, at once."""
        self.session.receive(json.dumps(frame), self.now)
        self.act()

    def advance(self, seconds: float) -> None:
        """Time passes; the session is woken when it has asked for it, and the service gives signs of life."""
        end = self.now + seconds
        woken = 0
        while True:
            deadline = self.session.deadline
            alive = self.wire.alive_at if self.wire is not None else None
            due = min([time for time in (deadline, alive) if time is not None], default=end + 1)
            if due > end:
                self.now = end
                return
            woken = woken + 1 if due <= self.now else 0
            assert woken < 10, "it asks to be woken again and again"
            self.now = max(self.now, due)
            if self.wire is not None and alive is not None and alive <= self.now:
                self.wire.down.append({"type": "alive"})
                self.wire.alive_at += PING
            self.session.tick(self.now)
            self.act()

    def live(self, seconds: float) -> None:
        """Time passes on a connection that carries."""
        for _ in range(round(seconds)):
            self.advance(1)
            self.carry_down()

    # What tests do often

    def open(self, **welcome: Any) -> None:
        """Connect and be welcomed."""
        self.wait()
        self.accept(**welcome)
        self.carry()
        assert self.session.state is State.OPEN

    def join(self, **options: Any) -> None:
        """Subscribe to the channel."""
        self.session.subscribe(ROOM, **options)
        self.act()
        self.carry()

    def publish(self, data: Any, *, timeout: float | None = None, **options: Any) -> int:
        """Publish; returns the ref."""
        ref = self.session.publish(self.session.draft(ROOM, data, **options), self.now, timeout=timeout)
        self.act()
        return ref

    def heal(self) -> None:
        """Everything works again, for long enough."""
        self.service.trouble.clear()
        for _ in range(100):
            if self.dialing:
                self.accept()
            self.carry()
            if self.session.state is State.OPEN and not self.session.expecting and self.wire is not None:
                self.advance(1)
                self.carry()
                if not self.session.pending:
                    return
            self.advance(31)
            self.carry()
        raise AssertionError("it does not heal")
