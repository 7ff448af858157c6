"""What was tried, acknowledged, delivered and announced in one channel: the only thing that the checker sees."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Began:
    """A subscribe was answered, or a plain socket was opened (then all fields are empty).

    Attributes:
        position: where the client stands before the messages that follow.
        since: what it asked for.
        recovered: True: exactly the missed ones follow; False: it is told of a loss; None: no `since` given.
        replayed: how many messages are announced.
        reason: of a loss.
    """

    position: str | None = None
    since: str | None = None
    recovered: bool | None = None
    replayed: int = 0
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Heard:
    """A message was delivered, or stands in the log. A plain socket sees no id."""

    id: str | None
    payload: str


@dataclass(frozen=True, slots=True)
class Told:
    """A gap was announced; the client goes on from `position`."""

    reason: str
    position: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The connection is gone (close code, RFC 6455 section 7.4; 1006 when it was cut)."""

    code: int


Event = Began | Heard | Told | Ended


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A publish was answered with an id."""

    payload: str
    id: str
    duplicate: bool = False


@dataclass(slots=True)
class Record:
    """One channel, from before the first publish until after the last delivery.

    Payloads are unique: each names one message that somebody meant to publish once.

    Attributes:
        kept: messages that the log keeps at least.
        attempts: every payload that was tried, with how often.
        acknowledged: every answer with an id.
        clients: what each client saw, in its order.
        present: clients that were there at the end and must have heard the last message.
        log: the log at the end, oldest first, read by REST.
        witnessed: what each server told of the channel, by port: the ids of what only plain sockets may have heard.
        may_lose: the store was made to lose what it had acknowledged.
        forgiven: reasons of resets that the fault justifies for anyone.
    """

    channel: str = "channel"
    kept: int = 100_000
    attempts: dict[str, int] = field(default_factory=dict)
    acknowledged: list[Acknowledged] = field(default_factory=list)
    clients: dict[str, list[Event]] = field(default_factory=dict)
    present: set[str] = field(default_factory=set)
    log: list[Heard] = field(default_factory=list)
    witnessed: dict[int, list[Heard]] = field(default_factory=dict)
    may_lose: bool = False
    forgiven: frozenset[str] = frozenset()
    _shared: dict[tuple[str | None, str], Heard] = field(default_factory=dict, repr=False)

    def tried(self, payload: str) -> None:
        """One more attempt to publish."""
        self.attempts[payload] = self.attempts.get(payload, 0) + 1

    def heard(self, identity: str | None, payload: str) -> Heard:
        """The one object for this delivery: a long run has millions."""
        found = self._shared.get((identity, payload))
        if found is None:
            found = self._shared[identity, payload] = Heard(identity, payload)
        return found

    def starts(self) -> list[Began]:
        """Every answered subscribe, of all clients."""
        return [event for events in self.clients.values() for event in events if isinstance(event, Began)]

    def resumes(self) -> list[Began]:
        """Every answered subscribe with `since`."""
        return [event for event in self.starts() if event.since is not None]

    def deliveries(self) -> int:
        """Messages delivered, over all clients."""
        return sum(isinstance(event, Heard) for events in self.clients.values() for event in events)

    def resets(self) -> int:
        """How often a client was told that it has not everything."""
        told = sum(
            isinstance(event, Told) or event == Ended(4510) for events in self.clients.values() for event in events
        )
        return told + sum(began.recovered is False for began in self.starts())
