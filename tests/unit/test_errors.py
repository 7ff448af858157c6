"""The table of errors is complete, and every close code says whether to come back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.core import errors
from app.core.errors import RULES, Close, Code, TocsinError

CLOSES = {name: code for name, code in vars(Close).items() if name.isupper()}
HTTP = {
    "bad_request": 400,
    "unknown_type": 400,
    "bad_channel": 400,
    "bad_position": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "conflict": 409,
    "gone": 410,
    "too_large": 413,
    "unsupported_type": 415,
    "rate_limited": 429,
    "too_many_subscriptions": 429,
    "unavailable": 503,
    "draining": 503,
    "internal": 500,
}
"""PROTOCOL: errors; the two that are missing never travel over HTTP."""
RETRIED = {"rate_limited", "unavailable", "draining", "internal"}


def tree(root: type[TocsinError]) -> Iterator[type[TocsinError]]:
    yield root
    for branch in root.__subclasses__():
        yield from tree(branch)


@pytest.mark.parametrize("code", Code, ids=str)
def test_every_code_has_a_rule(code: Code) -> None:
    rule = RULES[code]
    assert 400 <= rule.http <= 599
    assert rule.close in CLOSES.values()


def test_the_table_holds_nothing_else() -> None:
    assert set(RULES) == set(Code)


@pytest.mark.parametrize(("code", "status"), HTTP.items())
def test_the_status_is_the_protocols(code: str, status: int) -> None:
    assert RULES[Code(code)].http == status


def test_every_code_of_the_protocol_travels_over_http_but_two() -> None:
    assert set(Code) - set(map(Code, HTTP)) == {Code.NOT_SUBSCRIBED, Code.ALREADY_SUBSCRIBED}


@pytest.mark.parametrize("code", Code, ids=str)
def test_trying_the_same_again_helps_only_where_the_protocol_says_so(code: Code) -> None:
    assert RULES[code].retry is (code.value in RETRIED)


@pytest.mark.parametrize("code", Code, ids=str)
def test_what_may_be_retried_never_closes_with_44xx(code: Code) -> None:
    rule = RULES[code]
    if rule.retry:
        assert not 4400 <= rule.close <= 4499


def test_close_codes_are_unique_and_in_the_ranges_of_the_standard_or_ours() -> None:
    assert len(set(CLOSES.values())) == len(CLOSES)
    for name, code in CLOSES.items():
        assert 1000 <= code <= 1015 or 4400 <= code <= 4599, name


def test_44xx_are_those_after_which_a_client_stops() -> None:
    stops = {name for name, code in CLOSES.items() if 4400 <= code <= 4499}
    assert stops == {"MALFORMED", "UNAUTHORIZED", "FORBIDDEN"}
    returns = {name for name, code in CLOSES.items() if 4500 <= code <= 4599}
    assert returns == {"NO_PONG", "GAP", "ABUSE"}


@pytest.mark.parametrize(
    ("code", "close"),
    [
        (Code.UNAVAILABLE, 1013),
        (Code.FORBIDDEN, 4403),
        (Code.GONE, 4510),
        (Code.TOO_LARGE, 1009),
        (Code.DRAINING, 1012),
    ],
)
def test_plain_is_told_by_closing(code: Code, close: int) -> None:
    assert RULES[code].close == close


@pytest.mark.parametrize("kind", list(tree(TocsinError)), ids=lambda kind: kind.__name__)
def test_every_exception_has_a_code_of_its_own_and_its_rule(kind: type[TocsinError]) -> None:
    error = kind("a sentence", retry_after=1.5, position="a-1")
    assert error.rule is RULES[kind.code]
    assert (str(error), error.message, error.retry_after, error.position) == ("a sentence", "a sentence", 1.5, "a-1")
    assert [other for other in tree(TocsinError) if other.code is kind.code] == [kind]


def test_the_tree_at_the_top_of_the_module_is_the_real_one() -> None:
    assert errors.__doc__ is not None
    for kind in tree(TocsinError):
        assert kind.__name__ in errors.__doc__
