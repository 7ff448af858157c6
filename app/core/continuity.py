"""Continuity: when a message may be delivered, when the log must be asked, and who has lost what.

Two state machines, pure: `ChannelState` is what one worker knows of one channel, `Follower` is one client that is not
in its channel's group (it resumes, or it was too slow). Both turn what arrives into effects and never perform them.

What must not happen here: a verdict from a comparison of epochs (only a lineage knows), a join at any position but the
group's own, a relabelled position. Every rule has a property test that fails when the rule is taken away
(tests/unit/test_continuity_rules.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum

from app.core.messages import Cleared, Position, Publication

BUFFER = 1000
"""Publications held while a sync is under way; more are found in the log."""


class Verdict(StrEnum):
    """What the store says of a position."""

    NEW = "new"
    OK = "ok"
    DIVERGED = "diverged"
    EXPIRED = "expired"


class Reason(StrEnum):
    """Why continuity was lost (PROTOCOL: gap)."""

    EXPIRED = "expired"
    DIVERGED = "diverged"
    CLEARED = "cleared"


@dataclass(frozen=True, slots=True)
class Reading:
    """The store's answer to one sync: a verdict on the position asked about, the state of the channel, a page.

    Attributes:
        epoch: of the current reign.
        top: offset of the newest message (0: none yet).
        tail: epoch of the message at the top.
        lineage: (epoch, first offset) of every reign that touched the channel, oldest first.
        cleared: the epoch that the last clear began, or None.
        publications: the page after the position, possibly cut short; only with verdict `ok`.
    """

    verdict: Verdict
    epoch: str
    top: int
    tail: str
    lineage: tuple[tuple[str, int], ...]
    cleared: str | None = None
    publications: tuple[Publication, ...] = ()

    @property
    def at_top(self) -> Position:
        """Where one starts who has lost everything before: minted under the current epoch."""
        return Position(self.epoch, self.top)

    def reason(self, asked: Position) -> Reason:
        """Why `asked` was refused: by a clear, if that is where the lineage begins and it does not know the epoch."""
        if self.verdict is Verdict.EXPIRED:
            return Reason.EXPIRED
        begins = self.lineage[0][0] if self.lineage else None
        known = any(epoch == asked.epoch for epoch, _ in self.lineage)
        return Reason.CLEARED if self.cleared is not None and self.cleared == begins and not known else Reason.DIVERGED


def on_history(lineage: Sequence[tuple[str, int]], top: int, position: Position) -> bool:
    """Whether a position lies on the channel's history (CONTINUITY.md: on_history). There is no lower bound."""
    for index, (epoch, _) in enumerate(lineage):
        if epoch == position.epoch:
            last = index == len(lineage) - 1
            return position.offset <= top if last else position.offset < lineage[index + 1][1]
    return False


def consecutive(publications: Sequence[Publication], after: int) -> Iterator[Publication]:
    """The leading publications whose offsets follow `after` without a hole."""
    for publication in publications:
        if publication.position is None or publication.position.offset != after + 1:
            return
        after += 1
        yield publication


