"""`tocsin token`: one token on stdout and nothing else; and a token in words."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from app.core.messages import Verb
from app.edge.keys import TokenRules, Tokens
from app.mint import CannotMint, Signer, explain, mint, signer_by_key, signer_by_secret
from tests.integration.test_serve import ROOT, run_tocsin
from tests.stage.terminal import environment

SECRET = "s3cret-0123456789abcdef0123456789"
RULES = TokenRules(("HS256",), secret=SECRET)
NOW = int(time.time())
P256 = ec.generate_private_key(ec.SECP256R1())


def private_pem(key: PrivateKeyTypes, password: bytes | None = None) -> bytes:
    sealed = NoEncryption() if password is None else BestAvailableEncryption(password)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, sealed)


def public_pem(key: PrivateKeyTypes) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def token(**more: object) -> str:
    """A good token with other claims beside or in the place of its own."""
    payload = {"sub": "ada", "exp": NOW + 7300, "jti": "t1", "tocsin": {"publish": ["room:42"]}, **more}
    return jwt.encode(payload, SECRET)


def words(lines: list[str]) -> dict[str, str]:
    return {line.split()[0]: line.partition(" ")[2].strip() for line in lines}


async def test_the_command_prints_a_token_that_the_service_takes() -> None:
    rights = ("--subscribe", "room:*", "--publish", "room:42", "--publish", "user:{user}", "--history", "*")
    done = run_tocsin("token", "ada", *rights, "--ttl", "60", jwt_secret=SECRET, jwt_audience="tocsin")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    ada = await Tokens(TokenRules(("HS256",), secret=SECRET, audience="tocsin")).verify(done.stdout.strip())
    assert ada.user == "ada"
    assert len(ada.token or "") >= 16
    assert 0 < (ada.expires_at or 0) - time.time() <= 60
    assert ada.allows == {
        Verb.PUBLISH: ("room:42", "user:{user}"),
        Verb.SUBSCRIBE: ("room:*",),
        Verb.HISTORY: ("*",),
    }


def test_without_a_secret_one_line_says_how_to_make_one() -> None:
    done = run_tocsin("token", "ada")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "TOCSIN_JWT_SECRET" in done.stderr
    assert "openssl rand -hex 32" in done.stderr


def test_the_secret_may_come_from_a_file_and_a_token_from_stdin(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", "token", "--explain"],
        env=environment(jwt_secret_file=str(tmp_path / "secret")),
        cwd=ROOT,
        input=f"{token()}\n",
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    said = words(done.stdout.splitlines())
    assert said["user"] == "ada"
    assert said["may"] == "publish room:42"
    assert said["signature"] == "fits the configured key"
    assert SECRET not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "for whom?"),
        (("ada", "--publish", "a b"), "--publish: `a b` is no channel pattern"),
        (("a\nb",), "the token's `sub` must be"),
        (("ada", "--algorithm", "none"), "--algorithm: allowed with TOCSIN_JWT_SECRET is HS256"),
    ],
)
def test_what_cannot_be_minted_is_said_in_one_line(arguments: tuple[str, ...], sentence: str) -> None:
    done = run_tocsin("token", *arguments, jwt_secret=SECRET)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"tocsin: {sentence}")
    assert done.stderr.count("\n") == 1
    assert SECRET not in done.stderr


@pytest.mark.parametrize(
    ("key", "algorithm", "expected"),
    [
        (P256, None, "ES256"),
        (ec.generate_private_key(ec.SECP384R1()), None, "ES384"),
        (ed25519.Ed25519PrivateKey.generate(), "EdDSA", "EdDSA"),
        (rsa.generate_private_key(65537, 2048), "PS256", "PS256"),
    ],
    ids=["P-256", "P-384", "Ed25519", "RSA"],
)
async def test_a_private_key_signs_too(
    tmp_path: Path, key: PrivateKeyTypes, algorithm: str | None, expected: str
) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(private_pem(key))
    minted = mint(signer_by_key(path, algorithm, "k1"), "ada", {}, now=NOW, ttl=7200, token="t1", issuer="i")
    header = jwt.get_unverified_header(minted)
    assert (header["alg"], header["kid"]) == (expected, "k1")
    ada = await Tokens(TokenRules((expected,), public_key=public_pem(key), issuer="i")).verify(minted)
    assert (ada.user, ada.token) == ("ada", "t1")


@pytest.mark.parametrize(
    ("content", "algorithm", "sentence"),
    [
        (None, None, "cannot read"),
        (b"nothing", None, "is no private key in PEM"),
        (public_pem(P256).encode(), None, "is no private key in PEM"),
        (private_pem(P256, b"password"), None, "has a password"),
        (private_pem(rsa.generate_private_key(65537, 1024)), None, "cannot be used"),
        (private_pem(P256), "HS256", "is a key for ES256"),
        (private_pem(P256), "none", "is a key for ES256"),
    ],
    ids=["missing", "garbage", "public", "password", "small", "HS256", "none"],
)
def test_a_file_that_cannot_sign_is_named(
    tmp_path: Path, content: bytes | None, algorithm: str | None, sentence: str
) -> None:
    path = tmp_path / "key.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CannotMint, match=sentence):
        signer_by_key(path, algorithm, None)


def test_a_signer_does_not_show_its_key() -> None:
    assert SECRET not in repr(signer_by_secret(RULES, None))


def test_every_token_has_an_id_of_its_own() -> None:
    signer = signer_by_secret(RULES, None)
    ids = {jwt.decode(mint(signer, "ada", {}, now=NOW, ttl=7200), SECRET, ["HS256"])["jti"] for _ in range(9)}
    assert len(ids) == 9


def test_a_token_that_would_be_too_long_is_not_made() -> None:
    with pytest.raises(CannotMint, match="longer than"):
        mint(Signer(SECRET.encode(), "HS256"), "ada", {Verb.PUBLISH: ["x" * 200] * 60}, now=NOW, ttl=60)


async def test_a_token_is_explained_in_words() -> None:
    lines, accepted = await explain(token(aud="web", iss="me"), RULES, NOW)
    assert accepted
    said = words(lines)
    assert said["until"].endswith(" UTC, in 2 hours")
    assert (said["id"], said["audience"], said["issuer"], said["algorithm"]) == ("t1", "web", "me", "HS256")
    assert said["accepted"].startswith("yes")


async def test_a_past_end_is_said_and_that_the_signature_fits() -> None:
    lines, accepted = await explain(token(exp=NOW - 120), RULES, NOW)
    said = words(lines)
    assert not accepted
    assert said["until"].endswith(" UTC, which is past since 2 minutes")
    assert said["signature"] == "fits the configured key"
    assert said["accepted"] == "no: this token has expired: get a new one"


@pytest.mark.parametrize(
    ("shown", "rules", "reason"),
    [
        (token(), TokenRules(("HS256",), secret=SECRET + "0"), "signature does not fit the key"),
        (token(), TokenRules(("HS384",), secret=SECRET * 2), "`alg` is not allowed; allowed are HS384"),
        (token(), TokenRules(("ES256",), public_key=public_pem(P256)), "`alg` is not allowed; allowed are ES256"),
        (token(), None, "no key is configured"),
    ],
    ids=["another secret", "another algorithm", "a public key", "none"],
)
async def test_why_a_signature_does_not_fit_is_said(shown: str, rules: TokenRules | None, reason: str) -> None:
    lines, accepted = await explain(shown, rules, NOW)
    assert not accepted
    assert reason in words(lines)["signature"]
    assert SECRET not in "".join(lines)


@pytest.mark.parametrize("shown", ["", "a.b.c", "\N{SNOWMAN}.b.c", "x" * 10_000, "e30.e30"])
async def test_what_is_no_token_is_said(shown: str) -> None:
    lines, accepted = await explain(shown, RULES, NOW)
    assert not accepted
    assert lines[0].startswith("This is no token")


async def test_a_token_cannot_steer_the_terminal_and_odd_claims_are_named() -> None:
    odd = jwt.encode({"sub": "\x1b[2J\n", "exp": "soon", "tocsin": {"publish": "all"}}, SECRET)
    lines, accepted = await explain(odd, RULES, NOW)
    assert not accepted
    assert all(line.isprintable() for line in lines)
    said = words(lines)
    assert said["until"].startswith("never")
    assert said["may"] == "publish not a list"
    ends: tuple[object, ...] = (1e300, [], True, None)
    for end in ends:
        assert (await explain(jwt.encode({"exp": end, "tocsin": 7}, SECRET), RULES, NOW))[0]
