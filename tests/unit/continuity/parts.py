"""What the simulation is made of: clients, workers, requests. Values and bare state; `audience` and `world` act."""

from __future__ import annotations

from dataclasses import dataclass

from app.core.continuity import ChannelState, Follower, Gap, Mode, Resumed, Sync
from app.core.messages import Position, Publication
from tests.unit.continuity.store import Answer, Item


class Client:
    """One client: what it has handled, and what has been written to it.

    Attributes:
        stage: off, asking, following (it has a follower) or member (of its worker's group).
        joined: position with which it entered its group.
        asked_at: step at which it asked.
        since: the id that it would resume from.
        node: of the last message handled; None: it does not care what came before.
        sent, named: node of the last message written to it, and the last id.
        announced: node of the last message that a `recovered: true` announced. Should the store lose it before it is
            sent, the client is not told: it has never seen it.
        missing: messages still to come until then.
        owed: it must be told of a clear.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.worker: Worker | None = None
        self.stage = "off"
        self.follower: Follower | None = None
        self.joined: Position | None = None
        self.token = 0
        self.asked_at = 0
        self.waiting = False
        self.since: Position | None = None
        self.node: int | None = None
        self.sent: int | None = None
        self.named: Position | None = None
        self.seen: set[Position] = set()
        self.inbox: list[Publication | Gap | Resumed] = []
        self.stalled = False
        self.announced: int | None = None
        self.missing = 0
        self.owed = False


@dataclass(frozen=True, slots=True)
class Check:
    """A periodic check, with where the channel stood when it was sent."""

    epoch: str
    position: Position


@dataclass(frozen=True, slots=True)
class Ask:
    """A client's subscribe, or the next page of one who follows.

    Attributes:
        token: of the subscription; an answer to an earlier one is dropped.
        position: None: where does the channel stand?
        page: the next page of a follower; else a subscribe.
        history: begin with the newest messages.
        eager: the reading that judged also serves as the first page.
    """

    client: Client
    token: int
    position: Position | None
    page: bool = False
    history: bool = False
    eager: bool = False


@dataclass(slots=True)
class Request:
    """A command on its way; `answer` counts once it is `executed` (None: an error)."""

    purpose: Sync | Check | Ask
    executed: bool = False
    answer: Answer | None = None


class Worker:
    """One worker: two connections, the channel, what is due to its group.

    Attributes:
        reader, commands: index of the server at the other end.
        linked: the reader's connection stands.
        queue, old: live messages on their way on the reader's connection, and on replaced ones.
        retry: a sync that failed.
        written: up to where the group has been given everything.
        pending: delivered, not yet written.
        ring: what was written last, and the position before it.
        seen: the answer to the last check.
        shared: positive answers that others may use.
    """

    def __init__(self, state: ChannelState) -> None:
        self.state = state
        self.reader = 0
        self.commands = 0
        self.linked = True
        self.queue: list[Item] = []
        self.old: list[Item] = []
        self.requests: list[Request] = []
        self.retry: Sync | None = None
        self.written: Position | None = None
        self.pending: list[Publication] = []
        self.ring: list[Publication] = []
        self.ring_before: Position | None = None
        self.seen: Answer | None = None
        self.shared: dict[Position, Answer] = {}
        self.lazy = False
        self.holding = False
        self.proved: tuple[Position | None, str] = (None, "")

    @property
    def live(self) -> bool:
        """Whether what arrives is delivered."""
        return self.state.mode is Mode.LIVE
