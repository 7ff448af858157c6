"""Tokens: what is no proof is refused, whatever it looks like, and no sentence gives anything away."""

from __future__ import annotations

import hmac
import json
import math
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from contextlib import suppress
from hashlib import sha256
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.errors import Unauthorized
from app.core.identity import Identity
from app.edge.keys import LONGEST_TOKEN, TokenRules, Tokens, _Jws

SECRET = "s3cret-0123456789abcdef0123456789"
RSA = rsa.generate_private_key(65537, 2048)
P256 = ec.generate_private_key(ec.SECP256R1())
ED25519 = ed25519.Ed25519PrivateKey.generate()
STEADY = settings(derandomize=True, database=None, deadline=None)


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


BY_SECRET = Tokens(TokenRules(("HS256",), secret=SECRET))
BY_RSA = Tokens(TokenRules(("RS256", "PS256", "ES256", "EdDSA"), public_key=pem(RSA)))
BY_P256 = Tokens(TokenRules(("RS256", "ES256", "EdDSA"), public_key=pem(P256)))
BY_ED25519 = Tokens(TokenRules(("RS256", "ES256", "EdDSA"), public_key=pem(ED25519)))


def claims(**more: Any) -> dict[str, Any]:
    """Good claims with others beside or in the place of them; None leaves one out."""
    all_of_them = {"sub": "ada", "exp": int(time.time()) + 60, **more}
    return {name: value for name, value in all_of_them.items() if value is not None}


def part(data: bytes | dict[str, Any]) -> str:
    """One part of a token: base64url without padding (RFC 7515 section 2)."""
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def signed(header: bytes | dict[str, Any], payload: bytes | dict[str, Any], secret: str = SECRET) -> str:
    """A token signed with HMAC whatever its header says."""
    start = f"{part(header)}.{part(payload)}"
    return f"{start}.{part(hmac.digest(secret.encode(), start.encode(), 'sha256'))}"


async def refusal(token: str, tokens: Tokens = BY_SECRET) -> str:
    """The sentence with which a token is refused."""
    with pytest.raises(Unauthorized) as caught:
        await tokens.verify(token)
    assert caught.value.__cause__ is None
    return caught.value.message


async def test_a_good_token_is_its_user() -> None:
    end = int(time.time()) + 60
    token = jwt.encode(claims(exp=end, jti="t1", tocsin={"subscribe": ["room:*"]}), SECRET)
    ada = await BY_SECRET.verify(token)
    assert (ada.user, ada.token, ada.expires_at, ada.admin) == ("ada", "t1", float(end), False)


@pytest.mark.parametrize(
    ("tokens", "key", "algorithm"),
    [
        (BY_RSA, RSA, "RS256"),
        (BY_RSA, RSA, "PS256"),
        (BY_P256, P256, "ES256"),
        (BY_ED25519, ED25519, "EdDSA"),
    ],
    ids=["RS256", "PS256", "ES256", "EdDSA"],
)
async def test_public_keys_verify_the_algorithms_of_their_kind(tokens: Tokens, key: Any, algorithm: str) -> None:
    assert (await tokens.verify(jwt.encode(claims(), key, algorithm))).user == "ada"
    other = await refusal(jwt.encode(claims(), SECRET, "HS256"), tokens)
    assert other.startswith("the token's `alg` is not allowed")


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", "", " none", "none ", "n\u043ene"])
@pytest.mark.parametrize("tokens", [BY_SECRET, BY_RSA], ids=["secret", "public key"])
async def test_none_is_no_algorithm_however_it_is_written(tokens: Tokens, algorithm: str) -> None:
    start = f"{part({'alg': algorithm})}.{part(claims())}"
    for token in (start, f"{start}.", f"{start}.AA", signed({"alg": algorithm}, claims())):
        await refusal(token, tokens)


