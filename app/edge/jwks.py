"""The public keys that tokens are verified with, and how an issuer's set of them is fetched and kept (RFC 7517).

Where the set is stands in the settings and never comes from a token. A set that was fetched serves for ever, until a
later fetch succeeds: an issuer that is down locks nobody out whose key is known.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPMessage, HTTPResponse, HTTPSConnection
from ipaddress import ip_address
from typing import IO, Any
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import (
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    ProxyHandler,
    Request,
    build_opener,
    getproxies,
)

import structlog
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, SECP521R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from app.core.errors import Unavailable

REFRESH_SECONDS = 600
"""Age at which a set is fetched anew, in the background."""
COOLDOWN_SECONDS = 30
"""From the start of one fetch to that of the next at least."""
FETCH_SECONDS = 5
"""What a fetch may take from its connection on, and what a request waits for it."""
LARGEST = 262_144
"""Bytes of a key set at most."""
TRIES = 16
"""Keys that are tried for one token at most, where several fit."""
_RSA_BITS = 2048
"""RFC 7518 section 3.3."""

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey | Ed448PublicKey

_log = structlog.get_logger("tocsin.keys")


@dataclass(frozen=True, slots=True)
class Key:
    """What one key verifies.

    Attributes:
        material: a public key, or the secret.
        algorithms: the allowed ones that fit it, at least one.
        kid: its name in the set, or None.
    """

    material: PublicKey | bytes
    algorithms: tuple[str, ...]
    kid: str | None = None


def algorithms_for(key: object) -> tuple[str, ...]:
    """What a public key can verify (RFC 7518 section 3.1, RFC 8037 section 3.1); nothing if it is small or foreign."""
    match key:
        case RSAPublicKey():
            fit = key.key_size >= _RSA_BITS
            return ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512") if fit else ()
        case EllipticCurvePublicKey(curve=SECP256R1()):
            return ("ES256",)
        case EllipticCurvePublicKey(curve=SECP384R1()):
            return ("ES384",)
        case EllipticCurvePublicKey(curve=SECP521R1()):
            return ("ES512",)
        case Ed25519PublicKey() | Ed448PublicKey():
            return ("EdDSA",)
        case _:
            return ()


def check_address(url: str) -> str:
    """Return the address of a key set if it is safe to trust what comes from there.

    Raises:
        ValueError: it is not `https`, nor `http` on this machine.
    """
    try:
        parts = urlsplit(url)
        fit = bool(parts.hostname) and parts.port != 0
    except ValueError:
        fit = False
    else:
        fit = fit and (parts.scheme == "https" or (parts.scheme == "http" and _is_here(parts.hostname or "")))
        fit = fit and "@" not in parts.netloc and url.isascii() and url.isprintable() and " " not in url
    if not fit:
        raise ValueError("allowed is https://host/path without a password (http:// on loopback only)")
    return url


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_key_set(raw: bytes, allowed: Sequence[str]) -> tuple[Key, ...]:
    """The keys of a JWK Set (RFC 7517 section 5) that verify an allowed algorithm; what else is in it is left out.

    Raises:
        ValueError: this is no key set, or none of its keys can be used.
    """
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        raise ValueError("what came is not JSON") from None
    entries = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(entries, list):
        raise ValueError("what came is no key set")  # noqa: TRY004 - its value is wrong, not ours
    keys = tuple(key for entry in entries if (key := _read_key(entry, allowed)) is not None)
    if not keys:
        raise ValueError("no key in it fits the allowed algorithms")
    return keys


def _read_key(entry: Any, allowed: Sequence[str]) -> Key | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("kty"), str) or entry["kty"] == "oct" or "d" in entry:
        return None  # a secret that stands in a public place signs for everyone
    operations = entry.get("key_ops", ["verify"])
    if entry.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return None
    kid, algorithm = entry.get("kid"), entry.get("alg")
    if not isinstance(kid, str | None) or not isinstance(algorithm, str | None):
        return None
    try:
        material = PyJWK(entry).key
    except (PyJWTError, ValueError, TypeError, OverflowError):
        return None
    fitting = tuple(
        name for name in algorithms_for(material) if name in allowed and (algorithm is None or name == algorithm)
    )
    return Key(material, fitting, kid) if fitting else None


class KeySet:
    """The keys of one issuer by their `kid`, as its endpoint last gave them."""

    def __init__(
        self, url: str, allowed: Sequence[str], clock: Callable[[], float], fetch: Callable[[str], bytes]
    ) -> None:
        """Nothing is fetched yet.

        Args:
            url: see `check_address`.
            allowed: algorithms.
            clock: seconds, monotonic.
            fetch: body of an address; called in a thread, one call at a time. Raises what it likes.
        """
        self._url = check_address(url)
        self._allowed = tuple(allowed)
        self._clock = clock
        self._get = fetch
        self._keys: tuple[Key, ...] = ()
        self._fetched_at = 0.0
        self._tried_at: float | None = None
        self._failed = False
        self._task: asyncio.Task[None] | None = None

    def find(self, kid: str | None, algorithm: str) -> tuple[Key, ...]:
        """Keys that may have signed: those of this name, or, where none has it, those without a name; without `kid`
        all that fit. An old set is fetched anew meanwhile.
        """
        if self._keys and self._clock() - self._fetched_at >= REFRESH_SECONDS and self._wait() <= 0:
            self._begin()
        fitting = [key for key in self._keys if algorithm in key.algorithms]
        if kid is not None:
            fitting = [key for key in fitting if key.kid == kid] or [key for key in fitting if key.kid is None]
        return tuple(fitting[:TRIES])

    def knows(self, kid: str | None) -> bool:
        """Whether a key has this name."""
        return kid is not None and any(key.kid == kid for key in self._keys)

    async def renew(self) -> bool:
        """Fetch, or wait for the fetch under way. False: it is too soon after the last one.

        Raises:
            Unavailable: the endpoint did not answer with a key set, now or less than the cooldown ago.
        """
        if self._task is None:
            wait = self._wait()
            if wait > 0 and not self._failed:
                return False
            if wait <= 0:
                self._begin()
        if self._task is not None:
            try:
                async with asyncio.timeout(FETCH_SECONDS):
                    await asyncio.shield(self._task)
            except TimeoutError:
                raise self._refusal() from None
        if self._failed:
            raise self._refusal()
        return True

    async def close(self) -> None:
        """Forget a fetch under way; its thread ends by its own deadline."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _refusal(self) -> Unavailable:
        sentence = "the keys that tokens are verified with cannot be fetched now: try again"
        return Unavailable(sentence, retry_after=max(1.0, self._wait()))

    def _wait(self) -> float:
        """Seconds until a fetch may begin; none while one is under way, for that one serves."""
        if self._task is not None:
            return COOLDOWN_SECONDS
        return 0.0 if self._tried_at is None else self._tried_at + COOLDOWN_SECONDS - self._clock()

    def _begin(self) -> None:
        self._tried_at = self._clock()
        self._task = asyncio.create_task(self._fetch())

    async def _fetch(self) -> None:
        try:
            self._keys = read_key_set(await asyncio.to_thread(self._get, self._url), self._allowed)
        except Exception as error:  # noqa: BLE001 - whatever an endpoint can do to a client; the next fetch may succeed
            if not self._failed:
                _log.warning("the key set cannot be fetched", reason=str(error) or type(error).__name__)
            self._failed = True
        else:
            if self._failed:
                _log.info("the key set was fetched again", keys=len(self._keys))
            self._failed = False
            self._fetched_at = self._clock()
        finally:
            self._task = None


