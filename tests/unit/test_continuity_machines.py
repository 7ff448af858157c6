"""The two state machines and the judging functions, case by case."""

from __future__ import annotations

from typing import Any

import pytest

from app.core import continuity
from app.core.continuity import (
    ChannelState,
    Deliver,
    Follower,
    Gap,
    Join,
    Mode,
    Page,
    Reading,
    Reason,
    Reconnect,
    Resumed,
    Scatter,
    Sync,
    Verdict,
    consecutive,
    label,
    on_history,
    resume,
    subscribe,
)
from app.core.messages import Cleared, Kind, Position, Publication

LINEAGE = (("a", 1), ("b", 5), ("c", 5), ("d", 8))


def message(epoch: str, offset: int) -> Publication:
    return Publication(Position(epoch, offset), Kind.TEXT, b"m")


def reading(verdict: Verdict = Verdict.OK, epoch: str = "a", top: int = 0, **more: Any) -> Reading:
    return Reading(verdict, epoch, top, more.pop("tail", epoch), more.pop("lineage", ((epoch, 1),)), **more)


def live(offset: int = 0, epoch: str = "a") -> ChannelState:
    state = ChannelState()
    sync = state.start_sync()
    assert state.on_reading(reading(Verdict.NEW, epoch, offset), sync.generation) == []
    return state


def mode(state: ChannelState) -> Mode:
    return state.mode


@pytest.mark.parametrize(
    ("position", "there"),
    [
        (Position("a", 0), True),
        (Position("a", 4), True),
        (Position("a", 5), False),
        (Position("b", 4), True),
        (Position("b", 5), False),
        (Position("c", 0), True),
        (Position("c", 7), True),
        (Position("c", 8), False),
        (Position("d", 9), True),
        (Position("d", 10), False),
        (Position("x", 1), False),
    ],
    ids=str,
)
def test_a_position_is_on_the_history_until_the_next_reign_begins(position: Position, there: bool) -> None:
    assert on_history(LINEAGE, 9, position) is there


def test_nothing_is_on_an_empty_history() -> None:
    assert not on_history((), 0, Position("a", 0))


@pytest.mark.parametrize(("offset", "epoch"), [(0, "a"), (1, "a"), (4, "a"), (5, "c"), (7, "c"), (8, "d"), (99, "d")])
def test_an_offset_is_named_by_the_reign_that_covers_it(offset: int, epoch: str) -> None:
    assert label(LINEAGE, offset) == epoch


def test_what_is_older_than_the_lineage_is_named_by_its_first_reign() -> None:
    assert label((("c", 50), ("d", 60)), 3) == "c"


def test_a_hole_ends_a_page() -> None:
    page = [message("a", 3), message("b", 4), message("b", 6)]
    assert list(consecutive(page, 2)) == page[:2]
    assert list(consecutive(page, 1)) == []


def test_an_ephemeral_message_ends_a_page() -> None:
    assert list(consecutive([Publication(None, Kind.TEXT, b"")], 0)) == []


@pytest.mark.parametrize(
    ("verdict", "cleared", "asked", "reason"),
    [
        (Verdict.EXPIRED, "a", "a", Reason.EXPIRED),
        (Verdict.EXPIRED, None, "a", Reason.EXPIRED),
        (Verdict.DIVERGED, None, "x", Reason.DIVERGED),
        (Verdict.DIVERGED, "a", "x", Reason.CLEARED),
        (Verdict.DIVERGED, "a", "b", Reason.DIVERGED),
        (Verdict.DIVERGED, "b", "x", Reason.DIVERGED),
    ],
)
def test_a_clear_is_the_reason_only_where_the_lineage_begins_with_it(
    verdict: Verdict, cleared: str | None, asked: str, reason: Reason
) -> None:
    given = reading(verdict, "b", 9, lineage=(("a", 1), ("b", 5)), cleared=cleared)
    assert given.reason(Position(asked, 9)) is reason