@pytest.mark.parametrize("algorithm", [None, 7, True, ["HS256"], {"HS256": 1}, "hs256", "HS384", "RS256", "ES521"])
async def test_another_algorithm_than_those_allowed_is_refused(algorithm: Any) -> None:
    assert "HS256" in await refusal(signed({"alg": algorithm}, claims()))
    assert "`alg`" in await refusal(signed({"typ": "JWT"}, claims()))


async def test_a_public_key_is_no_secret() -> None:
    for tokens, key in ((BY_RSA, RSA), (BY_P256, P256), (BY_ED25519, ED25519)):
        for secret in (pem(key), pem(key).strip(), pem(key) + "\n"):
            assert "`alg`" in await refusal(signed({"alg": "HS256"}, claims(), secret), tokens)
            assert "fit" in await refusal(signed({"alg": tokens._allowed[0]}, claims(), secret), tokens)


@pytest.mark.parametrize(
    "rules",
    [
        TokenRules(("HS256",), secret=pem(RSA)),
        TokenRules(("HS256",), secret="short"),
        TokenRules(("RS256",), secret=SECRET),
        TokenRules(("HS256",), public_key=pem(RSA)),
        TokenRules(("none",), secret=SECRET),
        TokenRules((), secret=SECRET),
        TokenRules(("ES256",), public_key=pem(RSA)),
        TokenRules(("RS256",), jwks_url="http://issuer.example/"),
        TokenRules(("HS256",), jwks_url="https://issuer.example/"),
        TokenRules(("RS256",)),
    ],
    ids=lambda rules: f"{rules.algorithms}",
)
def test_rules_that_could_confuse_keys_cannot_be_made(rules: TokenRules) -> None:
    with pytest.raises(ValueError):
        Tokens(rules)


@pytest.mark.parametrize("claim", ["exp", "sub"])
async def test_who_and_until_when_must_be_said(claim: str) -> None:
    absent = {name: value for name, value in claims().items() if name != claim}
    for payload in (absent, {**absent, claim: None}):
        assert await refusal(signed({"alg": "HS256"}, payload)) == f"this token lacks the claim `{claim}`"


async def test_the_end_has_ten_seconds_of_leeway() -> None:
    now = int(time.time())
    assert (await BY_SECRET.verify(jwt.encode(claims(exp=now - 5), SECRET))).expires_at == now - 5
    assert await refusal(jwt.encode(claims(exp=now - 11), SECRET)) == "this token has expired: get a new one"


@pytest.mark.parametrize("end", ["9999999999", "soon", [], {}, True, math.nan, math.inf, -math.inf, 1e300, 10**400])
async def test_an_end_that_is_no_time_is_refused(end: Any) -> None:
    await refusal(signed({"alg": "HS256"}, claims(exp=end)))


async def test_an_end_may_have_a_fraction() -> None:
    assert (await BY_SECRET.verify(jwt.encode(claims(exp=time.time() + 30.5), SECRET))).user == "ada"


@pytest.mark.parametrize("claim", ["nbf", "iat"])
async def test_a_token_of_the_future_is_refused(claim: str) -> None:
    now = int(time.time())
    assert (await BY_SECRET.verify(jwt.encode(claims(**{claim: now + 5}), SECRET))).user == "ada"
    assert "not valid yet" in await refusal(jwt.encode(claims(**{claim: now + 20}), SECRET))
    await refusal(jwt.encode(claims(**{claim: "soon"}), SECRET))


