"""Revocations: who is not let in, and is sent away, on every worker within a second.

The store keeps them until their end. Each worker has a copy, renewed when a message says so, when the revision that a
beat brings back has changed, and after each loss of its reader. A worker whose copy may be old lets nobody new in.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import structlog

from app.core.errors import Forbidden, TocsinError, Unavailable
from app.core.identity import Identity

log = structlog.get_logger("tocsin.refusals")

NOTICE = b'{"refusals":true}'
"""The control message that says: read them again."""
FRESH_SECONDS = 5.0
"""Age of the last good reading up to which a copy counts as complete."""
BEATS_SECONDS = 1.5
"""Age at which it is read without waiting for a beat."""
_ONCE_SECONDS = 60
"""How long the order to disconnect once stays in the store, so that a worker that was away hears of it too."""
_USER, _TOKEN, _ONCE = "user/", "token/", "once/"


class Store(Protocol):
    """What this needs of the store."""

    async def script(self, name: str, keys: Sequence[str], arguments: Sequence[bytes | str | int]) -> Any:
        """Run a script of this project by name. Raises `Unavailable`."""


class Refusals:
    """This worker's copy of the revocations.

    Args:
        store: keeps them for all workers.
        prefix: of the keys.
        disconnect: closes the connections of whom the predicate is true; returns how many.
        clock: seconds, monotonic.

    Attributes:
        disconnected: connections that were closed.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        disconnect: Callable[[Callable[[Identity], bool]], int],
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._keys = (f"{prefix}:{{workers}}:refused", f"{prefix}:{{workers}}:refused-revision")
        self._control = f"{prefix}:control"
        self._disconnect = disconnect
        self._clock = clock
        self._until: dict[str, float] = {}
        self._revision = b"-1"
        self._read_at: float | None = None
        self._reading = self._again = self._ever = False
        self.disconnected = 0

    @property
    def known(self) -> bool:
        """Whether this worker's copy is complete."""
        return self._read_at is not None and self._clock() - self._read_at < FRESH_SECONDS

    def forget(self) -> None:
        """The reader was lost: what was told meanwhile is unknown."""
        self._revision, self._read_at = b"-1", None

    def check(self, identity: Identity) -> None:
        """Refuse who is revoked.

        Raises:
            Forbidden: revoked.
            Unavailable: it cannot be known now.
        """
        if identity.user is None:
            return
        if self.refuses(identity):
            raise Forbidden("this user or token has been revoked")
        if not self.known:
            raise Unavailable("whether this token is revoked cannot be known now", retry_after=1.0)

    def refuses(self, identity: Identity) -> bool:
        """Whether this worker knows of a revocation."""
        if not self._until or identity.user is None:
            return False
        now = self._clock()
        return self._until.get(_USER + identity.user, 0.0) > now or (
            identity.token is not None and self._until.get(_TOKEN + identity.token, 0.0) > now
        )

    async def refuse_user(self, user: str, seconds: float) -> None:
        """Disconnect a user everywhere, and refuse it for so long (0: it may return at once).

        Raises:
            Unavailable: the store is away; nothing can be promised.
        """
        entries: dict[str, float] = {f"{_ONCE}{secrets.token_hex(8)}/{user}": _ONCE_SECONDS}
        if seconds:
            entries[_USER + user] = seconds
        await self._add(entries, from_now=True)
        await self.read()

    async def refuse_token(self, token: str, until: float) -> None:
        """Disconnect whoever showed the token with this id (`jti`), and refuse it until then (Unix seconds).

        Raises:
            Unavailable: the store is away; nothing can be promised.
        """
        await self._add({_TOKEN + token: until}, from_now=False)
        await self.read()

    async def _add(self, entries: Mapping[str, float], *, from_now: bool) -> None:
        pairs = [part for name, end in entries.items() for part in (name, f"{max(1, end * 1000):.0f}")]
        await self._store.script("refuse", self._keys, (self._control, NOTICE, int(from_now), *pairs))

    async def turn(self) -> None:
        """Once a second: forget those that have ended, and read them where that has not been possible."""
        now = self._clock()
        for name in [name for name, until in self._until.items() if until <= now]:
            del self._until[name]
        if self._read_at is None or now - self._read_at > BEATS_SECONDS:
            await self.read()

    async def compare(self, revision: bytes) -> None:
        """The store has this revision, a beat says."""
        if revision == self._revision and self._read_at is not None:
            self._read_at = self._clock()
        else:
            await self.read()

    async def read(self) -> None:
        """Bring the copy up to date. One reading at a time; a call meanwhile makes it go round once more."""
        self._again = True
        if self._reading:
            return
        self._reading = True
        try:
            while self._again:
                self._again = False
                await self._read()
        except TocsinError as error:
            if self._read_at is not None and not self.known:
                log.warning("the revocations cannot be read: nobody with a token is let in", reason=error.message)
                self._read_at = None
        finally:
            self._reading = False

    async def _read(self) -> None:
        began = self._clock()
        found = await self._store.script("refusals", self._keys, (self._revision,))
        if found:
            self._revision = found[0]
            # An end in the store's time, as one of ours: its clock may be wrong, and ours may be set.
            told = {
                name.decode(): began + (float(end) - int(found[1])) / 1000
                for name, end in zip(found[2][::2], found[2][1::2], strict=True)
            }
            fresh = [name for name in told if self._until.get(name, 0.0) <= began]
            lost = {name: end - began for name, end in self._until.items() if name not in told and end > began}
            self._until |= told
            if self._ever:
                self._send_away(fresh)
            self._ever = True
            await self._write_back(lost)
        self._read_at = began

    async def _write_back(self, lost: Mapping[str, float]) -> None:
        """What the store has lost, as its last second in a crash, is still refused by who knows it."""
        entries = {name: seconds for name, seconds in lost.items() if not name.startswith(_ONCE)}
        if entries:
            try:
                await self._add(entries, from_now=True)
            except TocsinError:
                self._revision = b"-1"  # another reading finds them missing again
                raise

    def _send_away(self, fresh: Sequence[str]) -> None:
        users = {name.split("/", 2)[2] for name in fresh if name.startswith(_ONCE)}
        users |= {name[len(_USER) :] for name in fresh if name.startswith(_USER)}
        tokens = {name[len(_TOKEN) :] for name in fresh if name.startswith(_TOKEN)}
        if users or tokens:
            self.disconnected += self._disconnect(lambda who: who.user in users or who.token in tokens)
