"""Who gets in: the loopback rule, the Origin rule and API keys, before anything else happens.

With nothing configured only this machine may come in. What one may do inside a channel is `core.identity`.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from app.core.errors import Forbidden, Unauthorized
from app.core.identity import ApiKey, Identity

NOT_LOOPBACK = (
    "no authentication is configured, so only this machine may connect: set TOCSIN_API_KEYS, or let everyone in with "
    "TOCSIN_ALLOW_ANONYMOUS=true"
)
_NAMES = frozenset({b"host", b"origin", b"x-api-key"})
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
    """

    keys: Sequence[ApiKey]
    origins: frozenset[str]
    anonymous: bool
    configured: bool

    @property
    def sheltered(self) -> bool:
        """Only this machine may come in, and it may do everything."""
        return not self.configured and not self.anonymous

    def admit(self, scope: Mapping[str, Any]) -> None:
        """The loopback rule, for whatever is not a question about health.

        Raises:
            Forbidden: nothing is configured, and the request did not come to this machine's loopback, by its name.
        """
        if self.sheltered:
            host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
            server = scope.get("server")
            if not server or not is_loopback(str(server[0])) or not is_loopback_name(host):
                raise Forbidden(NOT_LOOPBACK)

    def identify(self, scope: Mapping[str, Any]) -> Identity:
        """Who sent an admitted request.

        Raises:
            Forbidden: sent by a foreign web page.
            Unauthorized: no credentials where they are needed, or bad ones.
        """
        found = {name: value.decode("latin-1") for name, value in scope["headers"] if name in _NAMES}
        host = found.get(b"host", "")
        sheltered = self.sheltered
        if b"origin" in found:
            self._require_origin(found[b"origin"], host)
        if b"x-api-key" in found:
            return self._identify_key(found[b"x-api-key"])
        if sheltered:
            return _MASTER
        if self.anonymous:
            return _ANONYMOUS
        raise Unauthorized("credentials are needed: send an API key as X-API-Key")

    def _identify_key(self, shown: str) -> Identity:
        digest = hashlib.sha256(shown.encode("latin-1")).digest()
        found = None
        for key in self.keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        if found is None:
            raise Unauthorized("this API key is not known")
        return Identity.of_key(found)

    def _require_origin(self, origin: str, host: str) -> None:
        if origin != "null":
            parts = urlsplit(origin.lower())
            if parts.netloc == host.lower() or origin.lower() in self.origins:
                return
            if self.sheltered and is_loopback_name(parts.netloc):
                return
        raise Forbidden("this web origin may not connect: list it in TOCSIN_ORIGINS")


@lru_cache(maxsize=256)
def is_loopback(address: str) -> bool:
    """Whether an address is of this machine's loopback (127.0.0.0/8, ::1)."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


@lru_cache(maxsize=256)
def is_loopback_name(host: str) -> bool:
    """Whether a Host header names the loopback: `localhost`, a loopback address, each with or without a port."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return name == "localhost" or name.endswith(".localhost") or is_loopback(name)