async def test_audience_and_issuer_are_compared_where_they_are_configured() -> None:
    tokens = Tokens(TokenRules(("HS256",), secret=SECRET, audience="tocsin", issuer="https://id.example"))
    for audience in ("tocsin", ["other", "tocsin"]):
        assert (await tokens.verify(jwt.encode(claims(aud=audience, iss="https://id.example"), SECRET))).user == "ada"
    for wrong in ("s3cret", ["s3cret"], "tocsin2", "Tocsin", 7, {"tocsin": 1}, [["tocsin"]], [7, "tocsin"]):
        token = signed({"alg": "HS256"}, claims(aud=wrong, iss="https://id.example"))
        assert "s3cret" not in await refusal(token, tokens)
    for issuer in ("https://id.example/", "https://s3cret.example", 7, ["https://id.example"]):
        token = signed({"alg": "HS256"}, claims(aud="tocsin", iss=issuer))
        assert "s3cret" not in await refusal(token, tokens)
    assert "`aud`" in await refusal(jwt.encode(claims(iss="https://id.example"), SECRET), tokens)
    assert "`iss`" in await refusal(jwt.encode(claims(aud="tocsin"), SECRET), tokens)


async def test_an_audience_says_nothing_where_none_is_configured() -> None:
    assert (await BY_SECRET.verify(jwt.encode(claims(aud="other", iss="anyone"), SECRET))).user == "ada"


@pytest.mark.parametrize("kid", ["../../dev/null", "/etc/passwd", "' OR 1=1 --", "k" * 5000, "http://h/", "\0", ""])
async def test_a_kid_is_a_name_and_opens_nothing(kid: str) -> None:
    assert (await BY_SECRET.verify(signed({"alg": "HS256", "kid": kid}, claims()))).user == "ada"
    assert "fit" in await refusal(signed({"alg": "HS256", "kid": kid}, claims(), ""))


@pytest.mark.parametrize("kid", [7, None, ["a"], {"a": 1}])
async def test_a_kid_that_is_no_text_is_refused(kid: Any) -> None:
    await refusal(signed({"alg": "HS256", "kid": kid}, claims()))


async def test_keys_that_a_token_brings_along_are_not_looked_at() -> None:
    key = rsa.generate_private_key(65537, 2048)
    own = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))
    for header in ({"jwk": own}, {"jku": "http://127.0.0.1:1/"}, {"x5u": "http://127.0.0.1:1/"}, {"x5c": ["AA"]}):
        assert "fit" in await refusal(jwt.encode(claims(), key, "RS256", headers=header), BY_RSA)


@pytest.mark.parametrize("crit", [["exp"], ["b64"], ["unknown"], [], "exp", None, [7], {"exp": 1}])
async def test_extensions_that_must_be_understood_are_refused(crit: Any) -> None:
    assert "`crit`" in await refusal(signed({"alg": "HS256", "crit": crit, "b64": True, "exp": 1}, claims()))


async def test_a_payload_that_is_not_encoded_is_refused() -> None:
    for header in ({"b64": False}, {"b64": False, "crit": ["b64"]}):
        await refusal(signed({"alg": "HS256", **header}, claims()))


async def test_tokens_for_other_purposes_open_nothing() -> None:
    for kind in ("JWT", "jwt", "at+jwt", "application/at+jwt"):
        assert (await BY_SECRET.verify(signed({"alg": "HS256", "typ": kind}, claims()))).user == "ada"
    for other in ("logout+jwt", "dpop+jwt", "secevent+jwt", "JWE", "", 7, None, ["JWT"]):
        assert "`typ`" in await refusal(signed({"alg": "HS256", "typ": other}, claims()))


async def test_of_members_that_stand_twice_the_last_counts_everywhere() -> None:
    """RFC 7515 section 4, RFC 7519 section 4."""
    end = int(time.time()) + 60
    assert "`alg`" in await refusal(signed(b'{"alg":"HS256","alg":"none"}', claims()))
    twice = f'{{"sub":"eve","sub":"ada","exp":1,"exp":{end},"tocsin":{{"publish":["*"]}},"tocsin":{{}}}}'
    ada = await BY_SECRET.verify(signed(b'{"alg":"none","alg":"HS256"}', twice.encode()))
    assert (ada.user, ada.expires_at) == ("ada", end)
    assert not any((ada.allows or {}).values())


