"""The Lua scripts: read from `lua/`, called by digest, brought along where the server may have lost them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from importlib.resources import files

import hiredis

Argument = bytes | str | int

SETTLING = frozenset({"publish", "sync", "tops", "extract", "clear", "refusals"})
"""Scripts that begin with `settle.lua`."""
ROOMS = frozenset({"attend", "reap", "members", "rolls", "absent", "register", "estate"})
"""Scripts of presence: they begin with `settle.lua` (a replica must not answer) and `room.lua`."""
WORKERS = frozenset({"beat", "bury"})
"""Scripts of leases: they begin with `settle.lua` and `workers.lua`."""


@dataclass(frozen=True, slots=True)
class Script:
    """A script's body and the hex digest under which Redis caches it."""

    name: str
    body: bytes
    digest: bytes


@cache
def load(name: str) -> Script:
    """The script in `lua/<name>.lua`.

    Raises:
        FileNotFoundError: there is none.
    """
    folder = files("app.brokers") / "lua"
    body = (folder / f"{name}.lua").read_bytes()
    if name in ROOMS | WORKERS:
        body = (folder / ("room.lua" if name in ROOMS else "workers.lua")).read_bytes() + body
    if name in SETTLING | ROOMS | WORKERS:
        body = (folder / "settle.lua").read_bytes() + body
    return Script(name, body, sha1(body, usedforsecurity=False).hexdigest().encode())


def bulk(data: bytes) -> bytes:
    """One argument of a command as RESP wants it."""
    return b"$%d\r\n%b\r\n" % (len(data), data)


def pack(command: tuple[Argument, ...]) -> bytes:
    """A whole command as RESP wants it."""
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type] # its annotation forgets the ellipsis
    return packed


class Opener:
    """The beginning of a call of one script, up to its number of keys, ready to write.

    Args:
        script: which one.
        arguments: how many follow: the number of keys, the keys, the arguments.
    """

    __slots__ = ("by_body", "by_digest", "name")

    def __init__(self, script: Script, arguments: int) -> None:
        count = b"*%d\r\n" % (arguments + 2)
        self.name = script.name
        self.by_digest = count + bulk(b"EVALSHA") + bulk(script.digest)
        self.by_body = count + bulk(b"EVAL") + bulk(script.body)
