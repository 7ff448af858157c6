"""Revocations: who is not let in, and is sent away, on every worker within a second.

The store keeps them until their end. Each worker has a copy, renewed when a message says so, when the revision that a
beat brings back has changed, and after each loss of its reader; until it has one it lets nobody new in.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import structlog

from app.core.errors import Forbidden, TocsinError, Unavailable
from app.core.identity import Identity

log = structlog.get_logger("tocsin.refusals")

NOTICE = b'{"refusals":true}'
"""The control message that says: read them again."""
_ONCE_SECONDS = 60
"""How long a single disconnect stays in the store, so that a worker that was away hears of it too."""
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
        disconnect: closes the connections of whom the predicate is true.
    """

    def __init__(self, store: Store, prefix: str, disconnect: Callable[[Callable[[Identity], bool]], int]) -> None:
        self._store = store
        self._key = f"{prefix}:{{workers}}:refused"
        self._control = f"{prefix}:control"
        self._disconnect = disconnect
        self._until: dict[str, float] = {}
        self._revision: int | None = None
        self._reading = False
        self._again = False
        self.disconnected = 0

    @property
    def known(self) -> bool:
        """Whether this worker's copy is complete."""
        return self._revision is not None

    def forget(self) -> None:
        """The reader was lost: what was told meanwhile is unknown."""
        self._revision = None

    def check(self, identity: Identity) -> None:
        """Refuse who is revoked.

        Raises:
            Forbidden: revoked.
            Unavailable: it cannot be known now.
        """
        if identity.user is None:
            return
        if self._revision is None:
            raise Unavailable("the service is not ready", retry_after=1.0)
        if self.refuses(identity):
            raise Forbidden("this user or token has been revoked")

    def refuses(self, identity: Identity) -> bool:
        """Whether this worker knows of a revocation."""
        if not self._until or identity.user is None:
            return False
        now = time.time()
        names = [_USER + identity.user]
        if identity.token is not None:
            names.append(_TOKEN + identity.token)
        return any(self._until.get(name, 0.0) > now for name in names)

    async def refuse_user(self, user: str, seconds: float) -> None:
        """Disconnect a user everywhere, and refuse it for so long (0: it may return at once).

        Raises:
            Unavailable: the store is away; nothing can be promised.
        """
        if seconds:
            await self._add(_USER + user, seconds * 1000, relative=True)
        else:
            await self._add(f"{_ONCE}{secrets.token_hex(8)}/{user}", _ONCE_SECONDS * 1000, relative=True)

    async def refuse_token(self, token: str, until: float) -> None:
        """Disconnect whoever showed the token with this id (`jti`), and refuse it until then (Unix seconds).

        Raises:
            Unavailable: the store is away; nothing can be promised.
        """
        await self._add(_TOKEN + token, until * 1000, relative=False)

    async def _add(self, name: str, milliseconds: float, *, relative: bool) -> None:
        await self._store.script(
            "refuse",
            (self._key,),
            (self._control, NOTICE, name, f"{milliseconds:.0f}", int(relative)),
        )
        await self.read()

    async def turn(self) -> None:
        """Once a second: read them if they are not known. Whether they have changed is told by each beat."""
        self._until = {name: until for name, until in self._until.items() if until > time.time()}
        if self._revision is None:
            await self.read()

    def differs(self, revision: int) -> bool:
        """Whether the store has another revision than the one that was read."""
        return self._revision is not None and revision != self._revision

    async def read(self) -> None:
        """Bring the copy up to date. One at a time; a call meanwhile makes it go round once more."""
        self._again = True
        if self._reading:
            return
        self._reading = True
        try:
            while self._again:
                self._again = False
                await self._read()
        except TocsinError as error:
            log.debug("revocations could not be read", reason=error.message)
        finally:
            self._reading = False

    async def _read(self) -> None:
        seen = -1 if self._revision is None else self._revision
        found = await self._store.script("refusals", (self._key,), (seen,))
        if not found:
            return
        revision, now, entries = int(found[0]), int(found[1]), found[2]
        offset = time.time() - now / 1000
        told = {
            name.decode(): int(until) / 1000 + offset for name, until in zip(entries[::2], entries[1::2], strict=True)
        }
        # What the store has lost (its last second, after a crash) is still refused by who knows it, and written back.
        lost = {name: until for name, until in self._until.items() if name not in told}
        fresh = [name for name in told if name not in self._until]
        self._until |= told
        first = self._revision is None
        self._revision = revision
        if fresh or first:
            self._send_away(fresh)
        for name, until in lost.items():
            await self._store.script(
                "refuse", (self._key,), (self._control, NOTICE, name, f"{(until - offset) * 1000:.0f}", 0)
            )

    def _send_away(self, fresh: Sequence[str]) -> None:
        once = {name.split("/", 2)[2] for name in fresh if name.startswith(_ONCE)}
        self.disconnected += self._disconnect(lambda who: who.user in once or self.refuses(who))