async def test_deep_and_long_tokens_cost_nothing() -> None:
    deep = b"[" * 4000
    await refusal(signed(deep, claims()))
    await refusal(signed({"alg": "HS256"}, b'{"sub":' + deep))
    await refusal(signed({"alg": "HS256"}, b'{"exp":' + b"9" * 5000 + b"}"))
    started = time.perf_counter()
    assert "longer than" in await refusal("A" * 50_000_000)
    assert "longer than" in await refusal(signed({"alg": "HS256"}, claims(x="x" * LONGEST_TOKEN)))
    assert time.perf_counter() - started < 0.5


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "...",
        "a.b",
        "a.b.c.d.e",
        "null",
        "a.b.c\n",
        "\ud800.b.c",
        "\u0430.b.c",
        "=.=.=",
        "a b.c.d",
        "a.b.c=",
    ],
)
async def test_what_is_not_shaped_like_a_token_is_refused(token: str) -> None:
    assert (await refusal(token)).startswith("this is no token")


async def test_a_token_has_one_spelling() -> None:
    header, payload, signature = jwt.encode(claims(), SECRET).split(".")
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_".index(signature[-1])
    respelt = signature[:-1] + "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[last ^ 1]
    assert urlsafe_b64decode(respelt + "=") == urlsafe_b64decode(signature + "=")
    for other in (respelt, f"{signature}=", f"{signature}\n", f" {signature}", signature.replace("_", "/")):
        if other != signature:
            await refusal(f"{header}.{payload}.{other}")


async def test_nothing_of_a_token_can_be_changed() -> None:
    header, payload, signature = jwt.encode(claims(), SECRET).split(".")
    for token in (
        f"{header}.{payload}.",
        f"{header}.{payload}",
        f"{header}.{payload}.{signature[:-4]}",
        f"{header}.{part(claims(sub='eve'))}.{signature}",
        f"{part({'alg': 'HS256', 'kid': 'x'})}.{payload}.{signature}",
        jwt.encode(claims(), SECRET + "0"),
    ):
        await refusal(token)


@pytest.mark.parametrize("raw", [b"\0" * 64, b"", b"\0", b"\xff" * 64, b"\0" * 32 + b"\1" * 32, b"\0" * 128])
async def test_a_signature_of_zeros_proves_nothing(raw: bytes) -> None:
    """CVE-2022-21449."""
    await refusal(f"{part({'alg': 'ES256'})}.{part(claims())}.{part(raw)}", BY_P256)


@STEADY
@given(st.text(max_size=200) | st.from_regex(r"[A-Za-z0-9_-]{1,40}\.[A-Za-z0-9_-]{1,40}\.[A-Za-z0-9_-]{1,40}"))
async def test_no_text_raises_anything_but_unauthorized(token: str) -> None:
    await refusal(token)
    await refusal(token, BY_P256)


@STEADY
@given(
    st.dictionaries(
        st.sampled_from(["alg", "typ", "kid", "crit", "b64", "jwk"]),
        st.none() | st.booleans() | st.sampled_from(["HS256", "JWT"]) | st.integers() | st.lists(st.text(max_size=3)),
    ),
    st.dictionaries(
        st.sampled_from(["sub", "exp", "nbf", "iat", "aud", "iss", "jti", "tocsin"]),
        st.none() | st.booleans() | st.floats() | st.integers() | st.text() | st.lists(st.integers(), max_size=2),
    ),
)
async def test_no_signed_nonsense_raises_anything_but_unauthorized(
    header: dict[str, Any], payload: dict[str, Any]
) -> None:
    tokens = Tokens(TokenRules(("HS256",), secret=SECRET, audience="a", issuer="i"))
    for each in (BY_SECRET, tokens):
        for head in (header, {"alg": "HS256"}):
            with suppress(Unauthorized):
                assert isinstance(await each.verify(signed(head, payload)), Identity)


