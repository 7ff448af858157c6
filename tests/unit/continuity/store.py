"""The store as a model: a primary, a replica that follows it asynchronously, and everything that may befall them.

It follows CONTINUITY (settle, publish, sync, clear) as the scripts do, one call being one step. A rule of the store can
be taken away (`StoreRules`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from app.core.continuity import Reading, Verdict
from app.core.messages import Cleared, Kind, Position, Publication
from tests.unit.continuity.oracle import NEUTRAL, ROOT, Oracle

MAXLEN = 6
PAGE = 2
HISTORY = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRules:
    """The rules that the scripts keep.

    Attributes:
        epoch: `fresh`: new and random at every start; `replid`: named after the server; `reuse`: the candidate of a
            failed try is used again by its retry.
        epoch_on_subscribe: an empty channel gets an epoch when it is first read.
        orphan_removed: without meta, what is left of the log is removed first.
        pages_prove: a page proves (epoch, offset), not the offset alone.
        primary_only: reads refuse to run on a replica.
        reads_settle: a read settles the epoch as a publish does.
        clear_is_epoch: a clear begins an epoch and cuts the lineage; else it only empties the log and says so.
        keep_label: the top is named by the epoch of its message, not by the newest one.
        lineage: how many epochs are kept at most.
    """

    epoch: Literal["fresh", "replid", "reuse"] = "fresh"
    epoch_on_subscribe: bool = True
    orphan_removed: bool = True
    pages_prove: bool = True
    primary_only: bool = True
    reads_settle: bool = True
    clear_is_epoch: bool = True
    keep_label: bool = True
    lineage: int = 64


class Meta(NamedTuple):
    """The hash beside the log."""

    top: int
    epoch: str
    server: str
    lineage: tuple[tuple[str, int], ...]
    tail: str
    cleared: str | None


class State(NamedTuple):
    """What one server holds of the channel; `node` is the oracle's name for it."""

    meta: Meta | None = None
    log: tuple[Publication, ...] = ()
    keys: tuple[tuple[str, Position], ...] = ()
    node: int = ROOT
    virgin: bool = True


class Answer(NamedTuple):
    """A reading with what only the oracle may know: who gave it in which reign, at which node, at which step."""

    reading: Reading
    server: int
    reign: int
    node: int
    begun: int


Item = Publication | Cleared


class Server:
    """One Redis: its state, its history (what a replica or a truncated file sees), its name, its reign."""

    def __init__(self, index: int, replid: str) -> None:
        self.index = index
        self.replid = replid
        self.primary = index == 0
        self.reign = 0
        self.state = State()
        self.source: str | None = None
        self.applied = 0
        self.history: list[tuple[State, tuple[Item, ...]]] = [(self.state, ())]

    def begin(self, state: State) -> None:
        """A history begins here."""
        self.state = state
        self.history = [(state, ())]


