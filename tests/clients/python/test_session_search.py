"""Whatever the network and the service do: no hole that is not told, nothing twice, each publish once."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.clients.python.world import ROOM, Player
from tocsin.errors import PublishTimeout
from tocsin.events import Ack, Gap, Message, State
from tocsin.subscription import Mode


class Faults(RuleBasedStateMachine):
    """One client, one channel, others who publish too, and every fault of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.player = Player()
        self.published: dict[int, Any] = {}
        self.numbers = 0
        self.player.session.subscribe(ROOM)
        self.player.open()

    def number(self) -> int:
        self.numbers += 1
        return self.numbers

    @precondition(lambda self: self.player.wire is None)
    @rule(down=st.integers(0, 3), up=st.integers(0, 3))
    def returns(self, down: int, up: int) -> None:
        self.player.wait()
        self.player.accept()
        self.player.carry_down(down)
        self.player.carry_up(up)

    @precondition(lambda self: self.player.wire is None)
    @rule()
    def returns_for_good(self) -> None:
        self.returns(9, 9)
        self.player.carry()

    @precondition(lambda self: self.player.dialing)
    @rule(status=st.sampled_from([429, 500, 503]), seconds=st.sampled_from([None, "1", "7"]))
    def is_refused(self, status: int, seconds: str | None) -> None:
        self.player.refuse(status, seconds)

    @precondition(lambda self: self.player.dialing)
    @rule()
    def finds_nobody(self) -> None:
        self.player.fail()

    @precondition(lambda self: self.player.wire is not None)
    @rule(up=st.integers(0, 3), down=st.integers(0, 3), code=st.sampled_from([1006, 1006, 1012, 4508, 4529]))
    def loses_the_connection(self, up: int, down: int, code: int) -> None:
        self.player.carry_up(up)
        self.player.carry_down(down)
        self.player.cut(code)

    @precondition(lambda self: self.player.wire is not None)
    @rule(after=st.floats(0, 20))
    def is_told_to_come_back(self, after: float) -> None:
        self.player.push(type="reconnect", after=after, reason="draining")

    @rule(count=st.integers(1, 4))
    def commands_arrive(self, count: int) -> None:
        self.player.carry_up(count)

    @rule(count=st.integers(1, 4))
    def frames_arrive(self, count: int) -> None:
        self.player.carry_down(count)

    @rule()
    def all_arrives(self) -> None:
        self.player.carry()

    @rule(seconds=st.sampled_from([0.01, 0.3, 2.0, 12.0, 40.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.player.advance(seconds)

    @rule(timeout=st.sampled_from([None, None, 5.0, 200.0]), count=st.integers(1, 3))
    def publishes(self, timeout: float | None, count: int) -> None:
        for _ in range(count):
            data = f"mine-{self.number()}"
            self.published[self.player.publish(data, timeout=timeout)] = data

    @precondition(lambda self: self.player.wire is not None and self.player.session.state is State.OPEN)
    @rule(seconds=st.sampled_from([1.0, 95.0, 97.0, 119.0, 125.0]))
    def publishes_and_hears_nothing(self, seconds: float) -> None:
        self.publishes(None, 1)
        self.player.carry_up()
        self.player.cut()
        self.player.advance(seconds)

    @rule(count=st.integers(1, 5))
    def others_publish(self, count: int) -> None:
        for _ in range(count):
            self.player.service.store(f"other-{self.number()}", None, self.player.now)

    @rule(kind=st.sampled_from(["before", "after", "slow"]))
    def the_store_is_in_trouble(self, kind: str) -> None:
        self.player.service.trouble.append(kind)

    @precondition(lambda self: self.numbers % 3 == 0)
    @rule(keep=st.integers(0, 4))
    def the_log_is_trimmed(self, keep: int) -> None:
        self.player.service.trim(keep)

    @precondition(lambda self: self.numbers % 3 == 0)
    @rule()
    def the_log_is_cleared(self) -> None:
        self.player.service.clear()

    @rule(count=st.integers(0, 3), soon=st.booleans())
    def the_reader_is_slow(self, count: int, soon: bool) -> None:
        self.player.session.lag(ROOM)
        self.player.act()
        self.others_publish(count + 1)
        self.player.carry_up(1)
        if soon:
            self.the_reader_has_room()

    @rule()
    def the_reader_has_room(self) -> None:
        self.player.session.catch_up(ROOM)
        self.player.act()

    @invariant()
    def nothing_is_missed_in_silence_or_heard_twice(self) -> None:
        offset: int | None = None
        for event in self.player.heard:
            match event:
                case Message(id=str(identity)):
                    number = int(identity.rpartition("-")[2])
                    assert offset is None or number == offset + 1, self.player.heard
                    offset = number
                case Gap(position=str(position)):
                    number = int(position.rpartition("-")[2])
                    assert offset is None or number >= offset
                    offset = number
                case _:
                    raise AssertionError(event)

    @invariant()
    def no_message_is_published_twice(self) -> None:
        data = [entry.data for entry in self.player.service.ever]
        assert len(data) == len(set(data))

    @invariant()
    def what_is_acknowledged_is_published(self) -> None:
        stored = {entry.data: entry for entry in self.player.service.ever}
        for ref, outcome in self.player.settled.items():
            match outcome:
                case Ack(identity):
                    entry = stored[self.published[ref]]
                    assert identity == self.player.service.identity(entry.offset, entry.epoch)
                case PublishTimeout(sent=sent):
                    assert sent or self.published[ref] not in stored
                case _:
                    raise AssertionError(outcome)

    def teardown(self) -> None:
        self.player.session.catch_up(ROOM)
        self.player.act()
        self.player.heal()
        assert set(self.player.settled) == set(self.published)
        last = f"other-{self.number()}"
        self.player.service.store(last, None, self.player.now)
        self.player.carry()
        assert self.player.heard[-1].data == last
        subscription = self.player.session.subscription(ROOM)
        assert subscription is not None
        assert subscription.mode is Mode.LIVE
        self.nothing_is_missed_in_silence_or_heard_twice()
        self.no_message_is_published_twice()
        self.what_is_acknowledged_is_published()


Faults.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None, derandomize=True)
TestFaults = Faults.TestCase
