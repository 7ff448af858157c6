"""How an operator writes what is more than a word or a number: channel rules, keys, origins, networks, addresses.

Pure readers, text in and value out, used by `settings` as validators. They raise `ValueError` with a sentence that says
what is allowed; a key never stands in it. What is no text is handed on, so that code can give ready values.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.brokers import WRITTEN, AckLevel
from app.brokers.address import SENTINEL_FORM, SENTINEL_SCHEME, read_sentinel_url
from app.core.identity import ApiKey
from app.core.messages import ChannelRule, Verb
from app.edge.jwks import check_address
from app.edge.keys import PUBLIC_ALGORITHMS, SECRET_ALGORITHMS, read_public_key, read_secret

_PATTERN = re.compile(r"(?:[A-Za-z0-9_.:@*-]|\{user\}){1,256}\Z")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")
_ORIGIN = re.compile(r"(https?)://([a-z0-9.-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?\Z")
_COOKIE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}\Z")
KEY = re.compile(r"[!-~]{16,512}\Z")
"""What a key or token of an operator looks like."""
_DEFAULT = ChannelRule()


class _Rule(BaseModel):
    """A channel rule as an operator writes it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    channel: str
    history: int = Field(default=_DEFAULT.history, ge=0, le=1_000_000)
    ttl: int = Field(default=_DEFAULT.ttl, ge=1, le=31_536_000)
    presence: bool = _DEFAULT.presence
    anonymous: list[Literal["publish", "subscribe", "history", "presence"]] = Field(default_factory=lambda: [*Verb])


class _Key(BaseModel):
    """An API key with a scope as an operator writes it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    key: str
    publish: list[str] = []
    subscribe: list[str] = []
    history: list[str] = []
    presence: list[str] = []
    admin: bool = False


def _first_line(error: ValidationError) -> str:
    """What is wrong inside a JSON value, without the value."""
    parts = []
    for problem in error.errors(include_url=False, include_input=False):
        where = ".".join(str(step) for step in problem["loc"])
        message = "is not known here" if problem["type"] == "extra_forbidden" else problem["msg"]
        parts.append(f"`{where}` {message[:1].lower()}{message[1:]}" if where else message)
    return "; ".join(parts)


def check_pattern(pattern: str) -> str:
    """Return a channel pattern of a rule or a key if it is in the grammar.

    Raises:
        ValueError: it is not.
    """
    if _PATTERN.match(pattern) is None:
        raise ValueError(
            f"`{pattern[:80]}` is no channel pattern: allowed are A-Z a-z 0-9 _ . : @ -, `*` for any run of them "
            "and `{user}`"
        )
    return pattern


def _load_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"this is not JSON: {error}") from None


def read_rules(value: Any) -> Any:
    """The list of channel rules in JSON text, or in a file (`@path`)."""
    if not isinstance(value, str):
        return value
    if value.startswith("@"):
        value = read_text(Path(value[1:]))
    rules = _load_json(value)
    if not isinstance(rules, list) or not rules:
        raise ValueError('allowed is a JSON list of rules such as [{"channel": "*", "history": 1000}]')
    return rules


def read_rule(value: Any) -> Any:
    """One channel rule; `ChannelRule` names what is left out."""
    if isinstance(value, ChannelRule):
        return value
    try:
        rule = _Rule.model_validate(value)
    except ValidationError as error:
        raise ValueError(_first_line(error)) from None
    if "{user}" in rule.channel:
        raise ValueError("`{user}` stands for somebody, and a rule is about nobody: write `*`")
    return ChannelRule(
        pattern=check_pattern(rule.channel),
        history=rule.history,
        ttl=rule.ttl,
        presence=rule.presence,
        anonymous=frozenset(Verb(verb) for verb in rule.anonymous),
    )


def _read_digest(which: str, key: str) -> bytes:
    if key.startswith("sha256:"):
        try:
            digest = bytes.fromhex(key.removeprefix("sha256:"))
        except ValueError:
            digest = b""
        if len(digest) != 32:
            raise ValueError(f"{which}: its key begins with sha256: but 64 hexadecimal digits do not follow")
        return digest
    if KEY.match(key) is None:
        raise ValueError(f"{which}: its key needs 16 to 512 printable ASCII characters without spaces")
    return hashlib.sha256(key.encode()).digest()


def read_keys(value: Any) -> Any:
    """API keys in JSON text: name to key, or to an object with `key` and what it may do."""
    if not isinstance(value, str):
        return value
    keys = _load_json(value)
    if not isinstance(keys, dict):
        raise ValueError(  # noqa: TRY004 - pydantic collects ValueError
            'allowed is a JSON object such as {"backend": "a key of 16 or more characters"}'
        )
    read: list[ApiKey] = []
    for number, (name, entry) in enumerate(keys.items(), 1):
        which = f"entry {number}"  # never the name: where name and key are swapped, it is the key
        if _NAME.match(name) is None:
            raise ValueError(f"{which}: its name is not allowed; allowed are 1 to 64 of A-Z a-z 0-9 _ . -")
        if isinstance(entry, str):
            everything = MappingProxyType(dict.fromkeys(Verb, ("*",)))
            read.append(ApiKey(name, _read_digest(which, entry), everything, admin=True))
            continue
        try:
            scope = _Key.model_validate(entry)
        except ValidationError as error:
            raise ValueError(f"{which}: {_first_line(error)}") from None
        allows = {verb: tuple(map(check_pattern, getattr(scope, verb.value))) for verb in Verb}
        read.append(ApiKey(name, _read_digest(which, scope.key), MappingProxyType(allows), admin=scope.admin))
    if len({key.digest for key in read}) < len(read):
        raise ValueError("two names have the same key")
    return tuple(read)


def read_jwt_secret(value: Any) -> Any:
    """A secret of tokens."""
    if isinstance(value, str):
        read_secret(value, ("HS256",))
    return value


def read_jwt_public_key(value: Any) -> Any:
    """A public key of tokens, parsed here so that a wrong file ends the start and not the first token."""
    if isinstance(value, str):
        read_public_key(value, PUBLIC_ALGORITHMS)
    return value


def read_jwks_url(value: Any) -> Any:
    """Where an issuer publishes its keys."""
    return check_address(value) if isinstance(value, str) else value


def read_algorithm(value: str) -> str:
    """An algorithm of tokens (RFC 7518 section 3.1); `none` is not among them."""
    known = (*SECRET_ALGORITHMS, *PUBLIC_ALGORITHMS)
    if value not in known:
        raise ValueError(f"`{value[:40]}` is no algorithm; allowed are {', '.join(known)}")
    return value


def read_cookie(value: Any) -> Any:
    """The name of a cookie (RFC 6265 section 4.1.1)."""
    if isinstance(value, str) and _COOKIE.match(value) is None:
        raise ValueError("a cookie's name has 1 to 64 of A-Z a-z 0-9 and ! # $ % & ' * + - . ^ _ ` | ~")
    return value


def read_list(value: Any) -> Any:
    """Words separated by commas or spaces."""
    return tuple(filter(None, re.split(r"[\s,]+", value))) if isinstance(value, str) else value


def read_origin(value: str) -> str:
    """An origin as browsers send it (RFC 6454 section 7): lower case, without the scheme's own port."""
    match = _ORIGIN.match(value.lower())
    if match is None:
        raise ValueError(f"`{value[:80]}` is no origin: allowed is scheme://host or scheme://host:port, without a path")
    scheme, host, port = match.groups()
    return (
        f"{scheme}://{host}" if port in (None, {"http": "80", "https": "443"}[scheme]) else f"{scheme}://{host}:{port}"
    )


