"""When a client comes back, and after how long: the protocol's table of close codes, and HTTP refusals."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.errors import Close
from tocsin.effects import Changed, Connect
from tocsin.errors import Forbidden, RateLimited, Stopped, TocsinError, Unauthorized
from tocsin.events import State
from tocsin.line import Backoff, Line, read_refusal

STOP = {Close.DONE, Close.PROTOCOL_ERROR, Close.WRONG_TYPE, Close.BAD_UTF8, Close.POLICY, Close.TOO_BIG}
STOP |= {Close.MALFORMED, Close.UNAUTHORIZED, Close.FORBIDDEN}
RETURN = {value for name, value in vars(Close).items() if name.isupper()} - STOP


class Always(random.Random):
    """Chance that is not one: the longest wait, or the shortest."""

    def __init__(self, value: float) -> None:
        super().__init__(0)
        self.value = value

    def random(self) -> float:
        return self.value


def opened(*, chance: float = 0.999, renewable: bool = False) -> Line:
    line = Line(Backoff(), Always(chance), renewable=renewable)
    line.connect(0.0)
    line.opened(0.0)
    return line


def wait(line: Line, now: float = 0.0) -> float:
    assert line.state is State.WAITING
    assert line.return_at is not None
    return line.return_at - now


@pytest.mark.parametrize("code", sorted(STOP | {4404, 4499}))
def test_it_stops(code: int) -> None:
    line = opened()
    line.closed(code, "", 1.0)
    assert line.state is State.STOPPED
    assert line.error is not None
    assert line.due(10_000.0) == []


@pytest.mark.parametrize("code", sorted(RETURN | {1005, 1015, 3000, 4500, 4999}))
def test_it_returns(code: int) -> None:
    line = opened()
    line.closed(code, "", 1.0)
    assert wait(line, 1.0) <= 31
    assert Connect() in line.due(1.0 + wait(line, 1.0))


def test_every_code_of_the_service_has_its_verdict() -> None:
    assert len(STOP | RETURN) >= 15


def test_each_stop_says_why() -> None:
    kinds = {}
    for code in (4401, 4403, 4400):
        line = opened()
        line.closed(code, "because", 0.0)
        kinds[code] = type(line.error)
        assert "because" in str(line.error)
    assert kinds == {4401: Unauthorized, 4403: Forbidden, 4400: Stopped}


def test_abuse_waits_for_thirty_seconds_and_a_gap_not_at_all() -> None:
    line = opened(chance=0.0)
    line.closed(4529, "", 0.0)
    assert wait(line) == 30
    line = opened()
    line.closed(4510, "", 0.0)
    assert wait(line) == 0


def test_a_gap_after_each_return_is_no_reason_to_hurry() -> None:
    line = opened()
    waits = []
    for _ in range(4):
        line.closed(4510, "", 0.0)
        waits.append(wait(line))
        line.connect(0.0)
        line.opened(0.0)
    assert waits == pytest.approx([0, 0.5, 1, 2], rel=0.01)
    line.closed(4510, "", 10.0)
    assert wait(line, 10.0) == 0


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=40))
def test_waits_are_jittered_from_nothing_to_a_doubling_limit(chances: list[float]) -> None:
    line, now = Line(Backoff(), random.Random(0)), 0.0
    for failures, chance in enumerate(chances):
        line._chance = Always(chance)
        line.connect(now)
        line.failed("", now)
        assert wait(line, now) == pytest.approx(chance * min(30.0, 0.5 * 2**failures))
        now += wait(line, now)


def test_ten_seconds_of_health_begin_the_count_anew_and_fewer_do_not() -> None:
    for health, limit in ((9.9, 4.0), (10.0, 0.5)):
        line = opened()
        for _ in range(3):
            line.failed("", 0.0)
        line.opened(100.0)
        line.closed(1006, "", 100.0 + health)
        assert wait(line, 100.0 + health) == pytest.approx(limit * 0.999)


def test_it_comes_back_when_it_was_told_to() -> None:
    line = opened()
    line.announced(7.5, 1.0)
    line.closed(1012, "", 1.2)
    assert wait(line, 1.2) == pytest.approx(7.3)
    line.connect(2.0)
    line.opened(2.0)
    line.closed(1012, "", 2.1)
    assert wait(line, 2.1) < 0.5, "one telling is for one return"


@pytest.mark.parametrize("status", [400, 403, 404, 405, 413, 426])
def test_a_refusal_that_stops(status: int) -> None:
    line = opened()
    line.refused(read_refusal(status, None, None), 0.0)
    assert line.state is State.STOPPED


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_refusal_that_returns(status: int) -> None:
    line = opened(chance=0.0)
    line.refused(read_refusal(status, None, "7"), 0.0)
    assert wait(line) == 7


def test_the_service_says_when_to_come_back_more_exactly_than_its_header() -> None:
    body = {"error": {"code": "rate_limited", "message": "slow down", "retry_after": 0.25}}
    refusal = read_refusal(429, body, "1")
    assert isinstance(refusal.error, RateLimited)
    assert refusal.error.retry_after == 0.25


@pytest.mark.parametrize("body", [None, [], "no", {"error": "no"}, {"detail": 1}])
def test_a_refusal_by_something_else_is_understood_by_its_status(body: object) -> None:
    assert read_refusal(401, body, "Wed, 21 Oct 2026 07:28:00 GMT").error.code == "unauthorized"
    assert read_refusal(502, body, None).error.code == "internal"


@pytest.mark.parametrize("refused", [True, False], ids=["401", "4401"])
def test_a_new_token_is_tried_once(refused: bool) -> None:
    line = opened(renewable=True)

    def refuse(now: float) -> None:
        if refused:
            line.refused(read_refusal(401, None, None), now)
        else:
            line.closed(4401, "expired", now)

    refuse(0.0)
    assert wait(line) == 0
    assert Connect() in line.due(0.0)
    refuse(1.0)
    assert line.state is State.STOPPED
    assert isinstance(line.error, Unauthorized)


def test_a_connection_that_was_healthy_may_try_a_new_token_again() -> None:
    line = opened(renewable=True)
    for now in (0.0, 100.0):
        line.closed(4401, "", now)
        assert line.state is State.WAITING
        line.connect(now)
        line.opened(now)
        line.closed(1006, "", now + 10.0)


def test_a_fixed_token_is_not_tried_again() -> None:
    line = opened()
    line.refused(read_refusal(401, None, None), 0.0)
    assert line.state is State.STOPPED


def test_states_are_told_with_reasons() -> None:
    line = Line(Backoff(), Always(0.5))
    told = [*line.connect(0.0), *line.opened(0.0), *line.closed(1012, "bye", 0.0), *line.stop(TocsinError("enough"))]
    changes = [effect.change for effect in told if isinstance(effect, Changed)]
    assert [change.state for change in changes] == ["connecting", "open", "waiting", "stopped"]
    assert changes[2].reason == "the service restarts (1012: bye)"
    assert changes[2].delay == 0.25
    assert changes[3].reason == "enough"
