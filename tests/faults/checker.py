"""Judges a record. The truth is the union of what anybody saw by id, a witness at each server too, and the log as it
stands at the end.

Offsets of a channel are consecutive and every message has one predecessor, so a hole, a repetition and a silent change
of history all show in what a single client saw, once the log or another client says what stands before each message.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from tests.faults.record import Acknowledged, Began, Ended, Event, Heard, Record, Told

SAMPLES = 5
"""Findings of each kind described in words at most."""


class Kind(StrEnum):
    """What can be wrong."""

    ACKNOWLEDGED_LOST = "acknowledged-lost"
    """Acknowledged, and no longer in the log although the log reaches back to it. The store may be made to do that."""
    SILENTLY_LOST = "silently lost"
    """A client went past a message, or stopped short of the last one, and was not told."""
    DUPLICATED = "duplicated"
    """A client was given an id twice, or the log holds one message twice."""
    REORDERED = "reordered"
    PHANTOM = "phantom"
    """Delivered, but never published."""
    FALSELY_RESET = "falsely reset"
    """A client was told of a loss, although the log had everything after its position."""
    DISAGREEMENT = "disagreement"
    """One id, two payloads."""
    MISCOUNTED = "miscounted"
    """`position` or `replayed` of an answer is not what it promises."""


@dataclass(slots=True)
class Verdict:
    """How often each kind was found, and the first findings of each in words."""

    found: Counter[Kind] = field(default_factory=Counter)
    samples: dict[Kind, list[str]] = field(default_factory=dict)

    def add(self, kind: Kind, text: str, times: int = 1) -> None:
        """One more finding."""
        self.found[kind] += times
        samples = self.samples.setdefault(kind, [])
        if len(samples) < SAMPLES:
            samples.append(f"{kind}: {text}")

    def broken(self, *, may_lose: bool) -> list[str]:
        """The findings that break the promise; what the store was made to lose is counted only."""
        allowed = {Kind.ACKNOWLEDGED_LOST} if may_lose else set()
        return [text for kind, samples in self.samples.items() if kind not in allowed for text in samples]


def judge(record: Record) -> Verdict:
    """Everything that is wrong with a record."""
    return _Judge(record).verdict


def offset_of(position: str) -> int:
    """The number in `<epoch>-<offset>`."""
    return int(position.rpartition("-")[2])


def _follows_in_its_epoch(identity: str, last: str) -> bool:
    return identity.rpartition("-")[0] == last.rpartition("-")[0] and offset_of(identity) == offset_of(last) + 1


class _Judge:
    def __init__(self, record: Record) -> None:
        self.record = record
        self.verdict = Verdict()
        self._payloads: dict[str, str] = {}
        self._ids: dict[str, list[str]] = {}
        self._parents: dict[str, str] = {}
        self._in_log = {item.id for item in record.log if item.id is not None}
        self._collect()
        self._check_log()
        self._check_acknowledged()
        # Those who see ids first: from them it is known what stands before each message.
        for client, events in sorted(record.clients.items(), key=lambda item: _is_plain(item[1])):
            walk = _PlainWalk if _is_plain(events) else _Walk
            walk(self, client, events).run()

    def _collect(self) -> None:
        for item in self.record.log:
            self._know(item)
        for events in self.record.clients.values():
            for event in events:
                if isinstance(event, Heard):
                    self._know(event)
        for answer in self.record.acknowledged:
            self._know(Heard(answer.id, answer.payload))
        for told in self.record.witnessed.values():
            before: str | None = None
            for item in told:
                self._know(item)
                assert item.id is not None
                # Not across a change of epoch: what the witness missed may stand between.
                if before is not None and _follows_in_its_epoch(item.id, before):
                    self._parents.setdefault(item.id, before)
                before = item.id

    def _know(self, item: Heard) -> None:
        if item.payload not in self.record.attempts:
            self.verdict.add(Kind.PHANTOM, f"{item.id} carries {item.payload!r}, which nobody published")
        if item.id is None:
            return
        known = self._payloads.setdefault(item.id, item.payload)
        if known != item.payload:
            self.verdict.add(Kind.DISAGREEMENT, f"{item.id} carries {known!r} and {item.payload!r}")
        ids = self._ids.setdefault(item.payload, [])
        if item.id not in ids:
            ids.append(item.id)

    def _check_log(self) -> None:
        before: str | None = None
        seen: set[str] = set()
        for item in self.record.log:
            assert item.id is not None
            if item.payload in seen:
                self.verdict.add(Kind.DUPLICATED, f"the log holds {item.payload!r} twice")
            seen.add(item.payload)
            if before is not None:
                step = offset_of(item.id) - offset_of(before)
                if step != 1:
                    kind = Kind.SILENTLY_LOST if step > 1 else Kind.REORDERED
                    self.verdict.add(kind, f"in the log {item.id} follows {before}")
                self._parents[item.id] = before
            before = item.id

    def _check_acknowledged(self) -> None:
        log = self.record.log
        reaches = offset_of(log[0].id) if log and log[0].id is not None else 0
        lost: set[Acknowledged] = set()
        for answer in self.record.acknowledged:
            covered = offset_of(answer.id) >= reaches
            if covered and answer.id not in self._in_log and answer not in lost:
                lost.add(answer)
                self.verdict.add(Kind.ACKNOWLEDGED_LOST, f"{answer.payload!r} was acknowledged as {answer.id}")

    def ids(self, payload: str) -> list[str]:
        """Every id that a payload was given, as far as known: several when the store lost it and took it again."""
        return self._ids.get(payload, [])

    def may_follow(self, identity: str, last: str) -> bool:
        """Whether one message can stand right after a position."""
        return offset_of(identity) == offset_of(last) + 1 and self._parents.get(identity, last) == last

    def is_message(self, position: str) -> bool:
        """Whether a position is the id of a message, not one minted for an empty channel or a gap."""
        return position in self._payloads

    def in_log(self, position: str) -> bool:
        """Whether it stands in the log at the end."""
        return position in self._in_log

    def follows(self, identity: str, last: str) -> str | None:
        """Note that a client heard one right after the other; what is known to stand before it, if not that."""
        known = self._parents.setdefault(identity, last)
        return None if known == last else known


def _is_plain(events: Sequence[Event]) -> bool:
    return any(isinstance(event, Heard) and event.id is None for event in events)


class _Walk:
    """Along what one client saw.

    Attributes:
        last: where it stands: an id, a position that it was given, or None before the first.
        promised: replayed messages that have to follow.
    """

    def __init__(self, judge: _Judge, client: str, events: Sequence[Event]) -> None:
        self.judge = judge
        self.client = client
        self.events = events
        self.last: str | None = None
        self.promised = 0
        self.seen: set[str] = set()

    def run(self) -> None:
        for event in self.events:
            match event:
                case Began():
                    self._begin(event)
                case Heard():
                    self._hear(event)
                case Told(reason, position):
                    self._reset(reason, position)
                case Ended():
                    self.promised = 0
        self._check_end()

    def _say(self, kind: Kind, text: str, times: int = 1) -> None:
        self.judge.verdict.add(kind, f"{self.client}: {text}", times)

    def _begin(self, began: Began) -> None:
        if began.recovered is False:
            if began.replayed:
                self._say(Kind.MISCOUNTED, f"{began.replayed} replayed although not recovered")
            self._reset(began.reason or "", began.position or "")
            return
        if began.recovered and began.position != began.since:
            self._say(Kind.MISCOUNTED, f"resumed from {began.since} and stands at {began.position}")
        self.last = began.since if began.recovered else began.position
        self.promised = began.replayed

    def _hear(self, item: Heard) -> None:
        identity = item.id
        assert identity is not None
        self.promised = max(0, self.promised - 1)
        if identity in self.seen:
            self._say(Kind.DUPLICATED, f"{identity} again, after {self.last}")
            return
        self.seen.add(identity)
        if self.last is None:
            self._say(Kind.REORDERED, f"{identity} before the subscribe was answered")
        else:
            self._compare(identity, self.last)
        self.last = identity

    def _compare(self, identity: str, last: str) -> None:
        step = offset_of(identity) - offset_of(last)
        if step <= 0:
            self._say(Kind.REORDERED, f"{identity} after {last}")
        elif step > 1:
            self._say(Kind.SILENTLY_LOST, f"{identity} right after {last}", step - 1)
        elif self.judge.is_message(last):
            other = self.judge.follows(identity, last)
            if other is not None:
                self._say(Kind.SILENTLY_LOST, f"{identity} right after {last}, which is not what precedes it: {other}")

    def _reset(self, reason: str, position: str) -> None:
        record, last = self.judge.record, self.last
        self.promised = 0
        self.last = position
        if last is None or reason in record.forgiven or not self.judge.is_message(last):
            return
        within = reason == "expired" and offset_of(position) - offset_of(last) <= record.kept
        if self.judge.in_log(last) or within:
            self._say(Kind.FALSELY_RESET, f"{reason} at {last}, goes on from {position}")

    def _check_end(self) -> None:
        log = self.judge.record.log
        if self.client not in self.judge.record.present or not log:
            return
        if not self._stands_at(log[-1].id or ""):
            missing = max(1, offset_of(log[-1].id or "-0") - offset_of(self.last or "-0"))
            self._say(Kind.SILENTLY_LOST, f"stands at {self.last} at the end, the log at {log[-1].id}", missing)
        elif self.promised:
            self._say(Kind.MISCOUNTED, f"{self.promised} of the replayed never came")

    def _stands_at(self, position: str) -> bool:
        return self.last == position


class _PlainWalk(_Walk):
    """A plain socket sees no ids: it stands at one of those that what it heard is known to have been given.

    Attributes:
        stands: all of them that fit what it heard before; `last` is the first.
        heard: how often it was given each payload.
        spent: ids that it was given for certain.
    """

    def __init__(self, judge: _Judge, client: str, events: Sequence[Event]) -> None:
        super().__init__(judge, client, events)
        self.stands: list[str] = []
        self.heard: Counter[str] = Counter()
        self.spent: set[str] = set()

    def _begin(self, began: Began) -> None:
        super()._begin(began)
        self.stands = []

    def _hear(self, item: Heard) -> None:
        known = self.judge.ids(item.payload)
        ids = [one for one in known if one not in self.spent]
        self.heard[item.payload] += 1
        # One that the store lost may come again under its other id.
        if self.heard[item.payload] > max(1, len(known)) or (known and not ids):
            self._say(Kind.DUPLICATED, f"{item.payload!r} again, known as {known}, after {self.last}")
            return
        if not ids:  # nobody knows where it stood
            self.stands, self.last = [], None
            return
        fitting = [one for one in ids if any(self.judge.may_follow(one, last) for last in self.stands)]
        if self.stands and not fitting:
            pairs = [(one, last) for one in ids for last in self.stands]
            self._compare(*min(pairs, key=lambda pair: abs(offset_of(pair[0]) - offset_of(pair[1]) - 1)))
        self.stands = fitting or ids
        self.last = self.stands[0]
        if len(self.stands) == 1:
            self.spent.add(self.last)

    def _stands_at(self, position: str) -> bool:
        return position in self.stands
