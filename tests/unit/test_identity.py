"""Who may do what, where."""

from __future__ import annotations

import pytest

from app.core.errors import Forbidden
from app.core.identity import ApiKey, Identity, rule_for
from app.core.messages import ChannelRule, Verb

OPEN = ChannelRule()
LISTEN_ONLY = ChannelRule(anonymous=frozenset({Verb.SUBSCRIBE}))
CLOSED = ChannelRule(anonymous=frozenset())


@pytest.mark.parametrize("verb", Verb, ids=str)
def test_the_channel_rule_decides_for_the_anonymous(verb: Verb) -> None:
    anonymous = Identity()
    assert anonymous.may(verb, "lobby", OPEN)
    assert anonymous.may(verb, "lobby", LISTEN_ONLY) is (verb is Verb.SUBSCRIBE)
    assert not anonymous.may(verb, "lobby", CLOSED)


def test_claims_decide_for_who_has_them_whatever_the_rule_says() -> None:
    ada = Identity(user="ada", scope="ada", allows={Verb.SUBSCRIBE: ("room:*", "user:{user}")})
    assert ada.may(Verb.SUBSCRIBE, "room:1", CLOSED)
    assert ada.may(Verb.SUBSCRIBE, "user:ada", CLOSED)
    assert not ada.may(Verb.SUBSCRIBE, "user:bob", OPEN)
    assert not ada.may(Verb.SUBSCRIBE, "lobby", OPEN)


def test_an_absent_verb_allows_nothing() -> None:
    ada = Identity(user="ada", allows={Verb.SUBSCRIBE: ("*",)})
    for verb in set(Verb) - {Verb.SUBSCRIBE}:
        assert not ada.may(verb, "room:1", OPEN)


@pytest.mark.parametrize("allows", [{}, {Verb.PUBLISH: ()}], ids=["no verbs", "no patterns"])
def test_claims_that_name_nothing_allow_nothing(allows: dict[Verb, tuple[str, ...]]) -> None:
    assert not Identity(user="ada", allows=allows).may(Verb.PUBLISH, "lobby", OPEN)


@pytest.mark.parametrize("user", [None, "*", "ada lovelace", ""])
def test_a_user_outside_the_grammar_has_no_channel_of_its_own(user: str | None) -> None:
    someone = Identity(user=user, allows={Verb.SUBSCRIBE: ("user:{user}",)})
    assert not someone.may(Verb.SUBSCRIBE, "user:ada", OPEN)
    assert not someone.may(Verb.SUBSCRIBE, "user:", OPEN)


def test_administration_is_no_permission_in_a_channel() -> None:
    assert not Identity(allows={}, admin=True).may(Verb.PUBLISH, "lobby", OPEN)


def test_a_backend_is_nobody_and_has_a_scope_that_no_other_key_shares() -> None:
    key = ApiKey("billing", b"\0" * 32, {Verb.PUBLISH: ("room:*",)}, admin=True)
    backend = Identity.of_key(key)
    assert backend.user is None
    assert backend.admin
    assert backend.may(Verb.PUBLISH, "room:1", CLOSED)
    assert not backend.may(Verb.PUBLISH, "lobby", OPEN)
    assert backend.scope != Identity.of_key(ApiKey("shipping", b"\1" * 32)).scope
    assert backend.scope not in {Identity().scope, Identity(user="billing", scope="billing").scope}


def test_a_key_without_permissions_may_nothing() -> None:
    bare = Identity.of_key(ApiKey("bare", b"\0" * 32))
    assert not bare.admin
    assert not any(bare.may(verb, "lobby", OPEN) for verb in Verb)


def test_require_refuses_with_the_verb_and_without_the_name() -> None:
    Identity().require(Verb.PUBLISH, "lobby", OPEN)
    with pytest.raises(Forbidden, match="publish") as caught:
        Identity().require(Verb.PUBLISH, "secret-room", CLOSED)
    assert "secret-room" not in caught.value.message


def test_the_first_rule_that_matches_wins() -> None:
    rules = [ChannelRule("room:vip"), ChannelRule("room:*"), ChannelRule("*")]
    assert rule_for(rules, "room:vip") is rules[0]
    assert rule_for(rules, "room:1") is rules[1]
    assert rule_for(rules, "lobby") is rules[2]


def test_a_channel_without_a_rule_does_not_exist() -> None:
    assert rule_for([ChannelRule("room:*")], "lobby") is None
    assert rule_for([], "lobby") is None


def test_a_rule_is_about_nobody() -> None:
    assert rule_for([ChannelRule("user:{user}")], "user:ada") is None