def read_network(value: str) -> str:
    """An IP address or network."""
    try:
        return str(ipaddress.ip_network(value, strict=False)) if "/" in value else str(ipaddress.ip_address(value))
    except ValueError:
        raise ValueError(f"`{value[:80]}` is neither an IP address nor a network such as 10.0.0.0/8") from None


def read_redis_url(value: Any) -> Any:
    """An address of Redis; checked here so that a typing error ends the start, not a worker's first connection."""
    if not isinstance(value, str):
        return value
    parts = urlsplit(value)
    forms = (
        "allowed are redis://host:6379/0, rediss://host:6379/0 (TLS), unix:///path/to/redis.sock and " + SENTINEL_FORM
    )
    if parts.scheme == SENTINEL_SCHEME:
        try:
            read_sentinel_url(value)
        except ValueError as error:
            raise ValueError(f"{error}; {forms}") from None
        return value
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ValueError(f"the scheme `{parts.scheme[:40]}` is not known; {forms}")
    if parts.scheme == "unix":
        if not parts.path.startswith("/") or len(parts.path) < 2:
            raise ValueError(f"an absolute path is missing; {forms}")
        return value
    try:
        port = parts.port
    except ValueError:
        port = 0
    if not parts.hostname or port == 0:
        raise ValueError(f"the host is missing or the port is not 1 to 65535; {forms}")
    if parts.path.strip("/") and not parts.path.strip("/").isdecimal():
        raise ValueError(f"the path is the number of the database; {forms}")
    return value


def read_ack(value: Any) -> Any:
    """An acknowledgement level."""
    if not isinstance(value, str):
        return value
    if value == "written":
        return WRITTEN
    if value == "fsynced":
        return AckLevel(fsynced=True)
    found = re.fullmatch(r"replicated:([1-9])", value)
    if found is None:
        raise ValueError(f"`{value[:40]}` is no level; allowed are written, replicated:1 to replicated:9, and fsynced")
    return AckLevel(replicas=int(found[1]))


def read_text(path: Path) -> str:
    """A file's text without surrounding space."""
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ValueError(f"cannot read {path}: {reason}") from None
