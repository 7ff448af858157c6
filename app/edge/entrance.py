"""Whether one more connection may begin now, whatever its kind; what is under way counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from app.core.errors import Close, Draining, Unavailable
from app.core.identity import Identity
from app.edge.loopback import network_of
from app.engine.admissions import Admissions
from app.engine.connection import Connection
from app.engine.roster import Roster


@dataclass(frozen=True, slots=True)
class Entrance:
    """The entrance of one worker.

    Attributes:
        capacity: connections this worker holds at most.
        problems: why nobody is let in right now.
        refuses: whether somebody is known to be revoked.
    """

    roster: Roster
    admissions: Admissions
    capacity: int
    problems: Callable[[], list[str]]
    refuses: Callable[[Identity], bool]

    def knock(self, address: str) -> None:
        """A connection is asked for.

        Raises:
            RateLimited: too many from this address.
        """
        self.admissions.knock(address, asyncio.get_running_loop().time())

    def check(self, identity: Identity, address: str) -> None:
        """Whether there is room.

        Raises:
            Draining: this worker is going away.
            Unavailable: it is full, or not ready.
            RateLimited: too many connections of this user or address.
        """
        if self.roster.draining:
            raise Draining("this worker is going away", retry_after=1.0)
        if self.roster.count + self.roster.opening >= self.capacity:
            raise Unavailable("this worker is full", retry_after=5.0)
        if self.problems():
            raise Unavailable("the service is not ready", retry_after=1.0)
        self.admissions.check(identity, address)

    @contextmanager
    def opening(self, identity: Identity, address: str) -> Iterator[None]:
        """One that has been let in counts until it is a connection."""
        self.roster.opening += 1
        self.admissions.begin(identity, address)
        try:
            yield
        finally:
            self.roster.opening -= 1
            self.admissions.end(identity, address)

    def counted(self, address: str) -> str | None:
        """The address, where anybody wants to know it."""
        return address if self.admissions.counts_addresses else None

    def look_again(self, connection: Connection) -> None:
        """Close a connection whose user was revoked while it was under way."""
        if self.refuses(connection.identity):
            connection.socket.close(Close.FORBIDDEN, "revoked")


def address_of(scope: Mapping[str, Any]) -> str:
    """From where a request comes, as far as proxies are trusted."""
    client = scope.get("client")
    return network_of(client[0]) if client else ""
