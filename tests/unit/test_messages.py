"""Positions, channel names and patterns: what is in the grammar and what is not."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.errors import BadChannel, BadPosition
from app.core.messages import Kind, Position, Publication, check_channel, matches

CHANNEL_CHARACTERS = "abcXYZ019_.:@-"
STEADY = settings(derandomize=True, database=None, deadline=None)
NAMES = st.text(CHANNEL_CHARACTERS, min_size=1, max_size=128)


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("4c1f0a-120", Position("4c1f0a", 120)),
        ("4c1f0a99beef-0", Position("4c1f0a99beef", 0)),
        ("0-0", Position("0", 0)),
        ("a-007", Position("a", 7)),
        (f"{'f' * 40}-9999999999999999", Position("f" * 40, 9_999_999_999_999_999)),
    ],
)
def test_a_position_is_an_epoch_and_an_offset(text: str, position: Position) -> None:
    assert Position.parse(text) == position


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "4c1f",
        "4c1f-",
        "-12",
        "4c1f--12",
        "4c1f-12-3",
        "4C1F-12",
        "xyz-12",
        "4c1f-1.0",
        "4c1f-+1",
        "4c1f-1_0",
        "4c1f- 1",
        " 4c1f-1",
        "4c1f-1\n",
        "4c1f-1\x00",
        "4c1f-\u0661",
        "4c1f-\uff11",
        f"{'f' * 41}-1",
        f"4c1f-{'1' * 17}",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(BadPosition):
        Position.parse(text)


@STEADY
@given(st.text("0123456789abcdef", min_size=1, max_size=40), st.integers(0, 10**16 - 1))
def test_a_position_survives_the_wire(epoch: str, offset: int) -> None:
    position = Position(epoch, offset)
    assert Position.parse(str(position)) == position


@STEADY
@given(st.text())
def test_no_text_raises_anything_but_a_bad_position(text: str) -> None:
    try:
        parsed = Position.parse(text)
    except BadPosition:
        return
    epoch, _, digits = text.partition("-")
    assert (parsed.epoch, parsed.offset) == (epoch, int(digits))


@STEADY
@given(NAMES)
def test_a_channel_name_in_the_grammar_is_returned_unchanged(name: str) -> None:
    assert check_channel(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a" * 129,
        "a b",
        "a\n",
        "\n",
        "a\x00",
        "a*",
        "a?",
        "[a]",
        "{a}",
        "a/b",
        "a,b",
        "a=b",
        "a\u00e4",
        "\u0430",
        "a\uff11",
        "a\u2028",
    ],
)
def test_a_channel_name_outside_the_grammar_is_refused(name: str) -> None:
    with pytest.raises(BadChannel):
        check_channel(name)


@pytest.mark.parametrize(
    ("pattern", "channel"),
    [
        ("*", "anything:at.all@x-y_z"),
        ("room:*", "room:42"),
        ("room:*", "room:"),
        ("*:42", "room:42"),
        ("a*b*c", "abc"),
        ("a*b*c", "a1b2b3c"),
        ("room.1", "room.1"),
        ("**", "x"),
    ],
)
def test_a_star_is_any_run_of_channel_characters(pattern: str, channel: str) -> None:
    assert matches(pattern, channel)


@pytest.mark.parametrize(
    ("pattern", "channel"),
    [
        ("room:*", "room"),
        ("room:*", "xroom:1"),
        ("room", "room1"),
        ("room", "aroom"),
        ("room.1", "room:1"),
        ("ro+m", "room"),
        ("[a-z]", "a"),
        ("(room)", "room"),
        ("room|lobby", "lobby"),
        ("", "a"),
        ("room", "ROOM"),
        ("room:*", "room:\n"),
        ("room:*", "room:1\n"),
        ("room", "room\n"),
    ],
)
def test_everything_else_in_a_pattern_is_literal_and_the_whole_name_counts(pattern: str, channel: str) -> None:
    assert not matches(pattern, channel)


def test_the_user_is_put_in_literally() -> None:
    assert matches("user:{user}", "user:ada", "ada")
    assert matches("user:{user}:*", "user:ada:inbox", "ada")
    assert matches("{user}-{user}", "ada-ada", "ada")
    assert matches("user:{user}", "user:a.b", "a.b")
    assert not matches("user:{user}", "user:axb", "a.b")
    assert not matches("user:{user}", "user:bob", "ada")
    assert not matches("user:{user}", "user:adam", "ada")
    assert not matches("user:{user}", "user:{user}", "ada")


@pytest.mark.parametrize(
    "user", [None, "", "*", "a*", "{user}", "ada lovelace", "ada\n", "\u00e4da", "a" * 129, ".*|x", "a/b"]
)
@pytest.mark.parametrize("channel", ["user:", "user:ada", "user:*", "user:x"])
def test_the_user_matches_nothing_when_anonymous_or_outside_the_grammar(user: str | None, channel: str) -> None:
    assert not matches("user:{user}", channel, user)
    assert not matches("user:{user}*", channel, user)
    assert not matches("*{user}", channel, user)


def test_a_star_alone_matches_also_for_the_anonymous() -> None:
    assert matches("*", "lobby", None)


@STEADY
@given(NAMES, NAMES)
def test_a_user_reaches_exactly_its_own_channel(user: str, other: str) -> None:
    assert matches("user:{user}", f"user:{user}", user)
    assert matches("user:{user}", f"user:{other}", user) is (user == other)


def test_attributes_are_kept_whether_known_or_not() -> None:
    publication = Publication(Position("a", 1), Kind.JSON, b"{}", b'{"c":"c9","t":17,"z":[1]}')
    assert publication.read_attributes() == {"c": "c9", "t": 17, "z": [1]}
    assert Publication(None, Kind.TEXT, b"").read_attributes() == {}


@STEADY
@given(
    st.lists(st.sampled_from(["*", "a", "ab", ".", "{user}", ":"]), min_size=1, max_size=12).map("".join),
    st.text("ab.:", min_size=1, max_size=24),
)
def test_patterns_match_what_the_regular_expression_of_their_grammar_does(pattern: str, channel: str) -> None:
    parts = {"*": "[A-Za-z0-9_.:@-]*", "{user}": "ab"}
    pieces = re.split(r"(\*|\{user\})", pattern)
    oracle = re.compile("".join(parts.get(piece) or re.escape(piece) for piece in pieces) + r"\Z")
    assert matches(pattern, channel, "ab") is (oracle.match(channel) is not None)


def test_a_pattern_of_many_stars_costs_no_more_than_others() -> None:
    started = time.perf_counter()
    assert not matches("*a" * 128, "a" * 127 + "b")
    assert time.perf_counter() - started < 0.1
