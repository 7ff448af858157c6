"""The rules of CONTINUITY, each of which can be taken away: from the store by a flag, from the product's machines by a
subclass, from the driver by a flag.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from app.core import continuity
from app.core.continuity import (
    ChannelState,
    Deliver,
    Effect,
    Follower,
    Gap,
    Join,
    Mode,
    Page,
    Reading,
    Resumed,
    Sync,
    Verdict,
)
from app.core.messages import Cleared, Position, Publication
from tests.unit.continuity.store import StoreRules


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Everything in force, unless said otherwise.

    Attributes:
        channel: the worker's state machine.
        follower: the client's state machine.
        resume: how a `since` is answered.
        check_is_hint: a periodic check only starts a sync; else it judges against the position
            at the time of the reply.
        fresh_verdicts: a negative verdict comes from a reading that began after the request.
        drop_old: messages of a replaced connection are dropped.
        group_moves: a scattered group's position is where the channel goes on, at once, not what it was given before.
        own_position: a member that was given nothing since it joined leaves with the position it came with: the group's
            may have been minted by a reset that this member was not part of.
    """

    store: StoreRules = field(default_factory=StoreRules)
    channel: type[ChannelState] = ChannelState
    follower: type[Follower] = Follower
    resume: Callable[[Reading, Position], tuple[Resumed, Follower]] = continuity.resume
    check_is_hint: bool = True
    fresh_verdicts: bool = True
    drop_old: bool = True
    group_moves: bool = True
    own_position: bool = True


class JoinsAnywhere(Follower):
    """Enters its group also ahead of the group's position."""

    __slots__ = ()

    def joins(self, channel: ChannelState, group: Position | None) -> Join:
        """Whoever is not behind may enter."""
        if channel.mode is Mode.LIVE and group is not None and self.position.offset >= group.offset:
            return Join.NOW
        return super().joins(channel, group)


class DeliversUnknown(ChannelState):
    """After a sync, a message of an epoch that the log does not know is delivered if its offset fits."""

    __slots__ = ()

    def _replay(self, generation: int) -> Iterator[Effect]:
        held, self._buffer = self._buffer or [], None
        for index, (item, since) in enumerate(held):
            if self.mode is not Mode.LIVE:
                self._hold_again(held, index)
                return
            position = item.position
            assert position is not None
            assert self.position is not None
            if not self._contradicts(item):
                yield from self.on_publication(item)
            elif since <= generation and isinstance(item, Publication) and position.offset == self.position.offset + 1:
                self.position, self.epoch = position, position.epoch
                yield Deliver((item,))


class KeepsOld(ChannelState):
    """Keeps what waited when its connection is replaced, and takes a hole for a contradiction in no case."""

    __slots__ = ()

    def connection_replaced(self) -> Sync | None:
        """Ask the log, and go on with what the old connection said."""
        return None if self.mode is Mode.OFF else self.start_sync()

    def _contradicts(self, publication: Publication | Cleared) -> bool:
        assert publication.position is not None
        return publication.position.epoch != self.epoch and super()._contradicts(publication)


class RelabelsChannel(ChannelState):
    """Names its position by the newest epoch."""

    __slots__ = ()

    def on_reading(self, reading: Reading, generation: int) -> Sequence[Effect]:
        """As the real one, with another name for the result."""
        effects = super().on_reading(reading, generation)
        if self.mode is Mode.LIVE and generation == self.generation and self.position is not None:
            self.position = Position(self.epoch, self.position.offset)
        return effects


class RelabelsFollower(Follower):
    """Names its position by the newest epoch."""

    __slots__ = ()

    def on_page(self, reading: Reading, group: Position | None = None) -> Page | Gap:
        """As the real one, with another name for the result."""
        page = super().on_page(reading, group)
        if reading.verdict is Verdict.OK and self.position.offset == reading.top:
            self.position = Position(reading.epoch, reading.top)
        return page


def resume_at_top(reading: Reading, since: Position) -> tuple[Resumed, Follower]:
    """Say the top as position although the missed messages are still to come."""
    resumed, follower = continuity.resume(reading, since)
    if resumed.recovered and resumed.replayed:
        resumed = Resumed(Position(reading.tail, reading.top), True, resumed.replayed)
    return resumed, follower