class _NoWayOut(HTTPRedirectHandler):
    max_redirections = 3

    def redirect_request(  # noqa: PLR0917 - the base class says so
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if urlsplit(newurl)[:2] != urlsplit(req.full_url)[:2]:
            raise URLError("it redirects to another host or scheme")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _limit(opened: socket.socket) -> None:
    """End a connection at the deadline: a socket's own timeout is for one read, and a drop every second is endless."""

    def cut() -> None:
        with suppress(OSError):
            opened.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(FETCH_SECONDS, cut)
    timer.daemon = True
    timer.start()


class _Plain(HTTPConnection):
    def connect(self) -> None:
        super().connect()
        _limit(self.sock)


class _Secure(HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        _limit(self.sock)


class _PlainHandler(HTTPHandler):
    def http_open(self, req: Request) -> HTTPResponse:
        return self.do_open(_Plain, req)


class _SecureHandler(HTTPSHandler):
    def https_open(self, req: Request) -> HTTPResponse:
        return self.do_open(_Secure, req, context=ssl.create_default_context())


def fetch(url: str) -> bytes:
    """The body at an address that `check_address` took. Blocks, for about `FETCH_SECONDS` at most. Redirects stay on
    the host; a proxy of the environment is used for `https` only, for `http` is on this machine.

    Raises:
        OSError, http.client.HTTPException: no answer, no success, or a redirect elsewhere.
        ValueError: it is too large.
    """
    proxies = {scheme: proxy for scheme, proxy in getproxies().items() if scheme in ("https", "no")}
    opener = build_opener(_NoWayOut, _PlainHandler, _SecureHandler, ProxyHandler(proxies))
    request = Request(url, headers={"Accept": "application/json", "User-Agent": "tocsin"})  # noqa: S310 - checked
    with opener.open(request, timeout=FETCH_SECONDS) as response:
        body: bytes = response.read(LARGEST + 1)
    if len(body) > LARGEST:
        raise ValueError(f"what came is larger than {LARGEST} bytes")
    return body
