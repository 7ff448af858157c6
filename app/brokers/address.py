"""Where Redis is, when its address is more than a host: the Sentinels that know it. Text in, value out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

SENTINEL_SCHEME = "redis+sentinel"
SENTINEL_FORM = "redis+sentinel://host:26379,host:26379/name"
_SENTINEL_PORT = 26379
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::([0-9]{1,5}))?\Z")
_OPTIONS = frozenset({"db", "sentinel_username", "sentinel_password"})


@dataclass(frozen=True, slots=True)
class SentinelAddress:
    """A primary that goes by a name.

    Attributes:
        sentinels: host and port of each Sentinel.
        name: what the Sentinels call the primary.
        username: for the primary, or None.
        password: for the primary, or None.
        db: number of the database.
        sentinel_username: for the Sentinels, or None.
        sentinel_password: for the Sentinels, or None.
    """

    sentinels: tuple[tuple[str, int], ...]
    name: str
    username: str | None = None
    password: str | None = None
    db: int = 0
    sentinel_username: str | None = None
    sentinel_password: str | None = None

    def __repr__(self) -> str:
        """Without what is secret."""
        return f"SentinelAddress({self.sentinels!r}, {self.name!r})"


def read_sentinel_url(url: str) -> SentinelAddress:
    """The parts of `redis+sentinel://[user:password@]host:port,host:port/name[?db=0&sentinel_username=..]`.

    Raises:
        ValueError: it is not such an address; the sentence repeats nothing of it.
    """
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    sentinels = []
    for text in hosts.split(","):
        found = _HOST.match(text)
        port = int(found[2] or _SENTINEL_PORT) if found is not None else 0
        if found is None or not 0 < port < 65_536:
            raise ValueError("a Sentinel's host is missing or its port is not 1 to 65535")
        sentinels.append((found[1].strip("[]"), port))
    name = unquote(parts.path.removeprefix("/"))
    if re.fullmatch(r"[A-Za-z0-9_.-]+", name) is None:
        raise ValueError("the path is the name that the Sentinels give the primary")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if not options.keys() <= _OPTIONS:
        raise ValueError(f"the options are {', '.join(sorted(_OPTIONS))}")
    db = options.get("db", "0")
    if not (db.isascii() and db.isdecimal()):
        raise ValueError("`db` is the number of the database")
    return SentinelAddress(
        tuple(sentinels),
        name,
        unquote(username) or None,
        unquote(password) or None,
        int(db),
        options.get("sentinel_username") or None,
        options.get("sentinel_password") or None,
    )
