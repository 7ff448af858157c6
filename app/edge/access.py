"""Who gets in: the loopback rule, the Origin rule, API keys and tokens, before anything else happens.

With nothing configured only this machine may come in. What one may do inside a channel is `core.identity`. Nothing of
a URL counts as a credential.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.core.errors import BadRequest, Forbidden, Unauthorized
from app.core.identity import ApiKey, Identity
from app.edge.keys import Tokens
from app.edge.loopback import is_loopback, is_loopback_name
from app.protocols import BEARER

NOT_LOOPBACK = (
    "no authentication is configured, so only this machine may connect: set TOCSIN_JWT_SECRET or TOCSIN_API_KEYS, or "
    "let everyone in with TOCSIN_ALLOW_ANONYMOUS=true"
)
_NAMES = frozenset({b"host", b"origin", b"x-api-key", b"authorization", b"cookie", b"sec-fetch-site"})
_RELAYED = frozenset({b"forwarded", b"via", b"x-real-ip"})
"""What proxies add (RFC 9110 section 7.6.3, RFC 7239), besides X-Forwarded-*."""
_ANONYMOUS = Identity()
_MASTER = Identity(admin=True)
"""Who comes in while only this machine may."""


@dataclass(frozen=True, slots=True)
class Access:
    """The rules of entry.

    Attributes:
        keys: API keys.
        origins: web origins that may connect beside the service's own (`https://example.org`).
        anonymous: whether one without credentials may come in.
        configured: whether any authentication is configured.
        tokens: verifies tokens; None where none are taken.
        cookie: name of the cookie that may carry a token, or None.
        refuse: raises where a user or token has been revoked, or that cannot be known.
    """

    keys: Sequence[ApiKey]
    origins: frozenset[str]
    anonymous: bool
    configured: bool
    tokens: Tokens | None
    cookie: str | None
    refuse: Callable[[Identity], None]

    @property
    def sheltered(self) -> bool:
        """Only this machine may come in, and it may do everything."""
        return not self.configured and not self.anonymous

    def admit(self, scope: Mapping[str, Any]) -> None:
        """The loopback rule, for whatever is not a question about health.

        Raises:
            Forbidden: nothing is configured, and the request did not come to this machine's loopback, by its name, and
                from no proxy.
        """
        if self.sheltered:
            host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
            server = scope.get("server")
            if not server or not is_loopback(str(server[0])) or not is_loopback_name(host):
                raise Forbidden(NOT_LOOPBACK)
            if any(name in _RELAYED or name.startswith(b"x-forwarded-") for name, _ in scope["headers"]):
                raise Forbidden(f"this request came through a proxy: {NOT_LOOPBACK}")

    async def identify(self, scope: Mapping[str, Any], offered: Sequence[str] = (), *, cookie: bool = True) -> Identity:
        """Who sent an admitted request.

        Args:
            scope: of the request.
            offered: subprotocols, one of which may carry a token (`tocsin.bearer.<jwt>`).
            cookie: whether a cookie may say who it is.

        Raises:
            Forbidden: sent by a foreign web page, or revoked.
            Unauthorized: no credentials where they are needed, or bad ones.
            BadRequest: more than one credential.
            Unavailable: whether it is revoked, or the keys for its token, cannot be known now.
        """
        found: dict[bytes, str] = {}
        for name, value in scope["headers"]:
            if name in _NAMES:
                text = value.decode("latin-1")
                if name == b"cookie":  # RFC 9113 section 8.2.3: may come in pieces
                    found[name] = f"{found[name]}; {text}" if name in found else text
                elif name in found:
                    raise BadRequest(f"the header {name.decode()} came twice")
                else:
                    found[name] = text
        if b"origin" in found:
            self._require_origin(found[b"origin"], found.get(b"host", ""), scope.get("scheme", ""))
        shown = [found[b"x-api-key"]] if b"x-api-key" in found else []
        tokens = [name[len(BEARER) :] for name in offered if name.startswith(BEARER)]
        scheme, *rest = found.get(b"authorization", "").split(None, 1)[:2] or [""]
        if scheme.lower() == "bearer":
            tokens.append(rest[0].strip() if rest else "")
        if len(shown) + len(tokens) > 1:
            raise BadRequest("give one credential: an API key or a token, in one place")
        if shown:
            return self._identify_key(shown[0])
        if not tokens and cookie and self.cookie is not None:
            tokens = self._read_cookie(self.cookie, found)
        if tokens:
            return await self.verify(tokens[0])
        if self.sheltered:
            return _MASTER
        if self.anonymous:
            return _ANONYMOUS
        if self.tokens is None:
            raise Unauthorized("credentials are needed: send an API key as X-API-Key")
        raise Unauthorized(
            "credentials are needed: send a token as `Authorization: Bearer`, or from a browser as the subprotocol "
            "`tocsin.bearer.<token>`"
        )

    async def verify(self, token: str) -> Identity:
        """Who a token says it is.

        Raises:
            Unauthorized: it is not good.
            Forbidden: it, or its user, is revoked.
            Unavailable: that cannot be known now.
        """
        if self.tokens is None:
            raise Unauthorized("no tokens are taken here: set TOCSIN_JWT_SECRET, or leave the token away")
        identity = await self.tokens.verify(token)
        self.refuse(identity)
        return identity

    @staticmethod
    def _read_cookie(wanted: str, found: Mapping[bytes, str]) -> list[str]:
        """The token in the cookie. A browser sends it whoever has asked, so it counts only where the browser says that
        a page of ours or of a listed origin has (Origin, or Sec-Fetch-Site where it sends no Origin).
        """
        pairs = (pair.partition("=") for pair in found.get(b"cookie", "").split(";"))
        tokens = [value.strip().strip('"') for name, _, value in pairs if name.strip() == wanted]
        if len(tokens) > 1:
            raise BadRequest("the cookie with the token came twice")
        ours = b"origin" in found or found.get(b"sec-fetch-site") == "same-origin"
        return tokens if ours else []

    def _identify_key(self, shown: str) -> Identity:
        digest = hashlib.sha256(shown.encode("latin-1")).digest()
        found = None
        for key in self.keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        if found is None:
            raise Unauthorized("this API key is not known")
        return Identity.of_key(found)

    def _require_origin(self, origin: str, host: str, scheme: str) -> None:
        origin = origin.lower()
        if origin in self.origins:
            return
        begins, _, name = origin.partition("://")
        # A page that came unencrypted may be anybody's; the other way round a proxy has ended TLS.
        if begins == "https" or (begins == "http" and scheme in {"http", "ws"}):
            if name and name == host.lower():
                return
            if self.sheltered and is_loopback_name(name):
                return
        raise Forbidden("this web origin may not connect: list it in TOCSIN_ORIGINS")