class Mode(Enum):
    """OFF: not subscribed. SYNC: asking the log, live messages wait. LIVE: delivering."""

    OFF = "off"
    SYNC = "sync"
    LIVE = "live"


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand these to the group, in this order."""

    publications: tuple[Publication, ...]


@dataclass(frozen=True, slots=True)
class Sync:
    """Ask the store about `position` (None: where does the channel stand?) and bring the answer to `on_reading`."""

    position: Position | None
    generation: int


@dataclass(frozen=True, slots=True)
class Scatter:
    """The group's history is gone or forked: every member becomes a follower at its own position."""


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Reader and commands do not speak with the same history: replace both connections, then call
    `connection_replaced`; nothing is delivered before that.
    """


Effect = Deliver | Sync | Scatter | Reconnect


class ChannelState:
    """What one worker knows of one channel.

    `position` is the last message handed to the group and `epoch` the reign under which it was proved.
    """

    __slots__ = ("_buffer", "_older", "epoch", "generation", "mode", "position")

    def __init__(self) -> None:
        self.mode = Mode.OFF
        self.position: Position | None = None
        self.epoch = ""
        self.generation = 0
        self._older: frozenset[str] = frozenset()
        self._buffer: list[tuple[Publication | Cleared, int]] | None = None

    def start_sync(self) -> Sync:
        """Ask the log from here; live messages wait. The position is frozen, so the answer judges what was sent."""
        self.mode = Mode.SYNC
        self.generation += 1
        return Sync(self.position, self.generation)

    def connection_replaced(self) -> Sync | None:
        """The reader's connection is new: what the old one said is forgotten. Call after the confirmation."""
        if self.mode is Mode.OFF:
            return None
        self._buffer = None
        return self.start_sync()

    def close(self) -> None:
        """Nobody listens any more: forget everything."""
        self.mode = Mode.OFF
        self.generation += 1
        self.position = None
        self.epoch = ""
        self._older = frozenset()
        self._buffer = None

    def on_publication(self, publication: Publication | Cleared) -> Sequence[Effect]:
        """A live message with a position arrived from the reader."""
        if self.mode is Mode.OFF:
            return ()
        if self.mode is Mode.SYNC:
            self._hold(publication)
            return ()
        position, mine = publication.position, self.position
        assert position is not None
        assert mine is not None
        if position.epoch == self.epoch:
            if position.offset <= mine.offset:
                return ()
            if position.offset == mine.offset + 1 and isinstance(publication, Publication):
                self.position = position
                return (Deliver((publication,)),)
        elif position.epoch in self._older:
            return ()
        self._hold(publication)
        return (self.start_sync(),)

    def on_reading(self, reading: Reading, generation: int) -> Sequence[Effect]:
        """The answer to the `Sync` of this generation. Older answers are ignored; errors are the caller's to retry."""
        if generation != self.generation or self.mode is not Mode.SYNC:
            return ()
        effects: list[Effect] = []
        mine = self.position
        if reading.verdict is Verdict.NEW or mine is None:
            self.position = Position(reading.tail, reading.top)
        elif reading.verdict is Verdict.OK:
            page = tuple(consecutive(reading.publications, mine.offset))
            if page:
                mine = page[-1].position
                assert mine is not None
                self.position = mine
                effects.append(Deliver(page))
            if mine.offset < reading.top:
                effects.append(Sync(mine, self.generation))
                return effects
        else:
            effects.append(Scatter())
            self.position = reading.at_top
        self.epoch = reading.epoch
        self._older = frozenset(epoch for epoch, _ in reading.lineage if epoch != reading.epoch)
        self.mode = Mode.LIVE
        effects.extend(self._replay(generation))
        return effects

    def differs(self, reading: Reading, epoch: str, position: Position) -> bool:
        """Whether a periodic check, sent when the channel stood at (epoch, position), calls for a sync.

        A check never judges. If anything has moved since it was sent it says nothing.
        """
        if self.mode is not Mode.LIVE or self.epoch != epoch or self.position != position:
            return False
        return reading.verdict is not Verdict.OK or reading.epoch != epoch or reading.top != position.offset

    def _hold(self, publication: Publication | Cleared) -> None:
        if self._buffer is None:
            self._buffer = []
        if len(self._buffer) < BUFFER:
            self._buffer.append((publication, self.generation))

    def _replay(self, generation: int) -> Iterator[Effect]:
        """Take up what waited while the log was asked."""
        held, self._buffer = self._buffer or [], None
        for index, (publication, since) in enumerate(held):
            if self.mode is not Mode.LIVE:
                self._hold_again(held, index)
                return
            if since < generation and self._contradicts(publication):
                self._buffer = None
                self.mode = Mode.SYNC
                self.generation += 1
                yield Reconnect()
                return
            yield from self.on_publication(publication)

    def _contradicts(self, publication: Publication | Cleared) -> bool:
        """Whether a message is unknown to a log that was read after it had arrived: reader and commands are then
        connected to different servers.
        """
        position, mine = publication.position, self.position
        assert position is not None
        assert mine is not None
        if position.epoch != self.epoch:
            return position.epoch not in self._older
        return position.offset > mine.offset + (1 if isinstance(publication, Publication) else 0)

    def _hold_again(self, held: list[tuple[Publication | Cleared, int]], index: int) -> None:
        """A sync began while replaying: the rest waits, with the generation in which it arrived."""
        self._buffer = (self._buffer or []) + held[index:]


