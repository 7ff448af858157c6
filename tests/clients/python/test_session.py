"""The client's session in virtual time: outbox, keys, watchdog, tokens, resuming, presence."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.clients.python.world import ROOM, Player, error
from tocsin.chances import Chances
from tocsin.errors import (
    AlreadySubscribed,
    BadRequest,
    Closed,
    Conflict,
    Forbidden,
    OutboxFull,
    PublishTimeout,
    Stopped,
    Timeout,
    TocsinError,
    TooLarge,
    Unavailable,
)
from tocsin.events import Ack, Gap, Member, Message, Page, Presence, State
from tocsin.outbox import WINDOW


@pytest.fixture
def player() -> Player:
    """Connected."""
    player = Player()
    player.open()
    return player


def ids(player: Player) -> list[str | None]:
    return [event.id for event in player.heard if isinstance(event, Message)]


def types(player: Player) -> list[str]:
    return [command["type"] for command in player.sent]


# Publishing


def test_what_is_published_before_the_connection_goes_out_with_it() -> None:
    player = Player()
    refs = [player.publish(number) for number in range(3)]
    player.open()
    assert [entry.data for entry in player.service.log] == [0, 1, 2]
    assert [player.settled[ref] for ref in refs] == [Ack(player.service.identity(offset)) for offset in (1, 2, 3)]


def test_a_lost_answer_is_asked_for_again_with_the_same_key(player: Player) -> None:
    ref = player.publish("once")
    player.carry_up()
    player.cut()
    player.open()
    first, second = (command for command in player.sent if command["type"] == "publish")
    assert first == second
    assert player.settled[ref] == Ack(player.service.identity(1), duplicate=True)
    assert len(player.service.log) == 1


def test_keys_differ(player: Player) -> None:
    for _ in range(100):
        player.publish(0)
    assert len({command["key"] for command in player.sent}) == len(player.sent)


def test_a_key_is_given_up_at_four_fifths_of_its_window(player: Player) -> None:
    ref = player.publish("perhaps")
    player.cut()
    player.advance(0.8 * 120 - 0.1)
    assert ref not in player.settled
    player.advance(0.2)
    outcome = player.settled[ref]
    assert isinstance(outcome, PublishTimeout)
    assert outcome.sent
    player.open()
    assert types(player) == ["publish"]


def test_the_window_of_keys_is_that_of_the_welcome() -> None:
    player = Player()
    player.open(key_seconds=10)
    ref = player.publish("perhaps")
    player.cut()
    player.advance(8.1)
    assert isinstance(player.settled[ref], PublishTimeout)


def test_what_was_never_sent_has_no_window_but_its_own_timeout() -> None:
    player = Player()
    patient, hasty = player.publish("patient"), player.publish("hasty", timeout=5)
    player.advance(4.9)
    assert hasty not in player.settled
    player.advance(1000)
    outcome = player.settled[hasty]
    assert isinstance(outcome, PublishTimeout)
    assert not outcome.sent
    player.open()
    assert isinstance(player.settled[patient], Ack)
    assert [entry.data for entry in player.service.log] == ["patient"]


def test_the_outbox_is_bounded() -> None:
    player = Player(outbox=3)
    for number in range(3):
        player.publish(number)
    assert player.session.full
    with pytest.raises(OutboxFull):
        player.publish(3)
    player.open()
    assert not player.session.full


def test_not_more_than_a_window_is_under_way(player: Player) -> None:
    for number in range(WINDOW + 10):
        player.publish(number)
    assert len(player.sent) == WINDOW
    player.carry()
    assert [entry.data for entry in player.service.log] == list(range(WINDOW + 10))


@pytest.mark.parametrize("trouble", ["before", "after"])
def test_unavailable_is_tried_again_after_the_time_given(player: Player, trouble: str) -> None:
    player.service.trouble.append(trouble)
    ref = player.publish("once")
    player.carry()
    assert ref not in player.settled
    player.advance(0.9)
    assert len(player.sent) == 1
    player.advance(0.7)
    player.carry()
    assert player.settled[ref] == Ack(player.service.identity(1), duplicate=trouble == "after")
    assert len(player.service.log) == 1


def test_beyond_the_rate_it_sends_one_by_one(player: Player) -> None:
    """The service sends away who goes on all the same."""
    player.service.trouble.extend(["slow"] * WINDOW)
    for number in range(WINDOW):
        player.publish(number)
    player.carry()
    assert len(player.sent) == WINDOW
    player.service.trouble.append("slow")
    player.advance(0.3)
    assert len(player.sent) == WINDOW + 1
    player.carry()
    assert len(player.sent) == WINDOW + 1
    player.advance(0.3)
    player.carry()
    assert [entry.data for entry in player.service.log] == list(range(WINDOW))


@pytest.mark.parametrize("code", ["conflict", "forbidden", "too_large", "bad_request", "tomorrow"])
def test_a_refusal_is_final(player: Player, code: str) -> None:
    ref = player.publish("no")
    player.push(**error(ref, code))
    outcome = player.settled[ref]
    assert isinstance(outcome, TocsinError)
    assert outcome.code == code
    assert isinstance(outcome, Conflict) == (code == "conflict")


@pytest.mark.parametrize("lost", [True, False])
def test_a_refusal_of_a_repetition_says_nothing_of_the_first_try(player: Player, lost: bool) -> None:
    ref = player.publish("perhaps")
    player.carry_up()
    if lost:
        player.cut()
        player.wait()
        player.accept()
        player.carry_down()
        player.wire.up.clear()  # type: ignore[union-attr]
    player.push(**error(ref, "forbidden"))
    outcome = player.settled[ref]
    assert isinstance(outcome, PublishTimeout if lost else Forbidden)
    assert isinstance(outcome.__cause__, Forbidden) == lost


def test_a_key_is_not_used_after_the_machine_has_slept(player: Player) -> None:
    ref = player.publish("perhaps")
    player.cut()
    player.wait()
    player.now += 200
    player.accept()
    player.carry_down()
    assert types(player) == ["publish"]
    outcome = player.settled[ref]
    assert isinstance(outcome, PublishTimeout)
    assert outcome.sent


def test_what_one_user_has_said_is_not_sent_as_another() -> None:
    player = Player()
    player.open(user="ada")
    sent = player.publish("by ada")
    player.cut()
    unsent = player.publish("by ada, too")
    player.wait()
    player.accept(user="bob")
    player.carry_down()
    assert types(player) == ["publish"]
    outcomes = player.settled[sent], player.settled[unsent]
    assert [isinstance(outcome, PublishTimeout) and outcome.sent for outcome in outcomes] == [True, False]


def test_time_goes_on_while_the_machine_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    if hasattr(time, "CLOCK_BOOTTIME"):
        monkeypatch.setattr(time, "clock_gettime", {time.CLOCK_BOOTTIME: 4.0}.__getitem__)
        assert Chances().clock() == 4.0


def test_an_ephemeral_message_that_was_held_back_ends_with_its_connection(player: Player) -> None:
    refs = [player.publish("typing", ephemeral=True) for _ in range(WINDOW + 1)]
    player.cut()
    outcomes = [player.settled[ref] for ref in refs]
    assert [isinstance(outcome, PublishTimeout) and outcome.sent for outcome in outcomes] == [True] * WINDOW + [False]


def test_what_is_too_large_is_not_sent_for_that_would_end_the_connection(player: Player) -> None:
    fits, large = player.publish("x" * 65_534), player.publish("x" * 65_535)
    assert isinstance(player.settled[large], TooLarge)
    player.carry()
    assert isinstance(player.settled[fits], Ack)


def test_an_ephemeral_message_is_not_kept_and_not_repeated(player: Player) -> None:
    ref = player.publish("typing", ephemeral=True)
    assert player.sent == [{"type": "publish", "ref": ref, "channel": ROOM, "ephemeral": True, "data": "typing"}]
    player.cut()
    assert isinstance(player.settled[ref], PublishTimeout)
    with pytest.raises(Unavailable):
        player.publish("typing", ephemeral=True)
    player.open()
    with pytest.raises(BadRequest):
        player.publish("typing", ephemeral=True, key="0123456789abcdef")


def test_a_withdrawn_message_is_not_sent_again(player: Player) -> None:
    ref = player.publish("never mind")
    player.session.withdraw(ref)
    player.cut()
    player.open()
    assert len(player.sent) == 1
    assert ref not in player.settled


def test_reads_are_repeated_on_the_next_connection_and_time_out(player: Player) -> None:
    ref = player.session.ask_history(ROOM, player.now, limit=2)
    late = player.session.ask_members(ROOM, player.now, timeout=3)
    player.act()
    player.wire.up.clear()  # type: ignore[union-attr]
    player.cut()
    player.advance(3.1)
    assert type(player.settled[late]) is Timeout
    player.wait()
    player.accept()
    player.carry_down()
    assert types(player) == ["history", "presence", "history"]
    player.push(type="history", ref=ref, channel=ROOM, messages=[], position="a-0", complete=True)
    assert player.settled[ref] == Page((), "a-0", complete=True)


# The connection


def test_two_silent_intervals_are_the_end_of_a_connection(player: Player) -> None:
    player.wire.alive_at = 9e9  # type: ignore[union-attr]
    player.advance(49.9)
    assert player.session.state is State.OPEN
    player.advance(0.2)
    assert player.session.state is not State.OPEN
    assert any("nothing was heard" in change.reason for change in player.changes)


def test_signs_of_life_keep_a_connection(player: Player) -> None:
    player.live(1000)
    assert [change.state for change in player.changes] == ["connecting", "open"]


def test_the_interval_is_that_of_the_welcome() -> None:
    player = Player()
    player.open(ping=1)
    player.advance(2.1)
    assert player.session.state is not State.OPEN


def test_a_service_that_does_not_answer_is_given_up() -> None:
    player = Player()
    player.advance(10.1)
    assert "did not answer" in player.changes[1].reason
    player.wait()
    player.accept()
    player.advance(10.1)
    assert player.changes[-1].state is not State.OPEN


@pytest.mark.parametrize("text", ["{", b"\x00"])
def test_rubbish_is_the_end_of_a_connection(player: Player, text: str | bytes) -> None:
    player.session.receive(text, player.now)
    player.act()
    assert player.session.state is State.WAITING


def test_a_stop_ends_everything(player: Player) -> None:
    player.join()
    ref = player.publish("?")
    player.cut(4403, "revoked")
    assert isinstance(player.settled[ref], Forbidden)
    assert isinstance(player.ended[ROOM], Forbidden)
    with pytest.raises(Forbidden):
        player.publish("!")
    assert player.session.deadline is None


def test_a_service_that_is_done_stops(player: Player) -> None:
    player.cut(1000)
    assert isinstance(player.session.error, Stopped)


def test_closing_is_no_error(player: Player) -> None:
    player.join()
    ref = player.publish("?")
    player.session.close()
    player.act()
    assert isinstance(player.settled[ref], Closed)
    assert player.ended == {ROOM: None}
    assert player.changes[-1].error is None


# Channels


def test_it_resumes_after_the_last_message_it_handed_on(player: Player) -> None:
    player.join()
    for number in range(3):
        player.service.store(number, None, player.now)
    player.carry_down(2)
    player.cut()
    player.open()
    assert player.sent[-1]["since"] == player.service.identity(2)
    assert ids(player) == [player.service.identity(offset) for offset in (1, 2, 3)]
    assert player.opened == [ROOM]


def test_before_the_first_message_it_resumes_from_where_the_channel_stood(player: Player) -> None:
    player.service.store(0, None, player.now)
    player.join()
    player.cut()
    player.service.store(1, None, player.now)
    player.open()
    assert [event.data for event in player.heard] == [1]


def test_history_is_asked_for_once(player: Player) -> None:
    player.join(history=20)
    assert player.sent[-1]["history"] == 20
    player.cut()
    player.open()
    assert "history" not in player.sent[-1]


def test_a_connection_that_fell_over_in_our_own_hands_is_resumed_too(player: Player) -> None:
    player.join()
    player.service.wires.clear()
    player.wire = None
    player.session.failed("a fault of the driver", player.now)
    player.act()
    player.service.store("meanwhile", None, player.now)
    player.open()
    assert [event.data for event in player.heard] == ["meanwhile"]


def test_since_begins_after_a_saved_position(player: Player) -> None:
    for number in range(3):
        player.service.store(number, None, player.now)
    player.join(since=player.service.identity(1))
    assert [event.data for event in player.heard] == [1, 2]


def test_what_cannot_be_had_is_told_and_goes_on(player: Player) -> None:
    player.join()
    player.service.store(0, None, player.now)
    player.carry()
    player.cut()
    for number in (1, 2):
        player.service.store(number, None, player.now)
    player.service.trim(1)
    player.open()
    player.service.store(3, None, player.now)
    player.carry()
    assert player.heard[1:] == [
        Gap(ROOM, "expired", player.service.identity(3)),
        Message(ROOM, player.service.identity(4), 3, at=0),
    ]


def test_a_gap_is_told_and_resumed_from(player: Player) -> None:
    player.join()
    player.service.store(0, None, player.now)
    player.service.clear()
    player.carry()
    assert player.heard[-1] == Gap(ROOM, "cleared", player.service.identity(1))
    player.cut()
    player.open()
    assert player.sent[-1]["since"] == player.service.identity(1)
    assert len(player.heard) == 2


def test_a_message_is_not_handed_on_twice(player: Player) -> None:
    player.join()
    player.service.store(0, None, player.now)
    frame = dict(player.wire.down[-1])  # type: ignore[union-attr]
    player.carry()
    player.push(**frame)
    assert len(player.heard) == 1


@pytest.mark.parametrize("code", ["unavailable", "rate_limited", "draining", "internal"])
def test_a_subscribe_that_may_be_tried_again_is(player: Player, code: str) -> None:
    player.session.subscribe(ROOM)
    player.act()
    player.wire.up.clear()  # type: ignore[union-attr]
    player.push(**error(1, code, 2.0))
    player.advance(1.9)
    assert len(player.sent) == 1
    player.advance(0.7)
    player.carry()
    assert player.opened == [ROOM]


@pytest.mark.parametrize(
    "options",
    [{"presence": {"info": {"since": object()}}}, {"presence": {"info": {"name": "\ud800"}}}, {"since": "\ud800"}],
)
def test_what_cannot_be_asked_for_leaves_nothing_behind(player: Player, options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        player.session.subscribe(ROOM, **options)
    player.join()
    player.cut()
    player.open()
    assert types(player) == ["subscribe", "subscribe"]
    with pytest.raises(ValueError, match="surrogates"):
        player.session.ask_history(ROOM, player.now, since="\ud800")


def test_what_is_told_of_a_member_is_what_was_given(player: Player) -> None:
    info: dict[str, Any] = {"name": "Ada"}
    player.join(presence={"info": info})
    info["name"] = object()
    player.cut()
    player.open()
    assert player.sent[-1]["presence"] == {"info": {"name": "Ada"}}


def test_the_answer_to_a_subscribe_is_waited_for_as_any_other(player: Player) -> None:
    player.session.subscribe(ROOM)
    player.act()
    assert player.session.expecting
    player.carry()
    assert not player.session.expecting


def test_a_subscribe_that_is_refused_ends(player: Player) -> None:
    player.session.subscribe(ROOM)
    player.act()
    player.push(**error(1, "forbidden"))
    assert isinstance(player.ended[ROOM], Forbidden)
    player.cut()
    player.open()
    assert types(player) == ["subscribe"]


def test_a_channel_that_a_new_token_does_not_allow_ends(player: Player) -> None:
    player.join()
    player.push(type="unsubscribed", channel=ROOM, reason="forbidden")
    assert isinstance(player.ended[ROOM], Forbidden)


def test_a_channel_is_heard_once(player: Player) -> None:
    player.join()
    with pytest.raises(AlreadySubscribed):
        player.session.subscribe(ROOM)
    player.session.unsubscribe(ROOM)
    player.join()
    assert player.opened == [ROOM, ROOM]


def test_messages_of_an_earlier_subscription_are_not_those_of_the_next(player: Player) -> None:
    player.join()
    player.service.store("before", None, player.now)
    player.session.unsubscribe(ROOM)
    player.session.subscribe(ROOM)
    player.act()
    player.carry()
    player.service.store("after", None, player.now)
    player.carry()
    assert [event.data for event in player.heard] == ["after"]


def test_an_answer_to_an_earlier_subscription_is_not_that_to_the_next(player: Player) -> None:
    player.session.subscribe(ROOM)
    player.act()
    player.carry_up()
    player.service.store("before", None, player.now)
    player.session.unsubscribe(ROOM)
    player.session.subscribe(ROOM)
    player.act()
    player.carry()
    assert player.opened == [ROOM]
    assert player.heard == []


def test_a_slow_reader_leaves_the_channel_to_the_log(player: Player) -> None:
    player.join()
    player.service.store(0, None, player.now)
    player.carry()
    player.session.lag(ROOM)
    player.act()
    for number in (1, 2):
        player.service.store(number, None, player.now)
    player.carry()
    player.cut()
    player.open()
    assert [event.data for event in player.heard] == [0]
    player.session.catch_up(ROOM)
    player.act()
    player.carry()
    assert [event.data for event in player.heard] == [0, 1, 2]


# Presence

ADA, BOB, EVE = Member("ada", 1, {}), Member("bob", 1, {}), Member("eve", 1, {})


def here(player: Player, *members: Member, count: int | None = None) -> None:
    """The service answers the `subscribe` under way."""
    told = [{"member": one.member, "clients": one.clients, "info": one.info} for one in members]
    player.push(
        type="subscribed",
        ref=player.sent[-1]["ref"],
        channel=ROOM,
        position="000000000001-0",
        recovered=None,
        replayed=0,
        members=told,
        count=len(told) if count is None else count,
    )


def present(player: Player) -> tuple[set[str], int | None]:
    subscription = player.session.subscription(ROOM)
    assert subscription is not None
    return set(subscription.members), subscription.count


def attend(player: Player) -> None:
    player.session.subscribe(ROOM, presence="watch")
    player.act()
    player.wire.up.clear()  # type: ignore[union-attr]


def change(joined: list[Member], left: list[Member], count: int) -> dict[str, Any]:
    def told(members: list[Member]) -> list[dict[str, Any]]:
        return [{"member": one.member, "clients": one.clients, "info": one.info} for one in members]

    return {"type": "presence", "channel": ROOM, "joined": told(joined), "left": told(left), "count": count}


def test_the_list_of_members_is_kept(player: Player) -> None:
    attend(player)
    here(player, ADA)
    assert present(player) == ({"ada"}, 1)
    assert player.heard == []
    player.push(**change([BOB], [ADA], 1))
    assert present(player) == ({"bob"}, 1)
    assert player.heard == [Presence(ROOM, (BOB,), (ADA,), 1)]


def test_the_list_is_replaced_on_return_and_the_difference_is_told(player: Player) -> None:
    attend(player)
    here(player, ADA, BOB)
    player.cut()
    player.wait()
    player.accept()
    player.carry_down()
    player.wire.up.clear()  # type: ignore[union-attr]
    assert player.sent[-1]["presence"] == "watch"
    here(player, BOB, EVE)
    assert present(player) == ({"bob", "eve"}, 2)
    assert player.heard == [Presence(ROOM, (EVE,), (ADA,), 2)]


def test_of_lists_that_are_not_whole_only_the_count_is_told(player: Player) -> None:
    attend(player)
    here(player, ADA, count=501)
    player.cut()
    player.wait()
    player.accept()
    player.carry_down()
    here(player, BOB, count=502)
    assert player.heard == [Presence(ROOM, (), (), 502)]


# Tokens

NOW = 1_790_001_000
"""Seconds since 1970 when a player begins."""


def test_a_token_is_asked_for_a_minute_before_its_end() -> None:
    player = Player(wall=True)
    player.open(expires_at=NOW + 3600)
    player.live(3539)
    assert not player.renewing
    player.live(2)
    assert player.renewing
    player.session.renewed("next", player.now)
    player.act()
    assert player.sent[-1] == {"type": "authenticate", "ref": 1, "token": "next"}


def test_of_a_short_life_a_fifth_is_left() -> None:
    player = Player(wall=True)
    player.open(expires_at=NOW + 50)
    player.live(39)
    assert not player.renewing
    player.live(2)
    assert player.renewing


def test_after_a_renewal_the_next_end_counts() -> None:
    player = Player(wall=True)
    player.open(expires_at=NOW + 50)
    player.live(41)
    player.session.renewed("next", player.now)
    player.act()
    player.wire.up.clear()  # type: ignore[union-attr]
    player.push(type="authenticated", ref=1, user="ada", expires_at=NOW + 41 + 1000)
    assert not player.session.expecting
    player.renewing = False
    player.live(930)
    assert not player.renewing
    player.live(20)
    assert player.renewing


@pytest.mark.parametrize("fault", ["none", "unavailable", "unauthorized"])
def test_a_renewal_that_fails(fault: str) -> None:
    player = Player(wall=True)
    player.open(expires_at=NOW + 50)
    player.live(41)
    player.renewing = False
    if fault == "none":
        player.session.renewed(None, player.now)
    else:
        player.session.renewed("next", player.now)
        player.act()
        player.wire.up.clear()  # type: ignore[union-attr]
        player.push(**error(1, fault, 2.0))
    player.live(3)
    assert player.renewing == (fault != "unauthorized"), "a token that is not good is not shown again"


def test_a_refused_renewal_is_waited_for_no_more() -> None:
    player = Player(wall=True)
    player.open(expires_at=NOW + 50)
    player.live(41)
    player.session.renewed("next", player.now)
    player.act()
    player.wire.up.clear()  # type: ignore[union-attr]
    player.push(**error(1, "unauthorized"))
    assert not player.session.expecting


@pytest.mark.parametrize(("left", "asked"), [(-100, 0), (1, 6)])
def test_a_clock_that_is_ahead_does_not_ask_for_tokens_again_and_again(left: float, asked: int) -> None:
    player = Player(wall=True)
    player.open(expires_at=NOW + left)
    count = 0
    for _ in range(60):
        player.live(1)
        if player.renewing:
            player.renewing = False
            count += 1
            player.session.renewed("next", player.now)
            player.act()
            player.wire.up.clear()  # type: ignore[union-attr]
            ref = player.sent[-1]["ref"]
            player.push(type="authenticated", ref=ref, user="ada", expires_at=NOW + player.now - 1000 + left)
    assert count == asked


def test_the_end_of_a_connection_is_the_end_of_its_renewal() -> None:
    player = Player(wall=True)
    player.open(expires_at=NOW + 50)
    player.cut()
    player.open(expires_at=NOW + 5000)
    player.live(60)
    assert not player.renewing