async def test_the_library_asks_our_reader_for_each_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """What we lean on inside PyJWT: one verifier in `_jws`, and one reader of base64url."""
    seen = []
    original = _Jws._decode_base64url_segment

    def read(segment: bytes, name: str) -> bytes:
        seen.append(name)
        return original(segment, name)

    monkeypatch.setattr(_Jws, "_decode_base64url_segment", staticmethod(read))
    assert (await Tokens(TokenRules(("HS256",), secret=SECRET)).verify(jwt.encode(claims(), SECRET))).user == "ada"
    assert seen == ["header", "payload", "crypto"]
    assert type(BY_SECRET._jwt._jws) is _Jws
    assert BY_SECRET._jwt._jws.get_algorithms() == ["HS256"]


async def test_the_secret_is_the_text_as_it_stands() -> None:
    for text in ("a" * 32, "ä" * 16, "0123456789abcdef" * 4):
        start = f"{part({'alg': 'HS256'})}.{part(claims())}"
        token = f"{start}.{part(hmac.new(text.encode(), start.encode(), sha256).digest())}"
        assert (await Tokens(TokenRules(("HS256",), secret=text)).verify(token)).user == "ada"


TIMES = st.one_of(
    st.integers(-20, 20).map(lambda seconds: int(time.time()) + seconds),
    st.floats(-20, 20).map(lambda seconds: time.time() + seconds),
    st.sampled_from([True, None, "1790000000", 1e400, -1, 2**70, [1], "", 4e9]),
)


@STEADY
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "sub": st.one_of(st.text(max_size=4), st.sampled_from([7, None, "x" * 300, "a\x00"])),
            "exp": TIMES,
            "iat": TIMES,
            "nbf": TIMES,
            "jti": st.one_of(st.text(max_size=3), st.sampled_from([7, None])),
            "aud": st.sampled_from(["web", "other", ["web"], ["other"], 7, None]),
            "iss": st.sampled_from(["me", "other", ["me"], None]),
            "tocsin": st.sampled_from([{}, {"publish": ["*"]}, {"publish": "*"}, [], None]),
        },
    ),
    st.sampled_from([(None, None), ("web", None), (None, "me"), ("web", "me")]),
    st.booleans(),
)
async def test_a_header_that_is_known_again_lets_nothing_in_that_the_library_would_not(
    more: dict[str, Any], expected: tuple[str | None, str | None], forged: bool
) -> None:
    """Each token before two verifiers: to one its header is new, and the other has seen it before."""
    rules = TokenRules(("HS256",), secret=SECRET, audience=expected[0], issuer=expected[1])
    fresh, used = Tokens(rules), Tokens(rules)
    await used.verify(jwt.encode(claims(aud=expected[0] or "any", iss=expected[1] or "any"), SECRET, "HS256"))
    assert used._heads
    payload = json.dumps({**claims(), **more}).encode()
    header = {"typ": "JWT", "alg": "HS256"}
    token = signed(header, payload, SECRET + "x" if forged else SECRET)
    told = []
    for tokens in (fresh, used):
        try:
            told.append(str(await tokens.verify(token)))
        except Unauthorized as error:
            told.append(error.message)
    assert told[0] == told[1]


async def test_an_ordinary_token_is_known_by_its_header() -> None:
    tokens = Tokens(TokenRules(("HS256", "HS512"), secret=SECRET * 2))
    for algorithm in ("HS256", "HS512"):
        await tokens.verify(jwt.encode(claims(), SECRET * 2, algorithm))
    assert len(tokens._heads) == 1
    good = jwt.encode(claims(sub="eve"), SECRET * 2, "HS256")
    assert tokens._recognise(good) is not None
    head, payload, signature = good.split(".")
    for bad in (
        f"{head}.{payload}.{signature[:-2]}AA",
        f"{head}.{payload}.",
        f"{head}.{payload}",
        f"{head}..{signature}",
    ):
        assert tokens._recognise(bad) is None
    assert Tokens(TokenRules(("HS256",), secret=SECRET))._recognise(good) is None
