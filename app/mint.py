"""`tocsin token`: makes a token, and says in words what one is. For trying things out, scripts and small backends.

Nothing here shows a secret. What a token says before its signature was checked is called so.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from app.core.errors import TocsinError
from app.core.identity import CLAIM, identity_of
from app.core.messages import Verb
from app.edge.jwks import algorithms_for
from app.edge.keys import LONGEST_TOKEN, SECRET_ALGORITHMS, TokenRules, Tokens, read_secret

UNCONFIGURED = (
    "no secret is configured: set TOCSIN_JWT_SECRET (or TOCSIN_JWT_SECRET_FILE) to what `openssl rand -hex 32` "
    "prints, or sign with --key FILE"
)


class CannotMint(Exception):
    """No token can be made; the message is one sentence for who asked."""


@dataclass(frozen=True, slots=True)
class Signer:
    """What signs.

    Attributes:
        material: secret or private key.
        kid: name of the key for whoever verifies with a key set.
    """

    material: Any
    algorithm: str
    kid: str | None = None

    def __repr__(self) -> str:
        return f"Signer({self.algorithm}, kid={self.kid})"


def signer_by_secret(rules: TokenRules | None, algorithm: str | None) -> Signer:
    """The configured secret, with an algorithm or the first that is allowed.

    Raises:
        CannotMint: there is none, or the algorithm is not one of a secret that is allowed.
    """
    if rules is None or rules.secret is None:
        raise CannotMint(UNCONFIGURED)
    chosen = algorithm or rules.algorithms[0]
    if chosen not in rules.algorithms or chosen not in SECRET_ALGORITHMS:
        raise CannotMint(f"--algorithm: allowed with TOCSIN_JWT_SECRET is {', '.join(rules.algorithms)}")
    return Signer(read_secret(rules.secret, (chosen,)), chosen)


def signer_by_key(path: Path, algorithm: str | None, kid: str | None) -> Signer:
    """A private key in a PEM file without a password, with an algorithm or the first that fits.

    Raises:
        CannotMint: the file is none, or the algorithm does not fit.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CannotMint(f"--key: cannot read {path}: {error.strerror}") from None
    try:
        material: PrivateKeyTypes = load_pem_private_key(raw, password=None)
    except TypeError:
        raise CannotMint(f"--key: {path} has a password: take it off with `openssl pkey -in FILE`") from None
    except Exception:  # noqa: BLE001 - each format has errors of its own, some not of ValueError's kind
        raise CannotMint(f"--key: {path} is no private key in PEM") from None
    possible = algorithms_for(material.public_key())
    if not possible:
        raise CannotMint(f"--key: {path} cannot be used: RSA of 2048 bits or more, P-256, P-384, P-521, Ed25519")
    chosen = algorithm or possible[0]
    if chosen not in possible:
        raise CannotMint(f"--algorithm: {path} is a key for {', '.join(possible)}")
    return Signer(material, chosen, kid)


def mint(
    signer: Signer,
    user: str,
    allows: Mapping[Verb, Sequence[str]],
    *,
    now: int,
    ttl: int,
    token: str | None = None,
    audience: str | None = None,
    issuer: str | None = None,
) -> str:
    """A signed token.

    Args:
        signer: with what.
        user: `sub`.
        allows: channel patterns a verb; a verb without any is left out.
        now: Unix seconds.
        ttl: seconds that it lives.
        token: `jti`; None: a random one, so that it can be revoked.
        audience: `aud`.
        issuer: `iss`.

    Raises:
        CannotMint: the service would refuse it.
    """
    claims: dict[str, Any] = {
        "sub": user,
        "iat": now,
        "exp": now + ttl,
        "jti": secrets.token_urlsafe(16) if token is None else token,
        CLAIM: {verb.value: list(patterns) for verb, patterns in allows.items() if patterns},
    }
    claims |= {name: value for name, value in (("aud", audience), ("iss", issuer)) if value is not None}
    try:
        identity_of(claims)
    except TocsinError as error:
        raise CannotMint(error.message) from None
    headers = {} if signer.kid is None else {"kid": signer.kid}
    minted = jwt.encode(claims, signer.material, signer.algorithm, headers)
    if len(minted) > LONGEST_TOKEN:
        raise CannotMint(f"the token would be longer than {LONGEST_TOKEN} bytes: list fewer patterns")
    return minted


async def explain(token: str, rules: TokenRules | None, now: float) -> tuple[list[str], bool]:
    """A token in words, one line each, and whether the service with these rules would take it.

    Args:
        token: anything.
        rules: as configured; None: no key is.
        now: Unix seconds.
    """
    try:
        if len(token) > LONGEST_TOKEN:
            raise jwt.DecodeError
        read = jwt.decode_complete(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError):
        return ["This is no token: a signed JWT has three parts in base64url joined by dots."], False
    header, claims = read["header"], read["payload"]
    lines = [
        f"user       {_show(claims.get('sub', 'nobody: `sub` is missing'))}",
        f"until      {_describe_end(claims.get('exp'), now)}",
        *_describe_rights(claims),
        f"id         {_show(claims['jti']) if 'jti' in claims else 'none: it cannot be revoked by itself'}",
        *(
            f"{label:<10} {_show(claims[name])}"
            for label, name in (("audience", "aud"), ("issuer", "iss"))
            if name in claims
        ),
        f"algorithm  {_show(header.get('alg', 'none'))}" + (f", key {_show(header['kid'])}" if "kid" in header else ""),
    ]
    if rules is None:
        return [*lines, "signature  not checked: no key is configured (TOCSIN_JWT_SECRET)"], False
    tokens = Tokens(rules)
    try:
        try:
            await tokens.check_signature(token)
        except TocsinError as error:
            return [*lines, f"signature  not good: {error.message}", "accepted   no"], False
        lines.append("signature  fits the configured key")
        try:
            await tokens.verify(token)
        except TocsinError as error:
            return [*lines, f"accepted   no: {error.message}"], False
        return [*lines, "accepted   yes, unless it was revoked"], True
    finally:
        await tokens.close()


def _describe_end(end: Any, now: float) -> str:
    try:
        when = datetime.fromtimestamp(float(end), UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        return "never: `exp` is missing or no time"
    seconds = int(float(end) - now)
    amount = _describe_span(abs(seconds))
    return f"{when:%Y-%m-%d %H:%M:%S} UTC, " + (f"in {amount}" if seconds > 0 else f"which is past since {amount}")


def _describe_span(seconds: int) -> str:
    for size, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds // size} {name}"
    return f"{seconds} seconds"


def _describe_rights(claims: Mapping[str, Any]) -> list[str]:
    claim = claims.get(CLAIM, {})
    if not isinstance(claim, dict):
        return [f"may        nothing: `{CLAIM}` is no object"]
    lines = []
    for verb in Verb:
        patterns = claim.get(verb.value, [])
        shown = ", ".join(map(_show, patterns)) if isinstance(patterns, list) else "not a list"
        if shown:
            lines.append(f"may        {verb.value} {shown}")
    return lines or ["may        nothing"]


def _show(value: Any) -> str:
    """A value of a token for a terminal, which it must not be able to steer."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(value))[:256]