@dataclass(frozen=True, slots=True)
class Absence:
    """One rule taken away, and what must come of it.

    Attributes:
        row: the row of CONTINUITY's table "What each rule prevents", or what a driver has to keep beside it.
        rules: all others.
        expected: the kinds of violation that the row names; a trace is kept for each.
        boost: weights of actions that make the search find it sooner.
    """

    row: str
    rules: Rules
    expected: tuple[str, ...]
    boost: dict[str, float] = field(default_factory=dict)


def _store(**changes: object) -> Rules:
    return Rules(store=StoreRules(**changes))  # type: ignore[arg-type]


ABSENCES = {
    "epoch_fresh": Absence(
        "epoch is new and random at every start",
        _store(epoch="replid"),
        ("two payloads", "silent hole", "duplicate"),
        {"flush_all": 2},
    ),
    "candidate_reused": Absence(
        "never reuse the candidate epoch in a retry", _store(epoch="reuse"), ("two payloads",), {"fail_over": 3}
    ),
    "empty_epoch": Absence(
        "empty channel gets an epoch at subscribe",
        _store(epoch_on_subscribe=False),
        ("silent hole",),
        {"expire_meta": 3},
    ),
    "orphan_kept": Absence(
        "no meta: remove the orphaned log first",
        _store(orphan_removed=False),
        ("stuck", "silent hole", "false reset"),
        {"expire_meta": 2},
    ),
    "pages_by_offset": Absence(
        "every page proves its position (epoch, offset)",
        _store(pages_prove=False),
        ("silent hole",),
        {"fail_over": 2, "flush_all": 1},
    ),
    "joins_anywhere": Absence(
        "a client joins its group only at the group's exact position",
        Rules(follower=JoinsAnywhere),
        ("duplicate", "silent hole"),
    ),
    "check_judges": Absence(
        "position check only starts a sync", Rules(check_is_hint=False), ("false reset", "duplicate"), {"check": 12}
    ),
    "replica_reads": Absence(
        "reads refuse to run on a replica",
        _store(primary_only=False),
        ("silent hole", "duplicate"),
        {"fail_over": 3, "demote": 3, "command_move": 5},
    ),
    "stale_verdict": Absence(
        "negative verdict only from a read begun after the request",
        Rules(fresh_verdicts=False),
        ("false reset", "stale verdict"),
        {"check": 12, "sub": 16, "return": 20},
    ),
    "unknown_delivered": Absence(
        "unknown epoch after a sync: drop, reconnect both",
        Rules(channel=DeliversUnknown),
        ("silent hole",),
        {"fail_over": 3, "command_move": 5, "reader_move": 5},
    ),
    "position_after": Absence(
        "`subscribed.position` stands before the replay", Rules(resume=resume_at_top), ("silent hole",)
    ),
    "reads_do_not_settle": Absence(
        "reads settle the epoch", _store(reads_settle=False), ("duplicate",), {"lead_again": 3, "fail_over": 3}
    ),
    "reads_do_not_settle_old_kept": Absence(
        "reads settle the epoch. Together with `keep old connections`",
        Rules(store=StoreRules(reads_settle=False), channel=KeepsOld, drop_old=False),
        ("stuck",),
        {"fail_over": 3, "command_move": 5, "reader_move": 5, "old": 8},
    ),
    "clear_keeps_epoch": Absence(
        "DELETE starts an epoch", _store(clear_is_epoch=False), ("never told",), {"clear": 3, "lose": 6}
    ),
    "lineage_short": Absence(
        "lineage long enough (cap 2 in the test)", _store(lineage=2), ("false reset",), {"restart": 4}
    ),
    "relabelled": Absence(
        "positions keep their message's epoch (no relabelling)",
        Rules(store=StoreRules(keep_label=False), channel=RelabelsChannel, follower=RelabelsFollower),
        ("false reset",),
        {"fail_over": 3, "lead_again": 3, "command_move": 5, "slow": 8},
    ),
    "group_stays": Absence(
        "after a scatter the group stands where the channel goes on",
        Rules(group_moves=False),
        ("wrong replay", "silent hole"),
        {"flush_all": 2, "restart": 3, "return": 20},
    ),
    "group_names": Absence(
        "a member that was given nothing since it joined leaves with its own position",
        Rules(own_position=False),
        ("false reset",),
        {"restart": 6, "return": 16},
    ),
}