@dataclass(frozen=True, slots=True)
class Resumed:
    """The answer to a subscribe.

    Attributes:
        position: where the client stands *before* the messages that follow.
        recovered: True: exactly the missed ones follow; False: nothing is replayed, reload; None: no `since` given.
        replayed: how many messages follow.
        reason: with `recovered=False`.
    """

    position: Position
    recovered: bool | None
    replayed: int = 0
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Messages to write, in order; the follower stands after the last of them."""

    publications: tuple[Publication, ...]


@dataclass(frozen=True, slots=True)
class Gap:
    """Continuity was lost; the follower goes on from `position`."""

    reason: Reason
    position: Position


class Join(Enum):
    """Whether a follower may enter its channel's group now."""

    NOW = "now"
    BEHIND = "behind"
    """Read the next page."""
    RESYNC = "resync"
    """The follower was proved under another epoch, or is ahead: the channel must sync, then the follower read again
    (`doubt`), since either may be the stale one."""
    WAIT = "wait"
    """The channel is not live, or the group has not been given yet what the follower has."""


class Follower:
    """One client outside its channel's group, at a position of its own, proved under `epoch` ('' = not yet)."""

    __slots__ = ("epoch", "position")

    def __init__(self, position: Position, epoch: str = "") -> None:
        self.position = position
        self.epoch = epoch

    def doubt(self) -> None:
        """Forget under which epoch the position was proved: the next page proves it again."""
        self.epoch = ""

    def on_page(self, reading: Reading, group: Position | None = None) -> Page | Gap:
        """A page read from exactly this follower's position; every page proves the position again.

        `group` caps the page where the follower may join, so that it converges on a busy channel: give it only when
        `reading` was proved under the channel's own epoch.
        """
        self.epoch = reading.epoch
        if reading.verdict is not Verdict.OK:
            reason = reading.reason(self.position)
            self.position = reading.at_top
            return Gap(reason, self.position)
        page = tuple(consecutive(reading.publications, self.position.offset))
        if group is not None and self.position.offset <= group.offset:
            page = page[: group.offset - self.position.offset]
        if page:
            last = page[-1].position
            assert last is not None
            self.position = last
        return Page(page)

    def joins(self, channel: ChannelState, group: Position | None) -> Join:
        """Compare with the group, which has been given everything up to `group` (at most the channel's position)."""
        if channel.mode is not Mode.LIVE or channel.position is None or group is None:
            return Join.WAIT
        if not self.epoch:
            return Join.BEHIND
        if self.epoch != channel.epoch or self.position.offset > channel.position.offset:
            return Join.RESYNC
        if self.position.offset > group.offset:
            return Join.WAIT
        return Join.NOW if self.position.offset == group.offset else Join.BEHIND


def resume(reading: Reading, since: Position) -> tuple[Resumed, Follower]:
    """Judge a `since` by a reading begun after it was received (a positive one may be older).

    The follower starts at `since` itself, or, when that is not on the history or no longer covered, at the top.
    """
    if reading.verdict is Verdict.OK:
        return Resumed(since, True, reading.top - since.offset), Follower(since, reading.epoch)
    position = reading.at_top
    return Resumed(position, False, 0, reading.reason(since)), Follower(position, reading.epoch)


def subscribe(reading: Reading) -> tuple[Resumed, Follower]:
    """Begin at the top, without a `since`."""
    position = Position(reading.tail, reading.top)
    return Resumed(position, None), Follower(position, reading.epoch)


def label(lineage: Sequence[tuple[str, int]], offset: int) -> str:
    """The lineage epoch whose reign covers an offset (the first one for everything older)."""
    covering = lineage[0][0]
    for epoch, first in lineage:
        if first > offset:
            break
        covering = epoch
    return covering
