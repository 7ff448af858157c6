"""Publishing over REST without a network: repetitions, keys, batches, in virtual time."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.clients.python.world import Service
from tocsin.errors import (
    BadChannel,
    BadRequest,
    Conflict,
    Forbidden,
    PublishTimeout,
    TocsinError,
    TooLarge,
    Unauthorized,
)
from tocsin.events import Ack
from tocsin.posting import BATCH, BATCH_BYTES, Fault, Outcomes, Pause, Post, Reply, Request, Terms, deliver

Answer = Callable[[Request], Reply | Fault]


class Play:
    """Drives `deliver` in virtual time.

    Attributes:
        requests: what was asked, as messages.
    """

    def __init__(self, **terms: Any) -> None:
        self.now = 0.0
        self.requests: list[list[dict[str, Any]]] = []
        self.renewals = 0
        given: dict[str, Any] = {"timeout": 30.0, "clock": lambda: self.now, "chance": random.Random(0)}
        self.terms = Terms(**(given | terms))

    def run(self, posts: list[Post], answer: Answer) -> Outcomes:
        steps = deliver(posts, self.terms)
        given: Reply | Fault | None = None
        while True:
            try:
                step = steps.send(given)
            except StopIteration as end:
                outcomes: Outcomes = end.value
                return outcomes
            if isinstance(step, Pause):
                assert step.seconds >= 0
                self.now += step.seconds
                given = None
            else:
                assert step.seconds > 0
                self.requests.append(json.loads(step.body)["messages"])
                self.renewals += step.renew
                given = answer(step)
                if isinstance(given, Fault):
                    self.now += min(step.seconds, 1.0)


def ok(request: Request) -> Reply:
    count = len(json.loads(request.body)["messages"])
    return results([{"id": f"a-{number}", "duplicate": False} for number in range(count)])


def results(found: list[dict[str, Any]]) -> Reply:
    return Reply(200, json.dumps({"results": found}).encode())


def refuse(status: int, code: str, retry_after: float | None = None) -> Reply:
    given = {"code": code, "message": code, "retry_after": retry_after}
    return Reply(status, json.dumps({"error": given}).encode())


def in_turn(*answers: Reply | Fault) -> Answer:
    """These, then all is well."""
    left = list(answers)
    return lambda request: left.pop(0) if left else ok(request)


ONE = [Post("room", 1)]


@pytest.mark.parametrize(
    "trouble",
    [Fault("cut", sent=True), refuse(503, "unavailable", 2.0), refuse(500, "internal"), Reply(502, b"<html>")],
    ids=["no answer", "503", "500", "a proxy's page"],
)
def test_it_is_repeated_with_the_same_key(trouble: Reply | Fault) -> None:
    play = Play()
    assert play.run(ONE, in_turn(trouble, trouble)) == [Ack("a-0")]
    assert len(play.requests) == 3
    assert play.requests[0] == play.requests[1] == play.requests[2]
    assert len(play.requests[0][0]["key"]) >= 16


def test_the_service_says_when_to_come_back() -> None:
    play = Play()
    play.run(ONE, in_turn(refuse(503, "unavailable", 2.0)))
    assert 2.0 <= play.now <= 2.5
    play = Play()
    play.run(ONE, in_turn(Reply(429, b"", "3")))
    assert 3.0 <= play.now <= 3.5


@pytest.mark.parametrize(("status", "code"), [(400, "bad_request"), (403, "forbidden"), (413, "too_large")])
def test_what_would_be_refused_again_is_not_repeated(status: int, code: str) -> None:
    play = Play()
    with pytest.raises(TocsinError) as refused:
        play.run(ONE, lambda _: refuse(status, code))
    assert refused.value.code == code
    assert isinstance(refused.value, TooLarge) == (code == "too_large")
    assert len(play.requests) == 1


@pytest.mark.parametrize("sent", [True, False])
def test_it_gives_up_in_time_and_says_whether_it_may_have_been_published(sent: bool) -> None:
    play = Play(timeout=20.0)
    [outcome] = play.run(ONE, lambda _: Fault("nobody is there", sent))
    assert isinstance(outcome, PublishTimeout)
    assert outcome.sent == sent
    assert play.now == pytest.approx(20.0, abs=1.0)


def test_no_key_is_used_beyond_four_fifths_of_its_window() -> None:
    play = Play(timeout=1000.0, key_seconds=60.0)
    play.run(ONE, lambda _: Fault("nobody is there", sent=True))
    assert play.now <= 49


def test_each_message_has_its_own_outcome_and_only_what_failed_is_repeated() -> None:
    play = Play()
    answers: list[dict[str, Any]] = [
        {"id": "a-1", "duplicate": False},
        {"error": {"code": "unavailable", "message": "away", "retry_after": 1.0}},
        {"error": {"code": "conflict", "message": "another body"}},
    ]
    outcomes = play.run([Post("room", number) for number in range(3)], in_turn(results(answers)))
    assert outcomes[:2] == [Ack("a-1"), Ack("a-0")]
    assert isinstance(outcomes[2], Conflict)
    assert [[message["data"] for message in request] for request in play.requests] == [[0, 1, 2], [1]]
    assert play.requests[1][0]["key"] == play.requests[0][1]["key"]


def test_an_ephemeral_message_is_not_repeated() -> None:
    play = Play()
    [outcome] = play.run([Post("room", 1, ephemeral=True)], lambda _: Fault("cut", sent=True))
    assert isinstance(outcome, PublishTimeout)
    assert play.requests == [[{"channel": "room", "ephemeral": True, "data": 1}]]


def test_a_refusal_of_a_later_request_leaves_the_outcomes_of_the_others() -> None:
    play = Play()
    posts = [Post("room", "first"), Post("room", "x" * BATCH_BYTES), Post("room", "last")]
    first, large, last = play.run(
        posts, in_turn(results([{"id": "a-1", "duplicate": False}]), refuse(413, "too_large"))
    )
    assert (first, last) == (Ack("a-1"), Ack("a-0"))
    assert isinstance(large, TooLarge)
    done = results([{"id": "a-1", "duplicate": False}])
    first, *others = play.run(posts, in_turn(done, refuse(403, "forbidden")))
    assert first == Ack("a-1")
    assert [type(other) for other in others] == [Forbidden, Forbidden]
    assert len(play.requests) == 3 + 2


@pytest.mark.parametrize("whole", [True, False])
def test_a_repetition_that_is_not_allowed_any_more_says_nothing_of_the_first_try(whole: bool) -> None:
    no = refuse(403, "forbidden") if whole else results([{"error": {"code": "forbidden", "message": "no"}}])
    [outcome] = Play().run(ONE, in_turn(Fault("cut", sent=True), no))
    assert isinstance(outcome, PublishTimeout)
    assert outcome.sent
    assert isinstance(outcome.__cause__, Forbidden)


def test_the_time_given_is_for_all_requests_together() -> None:
    play = Play(timeout=20.0)
    outcomes = play.run([Post("room", None)] * (3 * BATCH), lambda _: Fault("nobody is there", sent=True))
    assert play.now == pytest.approx(20.0, abs=1.0)
    assert [isinstance(outcome, PublishTimeout) and outcome.sent for outcome in outcomes] == [
        number < BATCH for number in range(3 * BATCH)
    ]


def test_a_new_token_is_asked_for_once() -> None:
    play = Play(renewable=True)
    assert play.run(ONE, in_turn(refuse(401, "unauthorized"))) == [Ack("a-0")]
    assert play.renewals == 1
    with pytest.raises(Unauthorized):
        Play(renewable=True).run(ONE, lambda _: refuse(401, "unauthorized"))
    with pytest.raises(Unauthorized):
        Play().run(ONE, in_turn(refuse(401, "unauthorized")))


def test_what_cannot_be_published_is_refused_before_anything_is_sent() -> None:
    for bad, error in (
        (Post("no such room", 1), BadChannel),
        (Post("room", 1, key="short"), BadRequest),
        (Post("room", 1, key="0123456789abcdef", ephemeral=True), BadRequest),
        (Post("room", float("nan")), ValueError),
    ):
        play = Play()
        with pytest.raises(error):
            play.run([*ONE, bad], ok)
        assert play.requests == []


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.integers(0, BATCH_BYTES // 3), max_size=12))
def test_requests_are_bounded_in_bytes_and_order_is_kept(sizes: list[int]) -> None:
    play = Play()
    play.run([Post("room", [number, "x" * size]) for number, size in enumerate(sizes)], ok)
    assert [message["data"][0] for request in play.requests for message in request] == list(range(len(sizes)))
    for request in play.requests:
        assert len(request) == 1 or len(json.dumps(request)) < 1_048_576


def test_requests_are_bounded_in_messages() -> None:
    play = Play()
    assert len(play.run([Post("room", None)] * (2 * BATCH + 1), ok)) == 2 * BATCH + 1
    assert [len(request) for request in play.requests] == [BATCH, BATCH, 1]


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.sampled_from(["ok", "cut before", "cut after", "away before", "away after"]), max_size=30))
def test_whatever_happens_each_message_is_in_the_log_at_most_once(troubles: list[str]) -> None:
    play, service, left = Play(), Service(), list(troubles)

    def answer(request: Request) -> Reply | Fault:
        trouble = left.pop(0) if left else "ok"
        found: list[dict[str, Any]] = []
        for message in json.loads(request.body)["messages"]:
            if not trouble.endswith("before"):
                identity, duplicate = service.store(message["data"], message["key"], play.now)
                found.append({"id": identity, "duplicate": duplicate})
        if trouble.startswith("cut"):
            return Fault("cut", sent=True)
        return refuse(503, "unavailable", 1.0) if trouble.startswith("away") else results(found)

    outcomes = play.run([Post("room", number) for number in range(3)], answer)
    logged = [entry.data for entry in service.log]
    assert len(logged) == len(set(logged))
    for number, outcome in enumerate(outcomes):
        assert number in logged or not isinstance(outcome, Ack)
