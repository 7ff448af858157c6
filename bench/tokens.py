"""Tokens for clients of a measurement: HS256, each of another user."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import IO

COUNT = 12_000
"""More than clients return with one in a run, so that none is shown twice."""


def write_tokens(secret: str, file: IO[str]) -> None:
    """Write tokens that are good for an hour, one a line (RFC 7519; signed as RFC 7515 section 3.1 says)."""
    now = int(time.time())
    head = _part({"alg": "HS256", "typ": "JWT"})
    rights = {"publish": ["bench"], "subscribe": ["bench"]}
    for number in range(COUNT):
        claims = {"sub": f"user{number}", "iat": now, "exp": now + 3600, "jti": f"token{number}", "tocsin": rights}
        signed = f"{head}.{_part(claims)}"
        digest = hmac.digest(secret.encode(), signed.encode(), hashlib.sha256)
        file.write(f"{signed}.{_encode(digest)}\n")
    file.flush()


def _part(content: object) -> str:
    return _encode(json.dumps(content, separators=(",", ":")).encode())


def _encode(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()
