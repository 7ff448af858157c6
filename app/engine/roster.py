"""The roster: every connection of this worker, its keep-alive, and its orderly end.

Keep-alive is one wheel: a slice of the sockets each second, one shared buffer, no timer per socket.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Protocol

import structlog

from app.core.errors import Close
from app.core.identity import Identity
from app.engine.collector import Settled
from app.sockets import Chunk, Socket

log = structlog.get_logger("tocsin.roster")

COMMENT_SECONDS = 15.0
"""How often a stream gets a comment, at least: proxies end what is silent, and nobody answers a ping there."""
RETURN_SECONDS = 2.0
"""Within how many seconds those who were sent away are asked to return, each at a moment of its own."""
START_SECONDS = 8.0
"""What a service that was stopped as a whole is given to start again, before many are asked to return."""
LOOK_SECONDS = 2.5
"""At the beginning of a drain nobody is sent away for so long, or a quarter of it: then it is known who else serves."""
RETURNS = 20.0
"""A second and worker: over so long its clients' returns are spread then, but not over more than the drain took."""


class Peer(Protocol):
    """A connection, as the roster sees it.

    Attributes:
        slot: its place on the wheel, kept here for the roster.
    """

    socket: Socket
    slot: int

    @property
    def one_way(self) -> bool:
        """Whether it only listens."""

    @property
    def held(self) -> bool:
        """Whether reading is paused by us, so that silence is no sign of death."""

    @property
    def keepalive(self) -> Chunk | None:
        """What goes out with a ping."""

    @property
    def identity(self) -> Identity:
        """Who it is."""

    def end(self, after: float) -> None:
        """Close, because the server stops; the client may be back after so many seconds."""


class Roster:
    """All connections of one worker.

    Args:
        ping_seconds: between two pings of one socket; silent for two of these, a socket is closed with 4508.
        stall_seconds: a reader that has been slow for so long is aborted.
        drain_seconds: over which the closes of a stopping worker are spread.
        chance: a random number in [0, 1).

    Attributes:
        count: connections.
        opening: upgrades under way, which will be connections.
        floods: pauses of sockets that sent more frames than their rate allows.
        alone: no other worker, here or elsewhere, takes connections; looked after while this one is draining.
    """

    def __init__(
        self, *, ping_seconds: float, stall_seconds: float, drain_seconds: float, chance: Callable[[], float]
    ) -> None:
        # Two wheels on one axle: first the slots of sockets, then those of streams.
        self._pings = max(1, round(ping_seconds))
        self._comments = max(1, round(min(ping_seconds, COMMENT_SECONDS)))
        self._wheel: list[dict[Peer, None]] = [{} for _ in range(self._pings + self._comments)]
        self._turns = 0
        self._stalled: dict[Peer, float] = {}
        self._stall_seconds = stall_seconds
        self._silence = 2.0 * ping_seconds
        self._turned = math.inf
        self._drain_seconds = drain_seconds
        self._chance = chance
        self._settled = Settled()
        self._back_at = self._spread = 0.0
        self.draining = False
        self.alone = False
        self.count = 0
        self.opening = 0
        self.opened = 0
        self.silent = 0
        self.aborted = 0
        self.floods = 0

    def add(self, peer: Peer) -> None:
        """A connection has begun."""
        peer.slot = self._pings + self.opened % self._comments if peer.one_way else self.opened % self._pings
        self._wheel[peer.slot][peer] = None
        self.count += 1
        self.opened += 1
        self._settled.grown_to(self.count)

    def remove(self, peer: Peer) -> None:
        """It has ended."""
        del self._wheel[peer.slot][peer]
        self._stalled.pop(peer, None)
        self.count -= 1

    def slow(self, peer: Peer) -> None:
        """Its reader does not keep up."""
        self._stalled[peer] = asyncio.get_running_loop().time()

    def brisk(self, peer: Peer) -> None:
        """Its reader has caught up with what was waiting."""
        self._stalled.pop(peer, None)
        self.excuse(peer)

    def excuse(self, peer: Peer) -> None:
        """It was not pinged, or not read from: its silence so far says nothing."""
        peer.socket.heard = max(peer.socket.heard, asyncio.get_running_loop().time())

    def awake(self) -> float | None:
        """The loop's time; None when the loop stood still for longer than a client waits: what arrived meanwhile is of
        another time.
        """
        now = asyncio.get_running_loop().time()
        return None if now - self._turned > self._silence else now

    def disconnect(self, whom: Callable[[Identity], bool]) -> int:
        """Close with 4403 the connections of those for whom it is true. Returns how many."""
        found = [
            peer for slot in self._wheel for peer in slot if peer.identity.user is not None and whom(peer.identity)
        ]
        for peer in found:
            peer.socket.close(Close.FORBIDDEN, "revoked")
        return len(found)

    def turn(self) -> None:
        """Once a second: ping the next slice, end who is silent or has stalled for too long."""
        now = asyncio.get_running_loop().time()
        before, self._turned = self._turned, now
        if now - before > self._silence:
            log.error("the loop stood still: every socket is aborted unread", seconds=round(now - before, 1))
            self._abort_all()
        for peer in [peer for peer, since in self._stalled.items() if now - since > self._stall_seconds]:
            self.aborted += 1
            peer.socket.abort()
        self._turns += 1
        pinged, commented = self._turns % self._pings, self._pings + self._turns % self._comments
        for peer in [*self._wheel[pinged], *self._wheel[commented]]:
            socket = peer.socket
            if socket.paused or peer.held:
                continue
            if now - socket.heard > self._silence:
                self.silent += 1
                socket.close(Close.NO_PONG, "no pong")
            else:
                socket.ping(peer.keepalive)

    def _abort_all(self) -> None:
        for slot in self._wheel:
            for peer in list(slot):
                self.aborted += 1
                peer.socket.abort()

    def abort_silent(self) -> None:
        """This worker was taken for dead: who has not been heard for two pings is not coming back to these sockets."""
        now = asyncio.get_running_loop().time()
        for slot in self._wheel:
            for peer in list(slot):
                if now - peer.socket.heard > self._silence:
                    self.aborted += 1
                    peer.socket.abort()

    def retire(self, peer: Peer) -> None:
        """The server stops: close this one at a moment of its own within the drain window."""
        loop, drain = asyncio.get_running_loop(), self._drain_seconds
        if not self.draining:
            self.draining = True
            self._spread = min(drain, self.count / RETURNS)
            self._back_at = loop.time() + drain + min(START_SECONDS, self._spread)
        look = min(LOOK_SECONDS, drain / 4)
        loop.call_later(look + self._chance() * (drain - look), self._send_away, peer)

    def _send_away(self, peer: Peer) -> None:
        """Soon back if another worker takes it. If all stop, whoever comes before they are back comes in vain,
        and then with many others.
        """
        after = self._chance() * RETURN_SECONDS
        if self.alone:
            after += max(0.0, self._back_at - asyncio.get_running_loop().time()) + self._chance() * self._spread
        peer.end(after)
