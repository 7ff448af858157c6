"""Who is let in now: connections by address and user, over all workers; tokens that end; and the meters of rates.

What the other workers have is a second old: a burst over several workers may pass.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from weakref import WeakValueDictionary

import orjson
import structlog

from app.core.errors import Close, RateLimited, TocsinError
from app.core.identity import Identity
from app.core.limits import Meter, Rate, Rates, Tally
from app.sockets import Socket

log = structlog.get_logger("tocsin.admissions")

LEEWAY_SECONDS = 10.0
"""How long after its token's end a connection goes on: clocks differ."""
_TTL_MS = 4000
_TOLD = 1000
"""Addresses and users that a worker tells the others about: those with the most connections."""
_RECENT = 10_000
"""Users, and addresses, whose rates are remembered though they have no connection."""


class Peer(Protocol):
    """A connection, as this sees it.

    Attributes:
        address: from where, or None where nobody counts.
        closes_at: second (Unix) of the bucket in which it waits for its token's end, kept here for this; 0: none.
    """

    socket: Socket
    address: str | None
    closes_at: int

    @property
    def identity(self) -> Identity:
        """Who it is."""


class Store(Protocol):
    """What this needs of the store."""

    async def script(self, name: str, keys: Sequence[str], arguments: Sequence[bytes | str | int]) -> Any:
        """Run a script of this project by name. Raises `Unavailable`."""


