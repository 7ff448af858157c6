"""The checker accepts what is right, and finds each fault that is planted into it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.checker import Kind, judge
from tests.faults.record import Acknowledged, Began, Ended, Event, Heard, Record, Told


def message(position: str) -> Heard:
    """The message of an id; its payload is its own."""
    return Heard(position, f"payload {position}")


def run(epoch: str, first: int, last: int) -> list[Event]:
    return [message(f"{epoch}-{offset}") for offset in range(first, last + 1)]


def good() -> Record:
    """Ten messages, all acknowledged; one client stays, one resumes, one is plain."""
    record = Record()
    record.log = [message(f"a-{offset}") for offset in range(1, 11)]
    record.attempts = {item.payload: 1 for item in record.log}
    record.acknowledged = [Acknowledged(item.payload, item.id or "") for item in record.log]
    record.clients = {
        "stays": [Began("a-0"), *run("a", 1, 10)],
        "resumes": [Began("a-0"), *run("a", 1, 4), Ended(1006), Began("a-4", "a-4", True, 3), *run("a", 5, 10)],
        "plain": [Began(), *[Heard(None, f"payload a-{offset}") for offset in range(3, 11)]],
    }
    record.present = set(record.clients)
    return record


def lost_tail() -> Record:
    """The store lost a-6 to a-8 and went on as b; who had seen them is told, who had not goes on."""
    record = good()
    record.may_lose = True
    record.log = [*record.log[:5], *[message(f"b-{offset}") for offset in range(6, 10)]]
    record.attempts |= {item.payload: 1 for item in record.log}
    record.clients = {
        "saw": [Began("a-0"), *run("a", 1, 8), Told("diverged", "b-5"), *run("b", 6, 9)],
        "saw not": [Began("a-0"), *run("a", 1, 5), *run("b", 6, 9)],
        "away": [Began("a-0"), *run("a", 1, 7), Began("b-7", "a-7", False, 0, "diverged"), *run("b", 8, 9)],
        "plain": [
            Began(),
            *[Heard(None, f"payload a-{offset}") for offset in range(1, 9)],
            Ended(4510),
            Began(),
            *[Heard(None, f"payload b-{offset}") for offset in range(7, 10)],
        ],
    }
    record.present = set(record.clients)
    record.acknowledged = record.acknowledged[:8]
    return record


def plain_alone() -> Record:
    """The store told a plain socket alone of a-6 and a-7, lost both, and was given them again as b-7 and b-9."""
    record = good()
    record.may_lose = True
    kept = {7: "payload a-6", 9: "payload a-7"}
    record.log = [
        *record.log[:5],
        *[Heard(f"b-{number}", kept.get(number, f"new {number}")) for number in range(6, 10)],
    ]
    record.attempts |= {item.payload: 1 for item in record.log}
    record.acknowledged = []
    record.witnessed = {6379: [message(f"a-{offset}") for offset in range(1, 8)], 6380: record.log}
    record.clients = {
        "native": [Began("a-0"), *run("a", 1, 5), *record.log[5:]],
        "alone": [
            Began(),
            *[Heard(None, f"payload a-{offset}") for offset in range(1, 8)],
            Ended(4510),
            Began(),
            *[Heard(None, item.payload) for item in record.log[6:]],
        ],
    }
    record.present = set(record.clients)
    return record


def plain_unknown() -> Record:
    """The same, and one more message that the store lost, of which nobody learned the id."""
    record = plain_alone()
    record.attempts |= {"nobody else heard this": 1}
    record.clients["alone"].insert(8, Heard(None, "nobody else heard this"))
    return record


def expired() -> Record:
    """The log keeps four; one client was away for seven and is told, one that resumes within is not."""
    record = good()
    record.kept = 4
    record.log = record.log[-4:]
    record.clients = {
        "away": [
            Began("a-0"),
            *run("a", 1, 3),
            Ended(1006),
            Began("a-9", "a-3", False, 0, "expired"),
            *run("a", 10, 10),
        ],
        "within": [Began("a-0"), *run("a", 1, 6), Ended(1006), Began("a-6", "a-6", True, 4), *run("a", 7, 10)],
    }
    record.present = set(record.clients)
    return record


@pytest.mark.parametrize("make", [good, expired, plain_alone, plain_unknown])
def test_a_good_record_is_accepted(make: Callable[[], Record]) -> None:
    verdict = judge(make())
    assert verdict.samples == {}
    assert verdict.broken(may_lose=False) == []


def test_a_lost_tail_that_is_told_is_counted_and_accepted() -> None:
    verdict = judge(lost_tail())
    assert dict(verdict.found) == {Kind.ACKNOWLEDGED_LOST: 3}
    assert verdict.broken(may_lose=True) == []
    assert len(verdict.broken(may_lose=False)) == 3


def test_a_replay_that_a_gap_cancels_is_accepted() -> None:
    record = lost_tail()
    record.clients["saw"] = [
        Began("a-0"),
        *run("a", 1, 7),
        Ended(1006),
        Began("a-7", "a-7", True, 1),
        Told("diverged", "b-5"),
        *run("b", 6, 9),
    ]
    assert judge(record).broken(may_lose=True) == []


def test_a_position_minted_for_an_empty_channel_may_be_reset() -> None:
    record = good()
    record.clients["stays"] = [Began("x-0"), Ended(1006), Began("a-0", "x-0", False, 0, "diverged"), *run("a", 1, 10)]
    assert judge(record).samples == {}


def remove(client: str, position: str) -> Callable[[Record], None]:
    return lambda record: record.clients[client].remove(message(position))


def swap(client: str, one: str, other: str) -> Callable[[Record], None]:
    def plant(record: Record) -> None:
        events = record.clients[client]
        at, to = events.index(message(one)), events.index(message(other))
        events[at], events[to] = events[to], events[at]

    return plant


def put(client: str, after: str, event: Event) -> Callable[[Record], None]:
    def plant(record: Record) -> None:
        events = record.clients[client]
        events.insert(events.index(message(after)) + 1, event)

    return plant


def replace(client: str, old: Event, new: Event) -> Callable[[Record], None]:
    def plant(record: Record) -> None:
        events = record.clients[client]
        events[events.index(old)] = new

    return plant


def lose_acknowledged(record: Record) -> None:
    record.attempts["lost"] = 1
    record.acknowledged.append(Acknowledged("lost", "a-11"))


def acknowledge_another(record: Record) -> None:
    record.attempts["other"] = 1
    record.acknowledged.append(Acknowledged("other", "a-4"))


def store_twice(record: Record) -> None:
    again = Heard("a-11", "payload a-3")
    record.log.append(again)
    for name in ("stays", "resumes"):
        record.clients[name].append(again)
    record.clients["plain"].append(Heard(None, "payload a-3"))


def stop_short(record: Record) -> None:
    record.clients["stays"].pop()


def hole_in_the_log(record: Record) -> None:
    del record.log[5]


@pytest.mark.parametrize(
    ("plant", "kind"),
    [
        (remove("stays", "a-5"), Kind.SILENTLY_LOST),
        (remove("resumes", "a-5"), Kind.SILENTLY_LOST),
        (replace("plain", Heard(None, "payload a-5"), Heard(None, "payload a-6")), Kind.SILENTLY_LOST),
        (stop_short, Kind.SILENTLY_LOST),
        (hole_in_the_log, Kind.SILENTLY_LOST),
        (swap("stays", "a-5", "a-6"), Kind.REORDERED),
        (swap("resumes", "a-8", "a-9"), Kind.REORDERED),
        (put("stays", "a-5", message("a-5")), Kind.DUPLICATED),
        (put("stays", "a-9", message("a-2")), Kind.DUPLICATED),
        (put("resumes", "a-4", message("a-4")), Kind.DUPLICATED),
        (store_twice, Kind.DUPLICATED),
        (put("stays", "a-10", Heard("a-11", "nobody's")), Kind.PHANTOM),
        (replace("stays", message("a-4"), Heard("a-4", "payload a-5")), Kind.DISAGREEMENT),
        (acknowledge_another, Kind.DISAGREEMENT),
        (lose_acknowledged, Kind.ACKNOWLEDGED_LOST),
        (put("stays", "a-5", Told("diverged", "a-5")), Kind.FALSELY_RESET),
        (put("stays", "a-5", Told("expired", "a-5")), Kind.FALSELY_RESET),
        (
            replace("resumes", Began("a-4", "a-4", True, 3), Began("a-4", "a-4", False, 0, "expired")),
            Kind.FALSELY_RESET,
        ),
        (replace("resumes", Began("a-4", "a-4", True, 3), Began("a-6", "a-4", True, 3)), Kind.MISCOUNTED),
        (replace("resumes", Began("a-4", "a-4", True, 3), Began("a-4", "a-4", True, 9)), Kind.MISCOUNTED),
    ],
)
def test_a_planted_fault_is_found(plant: Callable[[Record], None], kind: Kind) -> None:
    record = good()
    plant(record)
    assert judge(record).found[kind] > 0
    assert judge(record).broken(may_lose=False) != []


@pytest.mark.parametrize(
    ("plant", "kind"),
    [
        (lambda record: record.clients["saw"].remove(Told("diverged", "b-5")), Kind.REORDERED),
        (
            lambda record: record.clients.update({"saw": [Began("a-0"), *run("a", 1, 6), *run("b", 7, 9)]}),
            Kind.SILENTLY_LOST,
        ),
        (lambda record: record.clients.update({"saw": [Began("a-0"), *run("a", 1, 8)]}), Kind.SILENTLY_LOST),
        (put("saw not", "a-5", Told("diverged", "b-5")), Kind.FALSELY_RESET),
        (replace("saw", message("b-6"), Heard("b-6", "payload b-7")), Kind.DISAGREEMENT),
    ],
)
def test_a_fault_planted_around_a_lost_tail_is_found(plant: Callable[[Record], None], kind: Kind) -> None:
    record = lost_tail()
    plant(record)
    assert judge(record).found[kind] > 0
    assert judge(record).broken(may_lose=True) != []


@pytest.mark.parametrize(
    ("place", "events", "kind"),
    [
        (slice(6, 7), [], Kind.SILENTLY_LOST),  # a-6, which a witness knows
        (slice(8, 10), [], Kind.REORDERED),  # its close and return: nobody told it
        (slice(11, 12), [], Kind.SILENTLY_LOST),
        (slice(11, 12), [Heard(None, "payload a-6")], Kind.DUPLICATED),
    ],
)
def test_a_fault_planted_into_what_a_plain_socket_heard_alone_is_found(
    place: slice, events: list[Event], kind: Kind
) -> None:
    record = plain_alone()
    record.clients["alone"][place] = events
    assert judge(record).found[kind] > 0


def test_an_id_that_a_plain_socket_was_given_explains_nothing_a_second_time() -> None:
    record = plain_alone()
    events = record.clients["alone"]
    # a-6 and a-7 are known for certain; what comes after the return are b-7 and b-9, without b-8.
    events[events.index(record.clients["alone"][11])] = events[-1]
    del events[12:]
    record.present = set()
    assert judge(record).found[Kind.SILENTLY_LOST] == 1


def test_a_witness_is_believed_when_two_servers_disagree() -> None:
    record = plain_alone()
    record.witnessed[6380] = [*record.log, Heard("a-7", "new 8")]
    assert judge(record).found[Kind.DISAGREEMENT] == 1


def test_many_losses_of_the_store_do_not_hide_what_is_wrong() -> None:
    record = lost_tail()
    for number in range(1000):
        record.attempts[f"lost {number}"] = 1
        record.acknowledged.append(Acknowledged(f"lost {number}", f"c-{number + 10}"))
    assert judge(record).broken(may_lose=True) == []
    record.clients["saw not"].pop()
    assert judge(record).broken(may_lose=True) != []


def test_a_reset_inside_a_short_log_is_false_and_one_beyond_it_is_not() -> None:
    record = expired()
    record.clients["within"][8] = Began("a-9", "a-6", False, 0, "expired")
    assert judge(record).found[Kind.FALSELY_RESET] == 1


def test_a_message_without_an_answered_subscribe_is_found() -> None:
    record = good()
    del record.clients["stays"][0]
    assert judge(record).found[Kind.REORDERED] == 1