def test_a_clear_is_no_reason_without_a_lineage() -> None:
    assert reading(Verdict.DIVERGED, lineage=(), cleared="a").reason(Position("x", 1)) is Reason.DIVERGED


def test_a_live_channel_delivers_the_next_and_skips_what_it_has() -> None:
    state = live(4)
    assert state.on_publication(message("a", 4)) == ()
    assert state.on_publication(message("a", 5)) == (Deliver((message("a", 5),)),)
    assert state.position == Position("a", 5)


def test_a_message_ahead_starts_a_sync_from_the_last_one_delivered() -> None:
    state = live(4)
    assert state.on_publication(message("a", 6)) == (Sync(Position("a", 4), 2),)
    assert mode(state) is Mode.SYNC
    page = (message("a", 5), message("a", 6))
    assert state.on_reading(reading(top=6, publications=page), 2) == [Deliver(page)]
    assert mode(state) is Mode.LIVE


def test_a_short_page_asks_for_the_next_one_and_stays_in_sync() -> None:
    state = live(0)
    sync = state.start_sync()
    page = (message("a", 1), message("a", 2))
    effects = state.on_reading(reading(top=3, publications=page), sync.generation)
    assert effects == [Deliver(page), Sync(Position("a", 2), sync.generation)]
    assert mode(state) is Mode.SYNC


def test_an_answer_to_an_older_sync_is_ignored() -> None:
    state = live(0)
    old = state.start_sync()
    state.start_sync()
    assert state.on_reading(reading(Verdict.DIVERGED), old.generation) == ()
    assert mode(state) is Mode.SYNC


def test_an_older_epoch_is_skipped_and_an_unknown_one_asks() -> None:
    state = live(0)
    sync = state.start_sync()
    state.on_reading(reading(epoch="b", lineage=(("a", 1), ("b", 1))), sync.generation)
    assert state.on_publication(message("a", 1)) == ()
    assert state.on_publication(message("x", 1)) == (Sync(Position("a", 0), 3),)


def test_a_message_unknown_to_a_later_reading_replaces_both_connections() -> None:
    state = live(0)
    (sync,) = state.on_publication(message("x", 1))
    assert isinstance(sync, Sync)
    assert state.on_reading(reading(), sync.generation) == [Reconnect()]
    assert mode(state) is Mode.SYNC
    assert state.on_reading(reading(), sync.generation) == ()
    again = state.connection_replaced()
    assert again is not None
    assert state.on_reading(reading(), again.generation) == []
    assert mode(state) is Mode.LIVE


def test_a_lost_history_scatters_the_group_and_goes_on_from_the_top() -> None:
    state = live(4)
    sync = state.start_sync()
    state.on_publication(message("b", 3))
    given = reading(Verdict.DIVERGED, "b", 2, lineage=(("a", 1), ("b", 3)), tail="a")
    assert state.on_reading(given, sync.generation) == [Scatter(), Deliver((message("b", 3),))]
    assert (state.position, state.epoch) == (Position("b", 3), "b")


def test_a_clear_heard_live_is_asked_about_and_never_delivered() -> None:
    state = live(4)
    (sync,) = state.on_publication(Cleared(Position("b", 4)))
    assert isinstance(sync, Sync)
    given = reading(Verdict.DIVERGED, "b", 4, lineage=(("b", 5),), cleared="b")
    assert state.on_reading(given, sync.generation) == [Scatter()]
    assert state.on_publication(Cleared(Position("b", 4))) == ()


def test_what_does_not_fit_the_buffer_is_found_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuity, "BUFFER", 1)
    state = live(0)
    sync = state.start_sync()
    for offset in (1, 2, 3):
        state.on_publication(message("a", offset))
    assert state.on_reading(reading(), sync.generation) == [Deliver((message("a", 1),))]
    assert state.on_publication(message("a", 4)) == (Sync(Position("a", 1), sync.generation + 1),)