class Admissions:
    """The admissions of one worker.

    Args:
        store: for the counts of the others.
        prefix: of the keys.
        clock: Unix seconds.
        per_address: connections at most, over all workers; 0: no limit.
        per_user: likewise.
        connects: upgrades of one address on this worker.
        rates: of each client.

    Attributes:
        expired: connections closed because their token had ended.
        refused: upgrades that were refused, for whatever reason.
        turned_away: those refused by a limit of connections or of their rate.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        *,
        clock: Callable[[], float],
        per_address: int,
        per_user: int,
        connects: Rate,
        rates: Rates,
    ) -> None:
        self._store = store
        self._keys = f"{prefix}:{{workers}}"
        self._clock = clock
        self._per_address = per_address
        self._per_user = per_user
        self._connects = connects
        self._rates = rates
        self._limited = bool(rates.publish.rate or rates.command.rate)
        self._addresses: Counter[str] = Counter()
        self._users: Counter[str] = Counter()
        self._elsewhere: tuple[Counter[str], Counter[str]] = Counter(), Counter()
        self._ending: dict[int, dict[Peer, None]] = {}
        self._ended = int(clock())
        self._tally = Tally()
        self._meters: WeakValueDictionary[tuple[bool, str], Meter] = WeakValueDictionary()
        self._by_user: OrderedDict[str, Meter] = OrderedDict()
        self._by_address: OrderedDict[str, Meter] = OrderedDict()
        self._upgrades: OrderedDict[str, float] = OrderedDict()
        self._asking = False
        self.expired = 0
        self.turned_away = 0
        self.refused = 0

    @property
    def counts_addresses(self) -> bool:
        """Whether anybody wants to know where a connection comes from."""
        return self._per_address > 0

    @property
    def limited(self) -> int:
        """How often a command, message or request was refused because it came too fast."""
        return self._tally.refused

    # -- limits

    def knock(self, address: str, now: float) -> None:
        """An upgrade is asked for; `now` in seconds of a monotonic clock.

        Raises:
            RateLimited: too many from this address.
        """
        if not self._connects.rate:
            return
        full_at, wait = self._connects.take(self._upgrades.pop(address, 0.0), now)
        self._upgrades[address] = full_at
        if len(self._upgrades) > _RECENT:
            self._upgrades.popitem(last=False)
        if wait:
            self.turned_away += 1
            raise RateLimited("too many connections in a short time from this address", retry_after=wait)

    def check(self, identity: Identity, address: str) -> None:
        """Whether one more connection is within the limits.

        Raises:
            RateLimited: it is not.
        """
        user = identity.user
        if self._per_address and self._addresses[address] + self._elsewhere[0][address] >= self._per_address:
            self.turned_away += 1
            raise RateLimited("too many connections from this address", retry_after=5.0)
        if self._per_user and user is not None and self._users[user] + self._elsewhere[1][user] >= self._per_user:
            self.turned_away += 1
            raise RateLimited("too many connections of this user", retry_after=5.0)

    def meter(self, identity: Identity, address: str | None = None) -> Meter | None:
        """What counts the doings of this client on this worker: all that a user does together; an anonymous one by its
        address where one is given, else by itself. None: it has no limits.
        """
        if not self._limited or not identity.rated:
            return None
        if identity.user is not None:
            return self._shared(self._by_user, identity.user)
        return Meter(self._rates, self._tally) if address is None else self._shared(self._by_address, address)

    def _shared(self, recent: OrderedDict[str, Meter], name: str) -> Meter:
        """One that is held by a connection, or was asked for lately, or a new one."""
        key = (recent is self._by_user, name)
        meter = self._meters.get(key)
        if meter is None:
            meter = self._meters[key] = Meter(self._rates, self._tally)
        recent[name] = meter
        recent.move_to_end(name)
        if len(recent) > _RECENT:
            recent.popitem(last=False)
        return meter

    # -- connections

    def begin(self, identity: Identity, address: str | None) -> None:
        """An upgrade that will be a connection counts as one, until `end`."""
        if address is not None and self._per_address:
            self._addresses[address] += 1
        if identity.user is not None and self._per_user:
            self._users[identity.user] += 1

    def end(self, identity: Identity, address: str | None) -> None:
        """It is under way no more."""
        if address is not None and self._per_address:
            _lessen(self._addresses, address)
        if identity.user is not None and self._per_user:
            _lessen(self._users, identity.user)

    def enter(self, peer: Peer) -> None:
        """A connection has begun."""
        self.begin(peer.identity, peer.address)
        self.renew(peer)

    def leave(self, peer: Peer) -> None:
        """It has ended."""
        self.end(peer.identity, peer.address)
        self._unlist(peer)

    def renew(self, peer: Peer) -> None:
        """Its token ends at another time now."""
        self._unlist(peer)
        ends = peer.identity.expires_at
        if ends is not None:
            peer.closes_at = max(self._ended + 1, int(ends + LEEWAY_SECONDS))
            self._ending.setdefault(peer.closes_at, {})[peer] = None

    def _unlist(self, peer: Peer) -> None:
        bucket = self._ending.get(peer.closes_at)
        if bucket is not None:
            bucket.pop(peer, None)
            if not bucket:
                del self._ending[peer.closes_at]
        peer.closes_at = 0

    def turn(self) -> None:
        """Once a second: close whose token has ended."""
        now = int(self._clock())
        jumped = not 0 <= now - self._ended <= 60
        due = [at for at in self._ending if at <= now] if jumped else list(range(self._ended + 1, now + 1))
        self._ended = now
        for second in due:
            for peer in self._ending.pop(second, {}):
                peer.closes_at = 0
                self.expired += 1
                peer.socket.close(Close.UNAUTHORIZED, "the token has expired")

    async def ask(self, incarnation: str) -> None:
        """Once a second, where connections are limited: tell the other workers, and hear of them; `incarnation` names
        this one.
        """
        if not (self._per_address or self._per_user) or self._asking:
            return
        self._asking = True
        counts = orjson.dumps([dict(_most(self._addresses)), dict(_most(self._users))])
        try:
            answers: list[bytes] = await self._store.script(
                "census", (f"{self._keys}:all",), (f"{self._keys}:crowd:", incarnation, counts, _TTL_MS)
            )
        except TocsinError as error:
            log.debug("connections of other workers are not known", reason=error.message)
            return
        finally:
            self._asking = False
        addresses: Counter[str] = Counter()
        users: Counter[str] = Counter()
        for answer in answers:
            others = orjson.loads(answer)
            addresses.update(others[0])
            users.update(others[1])
        self._elsewhere = addresses, users


def _lessen(counts: Counter[str], name: str) -> None:
    counts[name] -= 1
    if counts[name] <= 0:
        del counts[name]


def _most(counts: Counter[str]) -> list[tuple[str, int]]:
    return heapq.nlargest(_TOLD, counts.items(), key=lambda item: item[1])
