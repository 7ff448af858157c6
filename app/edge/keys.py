"""Tokens are verified here: JSON Web Tokens (RFC 7519) by RFC 8725, with PyJWT; this module holds no cryptography.

What may verify what is fixed by the settings, not by the token: a secret only HMAC, a public key only the signatures of
its kind. `jku`, `x5u`, `x5c` and `jwk` in a header are never looked at. No sentence repeats the token or a claim.
"""

from __future__ import annotations

import hmac
import re
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import a2b_base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt import PyJWS, PyJWT
from jwt.algorithms import HMACAlgorithm
from jwt.exceptions import (
    DecodeError,
    ExpiredSignatureError,
    ImmatureSignatureError,
    InvalidAlgorithmError,
    InvalidAudienceError,
    InvalidIssuedAtError,
    InvalidIssuerError,
    InvalidJTIError,
    InvalidSignatureError,
    InvalidSubjectError,
    MissingRequiredClaimError,
    PyJWTError,
)
from jwt.types import Options

from app.core.errors import Unauthorized
from app.core.identity import Identity, identity_of
from app.edge.jwks import Key, KeySet, algorithms_for, fetch

SECRET_ALGORITHMS = {"HS256": 32, "HS384": 48, "HS512": 64}
"""Those of a secret, with the bytes that it needs (RFC 7518 section 3.2)."""
PUBLIC_ALGORITHMS = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)
"""Those of a public key."""
LEEWAY_SECONDS = 10
"""By which the clock of who made a token may differ from ours."""
_HEADS = 16
"""Headers that are known again: an issuer writes the same one into all of its tokens."""
LONGEST_TOKEN = 8192
"""Bytes of a token at most."""