def test_a_closed_channel_hears_nothing() -> None:
    state = live(4)
    state.close()
    assert state.on_publication(message("a", 5)) == ()
    assert state.connection_replaced() is None
    assert state.position is None


@pytest.mark.parametrize(
    ("given", "epoch", "offset", "differs"),
    [
        (reading(top=4), "a", 4, False),
        (reading(top=5), "a", 4, True),
        (reading(epoch="b", top=4), "a", 4, True),
        (reading(Verdict.DIVERGED, top=4), "a", 4, True),
        (reading(top=9), "a", 3, False),
        (reading(top=9), "x", 4, False),
    ],
)
def test_a_check_asks_for_a_sync_only_if_nothing_has_moved(
    given: Reading, epoch: str, offset: int, differs: bool
) -> None:
    assert live(4).differs(given, epoch, Position("a", offset)) is differs


def test_a_check_says_nothing_while_the_log_is_asked() -> None:
    state = live(4)
    state.start_sync()
    assert not state.differs(reading(top=9), "a", Position("a", 4))


def test_a_resume_stands_before_its_replay() -> None:
    resumed, follower = resume(reading(top=7), Position("a", 4))
    assert resumed == Resumed(Position("a", 4), True, 3)
    assert (follower.position, follower.epoch) == (Position("a", 4), "a")


def test_a_resume_that_fails_goes_on_from_the_top_and_replays_nothing() -> None:
    resumed, follower = resume(reading(Verdict.EXPIRED, "b", 7, tail="a"), Position("a", 1))
    assert resumed == Resumed(Position("b", 7), False, 0, Reason.EXPIRED)
    assert follower.position == Position("b", 7)


def test_a_new_subscriber_stands_at_the_top_under_the_name_of_its_message() -> None:
    resumed, follower = subscribe(reading(Verdict.NEW, "b", 7, tail="a"))
    assert resumed == Resumed(Position("a", 7), None)
    assert (follower.position, follower.epoch) == (Position("a", 7), "b")


def test_a_follower_joins_only_at_exactly_the_groups_position_and_epoch() -> None:
    state = live(6)
    group = Position("a", 4)
    assert Follower(Position("a", 4), "a").joins(state, group) is Join.NOW
    assert Follower(Position("a", 3), "a").joins(state, group) is Join.BEHIND
    assert Follower(Position("a", 5), "a").joins(state, group) is Join.WAIT
    assert Follower(Position("a", 7), "a").joins(state, group) is Join.RESYNC
    assert Follower(Position("a", 4), "b").joins(state, group) is Join.RESYNC
    assert Follower(Position("a", 4)).joins(state, group) is Join.BEHIND
    assert Follower(Position("a", 4), "a").joins(state, None) is Join.WAIT
    state.start_sync()
    assert Follower(Position("a", 4), "a").joins(state, group) is Join.WAIT


def test_a_page_is_cut_where_the_follower_may_join() -> None:
    page = (message("a", 3), message("a", 4), message("a", 5))
    follower = Follower(Position("a", 2))
    assert follower.on_page(reading(top=5, publications=page), Position("a", 4)) == Page(page[:2])
    assert follower.joins(live(4), Position("a", 4)) is Join.NOW


def test_a_doubted_follower_at_the_groups_position_is_proved_there_and_not_carried_past_it() -> None:
    page = (message("a", 5), message("a", 6))
    follower = Follower(Position("a", 4))
    assert follower.on_page(reading(top=6, publications=page), Position("a", 4)) == Page(())
    assert follower.joins(live(4), Position("a", 4)) is Join.NOW


def test_a_page_that_cannot_be_proved_is_a_gap() -> None:
    follower = Follower(Position("a", 2), "a")
    assert follower.on_page(reading(Verdict.DIVERGED, "b", 9)) == Gap(Reason.DIVERGED, Position("b", 9))
    assert (follower.position, follower.epoch) == (Position("b", 9), "b")
