"""Who may do what, where."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.errors import Forbidden, Unauthorized
from app.core.identity import ApiKey, Identity, identity_of, rule_for
from app.core.messages import ChannelRule, Verb

OPEN = ChannelRule()
LISTEN_ONLY = ChannelRule(anonymous=frozenset({Verb.SUBSCRIBE}))
CLOSED = ChannelRule(anonymous=frozenset())
STEADY = settings(derandomize=True, database=None, deadline=None)
ADA: dict[str, Any] = {"sub": "ada", "exp": 1_790_000_000}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
PATTERNS = st.lists(st.text("ab:*{user}", max_size=12), max_size=4)


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


def test_claims_become_a_user_with_what_the_token_allows() -> None:
    claim = {"publish": ["room:42"], "subscribe": ["room:*", "user:{user}"], "later": {"not": "known"}}
    ada = identity_of({**ADA, "jti": "t1", "tocsin": claim, "admin": True, "name": "Ada"})
    assert (ada.user, ada.scope, ada.token, ada.expires_at) == ("ada", "user/ada", "t1", 1_790_000_000.0)
    assert ada.may(Verb.PUBLISH, "room:42", CLOSED)
    assert ada.may(Verb.SUBSCRIBE, "user:ada", CLOSED)
    assert not ada.may(Verb.PUBLISH, "room:41", OPEN)
    assert not ada.may(Verb.HISTORY, "room:42", OPEN)
    assert not ada.admin


@pytest.mark.parametrize("claims", [ADA, {**ADA, "tocsin": {}}, {**ADA, "tocsin": {"publish": []}}])
def test_an_absent_claim_or_verb_allows_nothing(claims: dict[str, Any]) -> None:
    assert not any(identity_of(claims).may(verb, "lobby", OPEN) for verb in Verb)


@pytest.mark.parametrize(
    "user", [None, "", 7, True, ["s3cret"], "s3cret\n", "s3cret\0", "\x85s3cret", "\ud800", "x" * 257]
)
def test_a_sub_that_is_no_name_is_refused(user: Any) -> None:
    with pytest.raises(Unauthorized, match="`sub`") as caught:
        identity_of({**ADA, "sub": user})
    assert "s3cret" not in caught.value.message


@pytest.mark.parametrize("end", [None, "1790000000", True, [], math.nan, math.inf, -math.inf, -1, 1.79e12, 10**400])
def test_an_exp_that_is_no_time_is_refused(end: Any) -> None:
    with pytest.raises(Unauthorized, match="`exp`"):
        identity_of({**ADA, "exp": end})


@pytest.mark.parametrize("token", ["", 7, "x" * 257, "a\nb"])
def test_a_jti_that_is_no_name_is_refused(token: Any) -> None:
    with pytest.raises(Unauthorized, match="`jti`"):
        identity_of({**ADA, "jti": token})


@pytest.mark.parametrize(
    "claim",
    [
        *(None, [], "s3cret", 7),
        *({"publish": "s3cret"}, {"publish": None}, {"publish": [7]}, {"publish": [["s3cret"]]}),
        *({"publish": {"s3cret": 1}}, {"publish": ["s" * 257]}, {"publish": ["s3cret"] * 257}),
    ],
)
def test_a_claim_of_another_shape_is_refused_without_repeating_it(claim: Any) -> None:
    with pytest.raises(Unauthorized, match="`tocsin") as caught:
        identity_of({**ADA, "tocsin": claim})
    assert "s3cret" not in caught.value.message


@STEADY
@given(st.text(min_size=1, max_size=40), st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True))
def test_no_sub_has_the_scope_of_a_key_or_of_the_anonymous(user: str, name: str) -> None:
    key = Identity.of_key(ApiKey(name, b"\0" * 32))
    for sub in (user, f"key/{name}", f"../key/{name}"):
        try:
            someone = identity_of({**ADA, "sub": sub})
        except Unauthorized:
            continue
        assert someone.scope not in {key.scope, Identity().scope}
        assert someone.rated


@STEADY
@given(*[st.text("a:%3A/", min_size=1, max_size=8)] * 2, *[st.text("a:%3A/", max_size=8)] * 2)
def test_users_share_no_idempotency_key(one: str, other: str, key: str, another: str) -> None:
    """As the store joins them: scope, colon, key."""
    joined = [f"{identity_of({**ADA, 'sub': sub}).scope}:{name}" for sub, name in ((one, key), (other, another))]
    assert (joined[0] == joined[1]) is ((one, key) == (other, another))


def test_users_whose_names_have_colons_share_none_either() -> None:
    one, other = identity_of({**ADA, "sub": "a:b"}), identity_of({**ADA, "sub": "a"})
    assert f"{one.scope}:c" != f"{other.scope}:b:c"


def test_only_backends_are_not_rated() -> None:
    assert not Identity.of_key(ApiKey("billing", b"\0" * 32)).rated
    assert Identity().rated
    assert Identity(admin=True).rated


@STEADY
@given(st.dictionaries(st.sampled_from(["sub", "exp", "jti", "tocsin", "admin"]), JSON))
def test_any_claims_give_a_user_without_administration_or_are_refused(claims: dict[str, Any]) -> None:
    try:
        someone = identity_of(claims)
    except Unauthorized:
        return
    assert someone.user
    assert not someone.admin
    assert someone.allows is not None
    assert someone.expires_at is not None


@STEADY
@given(st.dictionaries(st.sampled_from([*map(str, Verb), "fly"]), PATTERNS))
def test_what_is_allowed_is_what_is_listed(claim: dict[str, list[str]]) -> None:
    someone = identity_of({**ADA, "sub": "ab", "tocsin": claim})
    for verb in Verb:
        assert (someone.allows or {}).get(verb, ()) == tuple(claim.get(verb, ()))
        if not claim.get(verb):
            assert not someone.may(verb, "a", OPEN)