_SHAPE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\Z")
"""The compact serialization of a signed token (RFC 7515 section 7.1)."""
_URLSAFE = bytes.maketrans(b"-_+/=", b"+/!!!")
"""Base64url as base64 (RFC 4648 section 5); what is none of it is made to be no base64 either."""
_TYPES = frozenset({"jwt", "application/jwt", "at+jwt", "application/at+jwt"})
"""Types in lower case that may open a door (RFC 7519 section 5.1, RFC 9068 section 2.1). An issuer signs others with
the same keys that may not, such as `logout+jwt` (RFC 8725 section 3.11).
"""
_ALL: Options = {
    "verify_exp": True,
    "verify_nbf": True,
    "verify_iat": True,
    "verify_iss": True,
    "verify_sub": True,
    "verify_jti": True,
}
_NONE: Options = {
    "require": [],
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
    "verify_iss": False,
    "verify_aud": False,
    "verify_sub": False,
    "verify_jti": False,
}
_MALFORMED = "this is no token: it must be a signed JWT, three parts in base64url joined by dots"
_FOREIGN = "the token's signature does not fit the key that is configured here"


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What a token must be. Exactly one of `secret`, `public_key` and `jwks_url` is set.

    Attributes:
        algorithms: allowed ones.
        secret: 32 bytes or more in UTF-8.
        public_key: PEM.
        jwks_url: where the issuer publishes its keys.
        audience: what `aud` must be or contain; None: `aud` is not looked at.
        issuer: what `iss` must be; None: likewise.
    """

    algorithms: tuple[str, ...]
    secret: str | None = field(default=None, repr=False)
    public_key: str | None = None
    jwks_url: str | None = None
    audience: str | None = None
    issuer: str | None = None


def read_secret(text: str, algorithms: Sequence[str]) -> bytes:
    """The bytes of a secret: its text as it stands, in UTF-8.

    Raises:
        ValueError: it is too short for an algorithm, or it is a key of another kind.
    """
    try:
        secret = HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(text)
    except UnicodeEncodeError:
        raise ValueError("this is not UTF-8") from None
    except PyJWTError:
        raise ValueError("this is a key of another kind (PEM, SSH, JWK) and no secret") from None
    needed = max((SECRET_ALGORITHMS[name] for name in algorithms if name in SECRET_ALGORITHMS), default=32)
    if len(secret) < needed:
        raise ValueError(f"a secret needs {needed} bytes or more: `openssl rand -hex {needed}` makes one")
    return secret


def read_public_key(pem: str, algorithms: Sequence[str]) -> Key:
    """A public key in PEM (RFC 7468 section 13, or PKCS #1) with those of the algorithms that fit it.

    Raises:
        ValueError: it is none, or a private one, or no algorithm fits.
    """
    if "PRIVATE KEY-----" in pem:
        raise ValueError("this is a private key: give the public one (`openssl pkey -in FILE -pubout`)")
    try:
        material = load_pem_public_key(pem.encode())
    except Exception:  # noqa: BLE001 - each format has errors of its own, some not of ValueError's kind
        raise ValueError("this is no public key in PEM (-----BEGIN PUBLIC KEY-----)") from None
    possible = algorithms_for(material)
    if not possible:
        raise ValueError("this key cannot be used: allowed are RSA of 2048 bits or more, P-256, P-384, P-521, Ed25519")
    fitting = tuple(name for name in algorithms if name in possible)
    if not fitting:
        raise ValueError(f"this key is for {', '.join(possible)}, of which TOCSIN_JWT_ALGORITHMS allows none")
    return Key(material, fitting)  # type: ignore[arg-type]  # algorithms_for knows no other kinds


class _Hmac(HMACAlgorithm):
    """Takes its secret as `read_secret` has left it: looking for PEM, DER and JWK in it again costs more than HMAC."""

    def prepare_key(self, key: str | bytes) -> bytes:
        assert isinstance(key, bytes)
        return key

    def check_key_length(self, key: bytes) -> str | None:  # noqa: ARG002 - the base class says so
        return None


class Tokens:
    """Verifies tokens by one set of rules."""

    def __init__(
        self,
        rules: TokenRules,
        *,
        clock: Callable[[], float] = time.monotonic,
        fetch: Callable[[str], bytes] = fetch,
    ) -> None:
        """Prepare the keys; a key set is fetched when the first token asks for it.

        Args:
            rules: see there.
            clock: seconds, monotonic: the age of a key set. Claims are compared with the time of day.
            fetch: how a key set is fetched.

        Raises:
            ValueError: the key and the algorithms do not fit.
        """
        self._rules = rules
        self._key: Key | None = None
        self._set: KeySet | None = None
        if rules.secret is not None:
            allowed = tuple(name for name in rules.algorithms if name in SECRET_ALGORITHMS)
            self._key = Key(read_secret(rules.secret, allowed), allowed)
        else:
            allowed = tuple(name for name in rules.algorithms if name in PUBLIC_ALGORITHMS)
            if rules.public_key is not None:
                self._key = read_public_key(rules.public_key, allowed)
                allowed = self._key.algorithms
        if not allowed:
            raise ValueError("no allowed algorithm fits the kind of key")
        if self._key is None:
            self._set = KeySet(rules.jwks_url or "", allowed, clock, fetch)
        self._allowed = allowed
        self._heads: dict[str, bytes] = {}
        # `aud` without an audience configured: PyJWT refuses (RFC 7519 section 4.1.3), but issuers put one into every
        # token, and an operator who has given us no name has said that the key alone decides.
        self._jwt = PyJWT(
            {"require": ["exp", "sub"], "verify_aud": rules.audience is not None, "enforce_minimum_key_length": True}
        )
        self._jwt._jws = _jws_for(allowed)

    async def verify(self, token: str) -> Identity:
        """Who bears the token. Takes no turn of the loop unless a key set must be fetched.

        Raises:
            Unauthorized: it is none of ours, or no longer, or not yet.
            Unavailable: the issuer's keys cannot be fetched.
        """
        claims = self._recognise(token)
        return identity_of(await self._decode(token, None) if claims is None else claims)

    async def check_signature(self, token: str) -> None:
        """Whether the token's header and signature are good, whatever it says.

        Raises:
            Unauthorized, Unavailable: as in `verify`.
        """
        await self._decode(token, _NONE)

    async def close(self) -> None:
        """Forget a fetch under way."""
        if self._set is not None:
            await self._set.close()

    def _recognise(self, token: str) -> dict[str, Any] | None:
        """The claims of an ordinary token: signed with the secret, under a header that the library has taken before,
        and good by plain comparisons. None: the library decides. It alone refuses, and this takes nothing that it
        would not: it costs a third, and each new connection pays it.
        """
        signed, _, signature = token.rpartition(".")
        head, _, payload = signed.partition(".")
        key = self._heads.get(head)
        if key is None or len(token) > LONGEST_TOKEN or not token.isascii():
            return None
        digest = hmac.digest(key, signed.encode(), "sha256")
        if not hmac.compare_digest(urlsafe_b64encode(digest).rstrip(b"="), signature.encode()):
            return None
        try:
            padded = payload.encode().translate(_URLSAFE) + b"=" * (-len(payload) % 4)
            claims = orjson.loads(a2b_base64(padded, strict_mode=True))
        except ValueError:
            return None
        return claims if isinstance(claims, dict) and self._is_plain(claims) else None

    def _is_plain(self, claims: Mapping[str, Any]) -> bool:
        """Whether the registered claims (RFC 7519 section 4.1) are of their usual types and say that it is good now."""
        now = time.time()
        exp, iat, nbf = claims.get("exp"), claims.get("iat", 0), claims.get("nbf", 0)
        audience, issuer = self._rules.audience, self._rules.issuer
        return (
            (type(exp) is int or type(exp) is float)
            and exp > now
            and type(iat) is int
            and iat <= now
            and type(nbf) is int
            and nbf <= now
            and type(claims.get("sub")) is str
            and type(claims.get("jti", "")) is str
            and (audience is None or claims.get("aud") == audience)
            and (issuer is None or claims.get("iss") == issuer)
        )

    def _remember(self, token: str, header: Mapping[str, Any]) -> None:
        """The library has taken a token with this header: `_recognise` may know it again."""
        if self._key is not None and isinstance(self._key.material, bytes) and header.get("alg") == "HS256":
            if len(self._heads) >= _HEADS:
                self._heads.clear()
            self._heads[token.partition(".")[0]] = self._key.material

    async def _decode(self, token: str, options: Options | None) -> dict[str, Any]:
        if len(token) > LONGEST_TOKEN:
            raise Unauthorized(f"this token is longer than {LONGEST_TOKEN} bytes")
        if _SHAPE.match(token) is None:
            raise Unauthorized(_MALFORMED)
        try:
            if self._key is not None:
                decoded = self._check(token, self._key, options)
                _check_header(decoded["header"])
                self._remember(token, decoded["header"])
            else:
                decoded = await self._decode_by_set(token, options)
        except PyJWTError as error:
            raise Unauthorized(self._sentence(error)) from None
        claims: dict[str, Any] = decoded["payload"]
        return claims

    def _check(self, token: str, key: Key | None, options: Options | None) -> dict[str, Any]:
        """All that PyJWT checks; without a key all but the signature."""
        if key is None:
            # The library turns every check off with that of the signature, unless it is told.
            chosen: Options = {"verify_aud": self._rules.audience is not None, **_ALL, **(options or {})}
            options = {**chosen, "verify_signature": False}
        return self._jwt.decode_complete(
            token,
            b"" if key is None else key.material,
            self._allowed if key is None else key.algorithms,
            options,
            audience=self._rules.audience,
            issuer=self._rules.issuer,
            leeway=LEEWAY_SECONDS,
        )

    async def _decode_by_set(self, token: str, options: Options | None) -> dict[str, Any]:
        """Nothing is fetched for a token that would be refused whatever its signature."""
        assert self._set is not None
        header = self._check(token, None, options)["header"]
        _check_header(header)
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in self._allowed:
            raise InvalidAlgorithmError
        tried = False
        for last in (False, True):
            for key in self._set.find(kid, algorithm):
                try:
                    return self._check(token, key, options)
                except InvalidSignatureError:
                    tried = True
            if last or self._set.knows(kid) or not await self._set.renew():
                break
        if tried or self._set.knows(kid):
            raise InvalidSignatureError
        raise Unauthorized("the issuer has published no key that fits this token's `kid` and `alg`")

    def _sentence(self, error: PyJWTError) -> str:
        match error:
            case ExpiredSignatureError():
                return "this token has expired: get a new one"
            case ImmatureSignatureError():
                return "this token is not valid yet (`nbf`, `iat`): is the clock of its maker right?"
            case MissingRequiredClaimError():
                return f"this token lacks the claim `{error.claim}`"
            case InvalidAudienceError():
                return "this token is for others: its `aud` is not TOCSIN_JWT_AUDIENCE"
            case InvalidIssuerError():
                return "this token is from another issuer: its `iss` is not TOCSIN_JWT_ISSUER"
            case InvalidSubjectError():
                return "the token's `sub` must be a string"
            case InvalidJTIError():
                return "the token's `jti` must be a string"
            case InvalidIssuedAtError():
                return "the token's `iat` must be a number of seconds since 1970"
            case InvalidAlgorithmError():
                return f"the token's `alg` is not allowed; allowed are {', '.join(self._allowed)}"
            case InvalidSignatureError():
                return _FOREIGN
            case DecodeError():
                return f"{_MALFORMED}, of JSON objects whose times are numbers"
            case _:
                return (
                    "the token's header is not allowed: `kid` must be a string, and `crit` names what is not known here"
                )


def _check_header(header: dict[str, Any]) -> None:
    """Refuse what the library would take.

    Raises:
        Unauthorized: `crit`, for no extension is known here (RFC 7515 section 4.1.11), or a token for another purpose.
    """
    if "crit" in header:
        raise Unauthorized("the token's header has `crit`, and no extension is known here")
    kind = header.get("typ", "JWT")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise Unauthorized("the token's `typ` is for another purpose; allowed are JWT and at+jwt, or none")


class _Jws(PyJWS):
    """The library's verifier without its look at each character: `_SHAPE` has seen the whole token (half the cost)."""

    @staticmethod
    def _decode_base64url_segment(segment: bytes, name: str) -> bytes:
        try:
            decoded = urlsafe_b64decode(segment + b"=" * (-len(segment) % 4))
        except ValueError:
            raise DecodeError(f"Invalid {name} padding") from None
        # The last character's spare bits must be zero, or one token has several spellings (RFC 4648 section 3.5).
        if urlsafe_b64encode(decoded).rstrip(b"=") != segment:
            raise DecodeError(f"Invalid {name} padding")
        return decoded


def _jws_for(allowed: Sequence[str]) -> PyJWS:
    """A verifier that knows the allowed algorithms alone."""
    jws = _Jws(allowed)
    for name in allowed:
        algorithm = jws.get_algorithm_by_name(name)
        if isinstance(algorithm, HMACAlgorithm):
            jws.unregister_algorithm(name)
            jws.register_algorithm(name, _Hmac(algorithm.hash_alg))
    return jws
