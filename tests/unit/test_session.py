"""The session of `tocsin.v1`: every command has exactly one answer, whatever comes, and limits hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from app.core.continuity import Gap, Reason, Resumed
from app.core.errors import (
    BadRequest,
    Close,
    Code,
    Conflict,
    TocsinError,
    Unauthorized,
    Unavailable,
    UnknownType,
    UnsupportedType,
)
from app.core.identity import Identity
from app.core.limits import Meter, Rate, Rates, Tally
from app.core.messages import (
    Acknowledged,
    Authenticate,
    Authenticated,
    ChannelRule,
    Command,
    HistoryPage,
    Kind,
    Lost,
    Malformed,
    Members,
    Ping,
    Pong,
    Position,
    PresencePage,
    Publish,
    Published,
    ReadHistory,
    ReadMembers,
    Ref,
    Refused,
    Subscribe,
    Subscribed,
    Unsubscribe,
    Unsubscribed,
    Verb,
)
from app.core.session import (
    PATIENCE,
    Absent,
    Disconnect,
    Effect,
    Extract,
    Leave,
    NativeSession,
    Open,
    PlainSession,
    Say,
    Store,
    Survey,
    Verify,
)

AT = Position("ab", 7)
ANONYMOUS = Identity()
RULES = (
    ChannelRule("quiet:*", history=0),
    ChannelRule("read:*", anonymous=frozenset({Verb.SUBSCRIBE, Verb.HISTORY})),
    ChannelRule("live:*", anonymous=frozenset({Verb.SUBSCRIBE})),
    ChannelRule("shut:*", anonymous=frozenset()),
    ChannelRule("room:*"),
)
CHANNELS = ["room:1", "room:2", "room:3", "quiet:1", "read:1", "live:1", "shut:1", "elsewhere", "a b", ""]
NAMES = st.sampled_from(CHANNELS)
REFS = st.none() | st.integers(0, 3)


class Timeless(NativeSession):
    """A session for which no time passes unless it is told."""

    def receive(self, command: Command, now: float = 0.0) -> Effect:
        return super().receive(command, now)


def session(
    rules: Sequence[ChannelRule] = RULES,
    subscriptions: int = 2,
    identity: Identity = ANONYMOUS,
    meter: Meter | None = None,
) -> Timeless:
    return Timeless("c9", identity, rules, 100, subscriptions, meter=meter)


def ada(**allows: str) -> Identity:
    return Identity("ada", "user/ada", {Verb(verb): (pattern,) for verb, pattern in allows.items()}, expires_at=99.0)


def publish(channel: str = "room:1", size: int = 1, key: str | None = None, ephemeral: bool = False) -> Publish:
    return Publish(Kind.JSON, b"1", size, channel, 3, key, ephemeral)


def refusal(effect: Effect, ref: Ref = None) -> Code:
    assert isinstance(effect, Say)
    assert isinstance(effect.event, Refused)
    assert ref in {None, effect.event.ref}
    return effect.event.error.code


COMMANDS: st.SearchStrategy[Command] = st.one_of(
    st.builds(Subscribe, NAMES, REFS, st.none() | st.just(AT), st.sampled_from([0, 5]), st.booleans()),
    st.builds(Unsubscribe, NAMES, REFS),
    st.builds(
        Publish,
        st.sampled_from([Kind.JSON, Kind.BINARY]),
        st.just(b"1"),
        st.sampled_from([0, 1, 100, 101]),
        NAMES,
        REFS,
        st.none() | st.just("k" * 16),
        st.booleans(),
    ),
    st.builds(ReadHistory, NAMES, REFS),
    st.builds(ReadMembers, NAMES, REFS),
    st.builds(Authenticate, st.just("token"), REFS),
    st.builds(Ping, REFS),
    st.builds(Malformed, st.sampled_from([BadRequest("no"), UnknownType("no")]), REFS),
)


class Conversations(RuleBasedStateMachine):
    """Commands in any order; what the engine is asked to do ends some time later, in any order."""

    opening = Bundle("opening")
    reading = Bundle("reading")
    storing = Bundle("storing")

    def __init__(self) -> None:
        super().__init__()
        self.session = session()
        self.opens: dict[str, Subscribe] = {}
        self.heard: set[str] = set()
        self.ended = False

    @rule(target=opening, command=COMMANDS)
    def receive(self, command: Command) -> Subscribe | None:
        effect = self.session.receive(command)
        match effect:
            case Say(event):
                assert isinstance(event, Refused | Pong)
                assert event.ref == command.ref
            case Open(asked):
                assert asked is command
                assert asked.channel not in self.heard
                self.heard.add(asked.channel)
                self.opens[asked.channel] = asked
                return asked
            case Leave(channel, event):
                assert event == Unsubscribed(channel, command.ref)
                self.heard.remove(channel)
                self.opens.pop(channel, None)
            case Disconnect(code, reason):
                assert isinstance(command, Malformed)
                assert code == Close.MALFORMED
                assert len(reason.encode()) <= 123
            case Extract(asked_page) | Survey(asked_page) | Verify(asked_page):
                assert asked_page is command
            case Absent():
                pytest.fail("only a new token leads to this")
            case Store(draft, ref):
                assert isinstance(command, Publish)
                assert (draft.channel, draft.client, ref) == (command.channel, "c9", command.ref)
                assert not (draft.ephemeral and draft.key)
        return None

    @rule(command=consumes(opening), fails=st.booleans(), recovered=st.sampled_from([None, True, False]))
    def open(self, command: Subscribe | None, fails: bool, recovered: bool | None) -> None:
        if command is None or self.opens.get(command.channel) is not command:
            return  # the connection tells of nothing that was left meanwhile
        del self.opens[command.channel]
        if fails:
            self.heard.discard(command.channel)
            effect = self.session.on_failed(command, Unavailable("away"))
            assert refusal(effect) is Code.UNAVAILABLE
        else:
            reason = Reason.EXPIRED if recovered is False else None
            effect = self.session.on_opened(command, Resumed(AT, recovered, 0, reason))
            assert isinstance(effect, Say)
            told = None if reason is None else "expired"
            assert effect.event == Subscribed(command.channel, AT, recovered, 0, told, command.ref)

    @invariant()
    def hears_no_more_than_it_may(self) -> None:
        assert len(self.heard) <= 2
        for channel in CHANNELS:
            if channel not in self.heard and not channel.startswith(("room:", "read:", "live:", "quiet:")):
                assert not isinstance(self.session.receive(Subscribe(channel)), Open)


TestConversations = Conversations.TestCase


@given(st.lists(COMMANDS, max_size=60))
def test_any_sequence_of_commands_has_one_effect_each(commands: list[Command]) -> None:
    one = session()
    assert all(
        isinstance(one.receive(command), Store | Open | Leave | Extract | Survey | Verify | Say | Disconnect)
        for command in commands
    )


@pytest.mark.parametrize(
    ("outcome", "event"),
    [
        (Published(AT), Acknowledged(AT, False, 3)),
        (Published(AT, duplicate=True), Acknowledged(AT, True, 3)),
        (Published(None), Acknowledged(None, False, 3)),
    ],
)
def test_a_publish_is_answered_when_the_store_has_it(outcome: Published, event: Acknowledged) -> None:
    assert session().on_outcome(outcome, 3) == Say(event)


@pytest.mark.parametrize("error", [Conflict("other body"), Unavailable("away", retry_after=1.0)])
def test_a_publish_that_fails_is_answered_with_its_error(error: TocsinError) -> None:
    assert session().on_outcome(error, "r") == Say(Refused(error, "r"))


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (Subscribe("a b"), Code.BAD_CHANNEL),
        (Subscribe("elsewhere"), Code.FORBIDDEN),
        (Subscribe("shut:1"), Code.FORBIDDEN),
        (Subscribe("live:1", history=1), Code.FORBIDDEN),
        (ReadHistory("live:1"), Code.FORBIDDEN),
        (ReadHistory("a b"), Code.BAD_CHANNEL),
        (Unsubscribe("room:1"), Code.NOT_SUBSCRIBED),
        (Unsubscribe("a b"), Code.NOT_SUBSCRIBED),
        (publish("read:1"), Code.FORBIDDEN),
        (publish("a b"), Code.BAD_CHANNEL),
        (publish(size=101), Code.TOO_LARGE),
        (publish(key="k" * 16, ephemeral=True), Code.BAD_REQUEST),
    ],
    ids=lambda value: value if isinstance(value, Code) else type(value).__name__,
)
def test_a_command_that_may_not_be_is_refused_with_its_ref(command: Command, code: Code) -> None:
    assert refusal(session().receive(replace(command, ref="r")), "r") is code


def test_resuming_needs_no_right_to_history() -> None:
    assert isinstance(session().receive(Subscribe("live:1", since=AT, history=5)), Open)


def test_one_channel_is_heard_once_also_while_it_opens() -> None:
    one = session()
    first = Subscribe("room:1", 1)
    assert one.receive(first) == Open(first)
    assert refusal(one.receive(Subscribe("room:1", 2))) is Code.ALREADY_SUBSCRIBED
    one.on_failed(first, Unavailable("away"))
    again = Subscribe("room:1", 3)
    assert one.receive(again) == Open(again)


def test_channels_that_open_count_and_those_left_do_not() -> None:
    one = session(subscriptions=2)
    for name in ("room:1", "room:2"):
        assert isinstance(one.receive(Subscribe(name)), Open)
    assert refusal(one.receive(Subscribe("room:3"))) is Code.TOO_MANY_SUBSCRIPTIONS
    assert one.receive(Unsubscribe("room:1", 9)) == Leave("room:1", Unsubscribed("room:1", 9))
    assert isinstance(one.receive(Subscribe("room:3")), Open)


def test_who_sends_malformed_commands_again_and_again_is_sent_away() -> None:
    one = session()
    bad = Malformed(BadRequest("no"), 5)
    for _ in range(PATIENCE):
        assert one.receive(bad) == Say(Refused(bad.error, 5))
    effect = one.receive(bad)
    assert isinstance(effect, Disconnect)
    assert effect.code == Close.MALFORMED


def test_a_good_command_between_makes_up_for_malformed_ones() -> None:
    one = session()
    for _ in range(5):
        for _ in range(PATIENCE):
            assert isinstance(one.receive(Malformed(BadRequest("no"))), Say)
        assert one.receive(Ping(1)) == Say(Pong(1))


def test_a_binary_frame_ends_the_session() -> None:
    effect = session().receive(Malformed(UnsupportedType("text only")))
    assert effect == Disconnect(Close.WRONG_TYPE, "text only")


@pytest.mark.parametrize("key", [None, "k" * 16])
def test_where_a_rule_keeps_no_history_everything_is_ephemeral(key: str | None) -> None:
    effect = session().receive(publish("quiet:1", key=key))
    assert isinstance(effect, Store)
    assert effect.draft.ephemeral
    assert effect.draft.key is None


def test_keys_are_shared_by_those_of_one_scope() -> None:
    effect = session(identity=ada(publish="*")).receive(publish(key="k" * 16))
    assert isinstance(effect, Store)
    assert (effect.draft.user, effect.draft.scope, effect.draft.key) == ("ada", "user/ada", "k" * 16)


def test_a_gap_and_a_page_are_said() -> None:
    one = session()
    assert one.on_gap("room:1", Gap(Reason.CLEARED, AT)) == Say(Lost("room:1", "cleared", AT))
    asked: Ref = 4
    page = one.on_extract(ReadHistory("room:1", asked), (), AT, complete=True)
    assert page == Say(HistoryPage("room:1", (), AT, True, 4))


def metered(publishes: float = 0, commands: float = 0) -> tuple[Meter, Tally]:
    tally = Tally()
    return Meter(Rates(Rate(publishes, 2), Rate(commands, 2), refusal=Rate(1, 3)), tally), tally


def test_messages_over_the_rate_are_refused_with_the_time_to_wait_and_others_are_not() -> None:
    meter, tally = metered(publishes=10)
    one = session(meter=meter)
    assert [type(one.receive(publish(), now=5.0)) for _ in range(2)] == [Store, Store]
    effect = one.receive(publish(), now=5.0)
    assert refusal(effect) is Code.RATE_LIMITED
    assert isinstance(effect, Say)
    assert isinstance(effect.event, Refused)
    assert effect.event.error.retry_after == 0.1
    assert isinstance(one.receive(Ping(1), now=5.0), Say)
    assert isinstance(one.receive(publish(), now=5.1), Store)
    assert tally.refused == 1


def test_commands_and_malformed_frames_have_a_rate_together() -> None:
    one = session(meter=metered(commands=1)[0])
    bad = Malformed(BadRequest("no"))
    assert one.receive(Ping(1)) == Say(Pong(1))
    assert refusal(one.receive(bad)) is Code.BAD_REQUEST
    assert refusal(one.receive(Subscribe("room:1"))) is Code.RATE_LIMITED
    assert isinstance(one.receive(publish()), Store)
    assert refusal(one.receive(bad)) is Code.RATE_LIMITED


def test_who_goes_on_far_beyond_the_rate_is_sent_away_and_who_waits_is_not() -> None:
    one = session(meter=metered(publishes=1)[0])
    effects = [one.receive(publish()) for _ in range(6)]
    assert [type(effect) for effect in effects] == [Store, Store, Say, Say, Say, Disconnect]
    assert isinstance(effects[-1], Disconnect)
    assert effects[-1].code == Close.ABUSE
    patient = session(meter=metered(publishes=1)[0])
    assert all(not isinstance(patient.receive(publish(), now=at / 2), Disconnect) for at in range(100))


def test_connections_of_one_user_share_their_rate() -> None:
    meter, _ = metered(publishes=1)
    one, other = session(meter=meter), session(meter=meter)
    assert isinstance(one.receive(publish()), Store)
    assert isinstance(other.receive(publish()), Store)
    assert refusal(one.receive(publish())) is Code.RATE_LIMITED


def test_a_plain_socket_over_its_rate_is_read_from_more_slowly_and_loses_nothing() -> None:
    one = PlainSession("c9", Identity(), "room:1", ChannelRule("*"), metered(publishes=10)[0])
    effects = [one.receive(publish(), 5.0) for _ in range(4)]
    assert [round(effect.wait, 3) for effect in effects if isinstance(effect, Store)] == [0, 0, 0.1, 0.2]


@pytest.mark.parametrize("verb", ["subscribe", "presence"])
def test_presence_needs_its_own_right(verb: str) -> None:
    one = session(identity=ada(**{verb: "*"}))
    assert refusal(one.receive(Subscribe("room:1", watch=True))) is Code.FORBIDDEN
    assert isinstance(one.receive(Subscribe("room:1")), Open) is (verb == "subscribe")
    assert isinstance(one.receive(ReadMembers("room:1")), Survey) is (verb == "presence")


def test_where_a_rule_tracks_no_members_presence_is_refused() -> None:
    one = session(rules=(ChannelRule("*", presence=False),))
    assert refusal(one.receive(ReadMembers("room:1"))) is Code.FORBIDDEN
    assert refusal(one.receive(Subscribe("room:1", watch=True))) is Code.FORBIDDEN


def test_a_page_of_members_is_said() -> None:
    page = PresencePage((), 0, None)
    assert session().on_survey(ReadMembers("room:1", 4), page) == Say(Members("room:1", page, 4))


def test_a_new_token_of_the_same_user_takes_the_place_of_the_old_one() -> None:
    one = session(identity=ada(subscribe="*"))
    command = Authenticate("token", 6)
    assert one.receive(command) == Verify(command)
    renewed = replace(ada(publish="*", subscribe="*"), expires_at=200.0)
    assert one.on_verified(command, renewed) == [Say(Authenticated("ada", 200.0, 6))]
    assert isinstance(one.receive(publish()), Store)


@pytest.mark.parametrize("before", [ANONYMOUS, replace(ada(), user="eve")])
def test_a_token_of_somebody_else_is_refused(before: Identity) -> None:
    one = session(identity=before)
    (effect,) = one.on_verified(Authenticate("token", 6), ada(subscribe="*"))
    assert refusal(effect, 6) is Code.FORBIDDEN
    assert one.identity is before


def test_what_a_new_token_does_not_allow_any_more_ends() -> None:
    one = session(identity=ada(subscribe="*", presence="*"), subscriptions=3)
    for name in ("room:1", "room:2", "room:3"):
        assert isinstance(one.receive(Subscribe(name, watch=name != "room:3")), Open)
    narrower = Identity(
        "ada", "user/ada", {Verb.SUBSCRIBE: ("room:2", "room:3"), Verb.PRESENCE: ("room:1",)}, expires_at=200.0
    )
    assert one.on_verified(Authenticate("token"), narrower) == [
        Say(Authenticated("ada", 200.0)),
        Leave("room:1", Unsubscribed("room:1", reason="forbidden")),
        Absent("room:2"),
    ]
    assert refusal(one.receive(Unsubscribe("room:1"))) is Code.NOT_SUBSCRIBED
    assert refusal(one.receive(Subscribe("room:1"))) is Code.FORBIDDEN


def test_a_token_that_is_not_good_is_answered_and_nothing_changes() -> None:
    one = session(identity=ada(subscribe="*"))
    assert refusal(one.on_failed(Authenticate("token", 6), Unauthorized("expired")), 6) is Code.UNAUTHORIZED
    assert isinstance(one.receive(Subscribe("room:1")), Open)