class Store:
    """Two servers, one of them the leader. `hear(server, item)` is told what a server's subscribers would be sent."""

    def __init__(self, rules: StoreRules, oracle: Oracle, hear: Callable[[int, Item], None]) -> None:
        self.rules = rules
        self.oracle = oracle
        self._hear = hear
        self._names = 0
        self.step = 0
        self.candidate = "x0"
        self.servers = [Server(0, self.name("r")), Server(1, "")]
        self.servers[1].replid = self.servers[1].source = self.servers[0].replid
        self.leader = 0

    def name(self, prefix: str) -> str:
        """A name that nobody else has."""
        self._names += 1
        return f"{prefix}{self._names}"

    @property
    def leading(self) -> Server:
        """The leader."""
        return self.servers[self.leader]

    @property
    def other(self) -> Server:
        """The one that is not the leader: a replica, or an old primary that does not know it yet."""
        return self.servers[1 - self.leader]

    # -- scripts

    def publish(self, server: Server, payload: bytes, key: str, *, retry: bool) -> Position | None:
        """Append a message. None: refused."""
        if not server.primary:
            return None
        known = dict(server.state.keys).get(key)
        if known is not None:
            return known
        if self.rules.epoch != "reuse" or not retry:
            self.candidate = self.name("x")
        state = self._settle(server)
        meta = state.meta
        assert meta is not None
        position = Position(meta.epoch, meta.top + 1)
        if state.log and self._offset(state.log[-1]) > meta.top:
            return None
        node = self.oracle.published(position, state.node, key)
        publication = Publication(position, Kind.TEXT, payload, b"%d" % node)
        meta = meta._replace(top=position.offset, tail=meta.epoch)
        log = (*state.log, publication)[-MAXLEN:]
        self._write(server, State(meta, log, (*state.keys, (key, position)), node, False), publication)
        return position

    def read(self, server: Server, asked: Position | None, *, limit: int = PAGE, proves: bool = True) -> Answer | None:
        """Judge a position and read what follows. None: refused."""
        state = self._readable(server)
        if state is None:
            return None
        meta = state.meta or Meta(0, "", "", (("", 1),), "", None)
        tail = meta.tail if self.rules.keep_label else meta.epoch
        verdict, page = Verdict.NEW, state.log[:0]
        if asked is not None:
            verdict = self._judge(meta, state.log, asked, proves=proves or self.rules.pages_prove)
            if verdict is Verdict.OK:
                page = tuple(item for item in state.log if self._offset(item) > asked.offset)[:limit]
        reading = Reading(verdict, meta.epoch, meta.top, tail, meta.lineage, meta.cleared, page)
        return Answer(reading, server.index, server.reign, state.node, self.step)

    def newest(self, server: Server, limit: int) -> Answer | None:
        """Read the newest messages, as the history of a new subscription begins with. None: refused."""
        state = self._readable(server)
        if state is None or state.meta is None:
            return None
        meta = state.meta
        reading = Reading(Verdict.NEW, meta.epoch, meta.top, meta.tail, meta.lineage, meta.cleared, state.log[-limit:])
        return Answer(reading, server.index, server.reign, state.node, self.step)

    def clear(self, server: Server) -> None:
        """Forget the log."""
        state = self._settle(server)
        meta = state.meta
        assert meta is not None
        if not self.rules.clear_is_epoch:
            self._write(server, state._replace(log=()), Cleared(Position(meta.epoch, meta.top)))
            return
        node = self.oracle.root()
        self.oracle.clears.add(node)
        epoch = self.name("e")
        self.oracle.minted(epoch, meta.top, node, (server.index, server.reign))
        meta = meta._replace(epoch=epoch, lineage=((epoch, meta.top + 1),), tail=epoch, cleared=epoch)
        self._write(server, state._replace(meta=meta, log=(), node=node), Cleared(Position(epoch, meta.top)))

    # -- what befalls servers

    def replicate(self, steps: int) -> None:
        """The other server, if it is a replica, follows the leader by some steps, or begins to."""
        leader, replica = self.leading, self.other
        if replica.primary:
            return
        if replica.source != leader.replid:
            replica.begin(leader.state)
            replica.applied = len(leader.history) - 1
            replica.source = replica.replid = leader.replid
            return
        for state, items in leader.history[replica.applied + 1 : replica.applied + 1 + steps]:
            replica.applied += 1
            self._write(replica, state, *items)

    def fail_over(self) -> None:
        """The replica is promoted; the old primary goes on alone."""
        if not self.other.primary:
            self.other.primary = True
            self._reign(self.other, renamed=True)

    def demote(self) -> None:
        """The old primary becomes a replica, and has not followed yet."""
        if self.other.primary:
            self.other.primary = False
            self.other.source = None

    def lead_again(self) -> None:
        """The leader dies; the isolated old primary, which never stopped, is the leader again."""
        if self.other.primary:
            self._reign(self.other, renamed=False)

    def promote_again(self) -> None:
        """The old primary was demoted and is promoted before it could follow."""
        if self.other.primary:
            self._reign(self.other, renamed=True)

    def restart(self, lost: int) -> None:
        """The leader restarts from a file whose last writes are missing."""
        kept = self.leading.history[max(0, len(self.leading.history) - 1 - lost)][0]
        self.leading.begin(kept)
        self._reign(self.leading, renamed=True)

    def flush_all(self) -> None:
        """FLUSHALL."""
        if self.leading.state.meta is not None:
            self._write(self.leading, State(node=self.leading.state.node, virgin=False))

    def expire_log(self) -> None:
        """The log's TTL ends."""
        self._write(self.leading, self.leading.state._replace(log=()))

    def expire_meta(self, *, log_too: bool) -> None:
        """The TTL of meta ends, or somebody deletes it."""
        state = self.leading.state
        if state.meta is not None:
            self._write(self.leading, state._replace(meta=None, log=() if log_too else state.log))

    # -- inside

    @staticmethod
    def _offset(item: Publication) -> int:
        assert item.position is not None
        return item.position.offset

    def _reign(self, server: Server, *, renamed: bool) -> None:
        server.reign += 1
        self.leader = server.index
        if renamed:
            server.replid = self.name("r")
            server.begin(server.state)

    def _write(self, server: Server, state: State, *items: Item) -> None:
        server.state = state
        server.history.append((state, items))
        self.oracle.check_consecutive(state.log, state.meta and state.meta.top)
        for item in items:
            self._hear(server.index, item)

    def _settle(self, server: Server) -> State:
        state = server.state
        meta = state.meta
        if meta is not None and meta.server == server.replid:
            return state
        if self.rules.epoch == "fresh":
            epoch = self.name("e")
        else:
            epoch = f"E{server.replid if self.rules.epoch == 'replid' else self.candidate}"
        if meta is None:
            node = state.node if state.virgin else self.oracle.root()
            log = () if self.rules.orphan_removed else state.log
            state = State(Meta(0, epoch, server.replid, ((epoch, 1),), epoch, None), log, state.keys, node, False)
        else:
            lineage = self._prune((*meta.lineage, (epoch, meta.top + 1)), state)
            state = state._replace(meta=meta._replace(epoch=epoch, server=server.replid, lineage=lineage))
        assert state.meta is not None
        self.oracle.minted(epoch, state.meta.top, state.node, (server.index, server.reign))
        return state

    def _prune(self, lineage: tuple[tuple[str, int], ...], state: State) -> tuple[tuple[str, int], ...]:
        """Forget epochs that the log no longer reaches: the one just before its oldest entry stays."""
        assert state.meta is not None
        before = self._offset(state.log[0]) - 1 if state.log else state.meta.top
        while len(lineage) > 1 and lineage[1][1] <= before:
            lineage = lineage[1:]
        return lineage[-self.rules.lineage :]

    def _readable(self, server: Server) -> State | None:
        if not server.primary:
            return None if self.rules.primary_only else server.state
        if not self.rules.epoch_on_subscribe and server.state.meta is None:
            return server.state
        if self.rules.reads_settle or server.state.meta is None:
            state = self._settle(server)
            if state is not server.state:
                self._write(server, state)
        return server.state

    def _judge(self, meta: Meta, log: tuple[Publication, ...], asked: Position, *, proves: bool) -> Verdict:
        on_path = not proves and asked.offset <= meta.top
        begins = [first for _, first in meta.lineage[1:]] + [meta.top + 1]
        for (epoch, _), end in zip(meta.lineage, begins, strict=True):
            if epoch == asked.epoch:
                on_path = on_path or asked.offset < end
        if asked == NEUTRAL:
            on_path = on_path or meta.lineage[0][1] == 1
        if not on_path:
            return Verdict.DIVERGED
        oldest = self._offset(log[0]) if log else meta.top + 1
        return Verdict.OK if asked.offset + 1 >= oldest else Verdict.EXPIRED
