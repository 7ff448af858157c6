"""Plays cases against one worker of the running service, over real Redis."""

from __future__ import annotations

import select
from types import TracebackType
from typing import Self

from app.settings import Settings
from tests.stage.frames import CLOSE, PING, PONG, Peer, frame
from tests.stage.service import Service, until
from tests.wire.conformance.case import Case, Chunks, Heard

RATES = ("publish_rate", "command_rate", "frame_rate")

PATIENCE = 4.0
"""Seconds that anything may take: less than until a server that forgot to end a connection aborts it (5 or 10)."""


def unlimited() -> dict[str, str]:
    """Settings that lift every limit of rates which this version has: cases send as fast as they can."""
    return {name: "0" for name in RATES if name in Settings.model_fields}


class Stage:
    """A service of one worker and, beside the cases, a witness on a connection of its own; a context manager.

    The worker has one loop: what it answers the witness shows that it has read what came before, and that it lives.
    """

    def __init__(self, redis_url: str, prefix: str, *, fast: bool) -> None:
        self.service = Service(
            redis_url, workers=1, fast=fast, settings={"redis_prefix": prefix, "ping_seconds": "300", **unlimited()}
        )
        self._witness: Peer

    def __enter__(self) -> Self:
        self.service.start()
        try:
            self._witness = Peer(self.service.port, "/ws?channel=witness")
        except BaseException:
            self.service.end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._witness.sock.close()
        self.service.__exit__(kind, error, trace)

    def play(self, case: Case) -> bool:
        """Play a case on a channel of its own. Returns whether it went as a strict server would have it.

        Raises:
            AssertionError: it went in a way that is not allowed.
            TimeoutError: something that must come did not.
        """
        with Peer(self.service.port, f"/ws?channel=case:{case.number}", patience=PATIENCE) as peer:
            assert peer.status == 101, peer.head
            *turns, last = case.turns
            for turn in turns:
                self._say(peer, turn.chunks)
                for answer in turn.answers:
                    assert _shown(_hear(peer)) == _shown(answer)
            strict = self._say(peer, last.chunks, case.prompt)
            answers, code = _hear_end(peer)
        assert code in case.codes, f"closed with {code} where {sorted(case.codes)} are due"
        self.look()
        if answers == last.answers:
            return strict
        assert case.lenient is not None, f"{answers} where {last.answers} is due"
        assert answers == case.lenient
        return False

    def look(self) -> None:
        """Return when the worker has read all that was sent before. It may read two sockets in either order in one turn
        of its loop; the second ping it reads in a later turn than the first.
        """
        for payload in (b"1", b"2"):
            self._witness.send(frame(PING, payload))
            while (got := self._witness.read_frame()) != (PONG, payload):
                assert got is not None, "the worker has left the witness"
                assert got[0] == PING, got
                self._witness.send(frame(PONG, got[1]))

    def check_aftermath(self) -> None:
        """Of all cases nothing is left: no connection, no error of the application, and the same process."""
        until(lambda: sum(self.service.metric("connections").values()) == 1, what="the end of all cases' connections")
        assert "Exception in" not in self.service.log()
        assert self.service.process is not None
        assert self.service.process.poll() is None

    def _say(self, peer: Peer, chunks: Chunks, prompt: int | None = None) -> bool:
        """Send chunks, each when the one before was read. Whether the server fails after `prompt` of them; not before
        that it must not.
        """
        for count, chunk in enumerate(chunks, 1):
            try:
                peer.send(chunk)
            except ConnectionError:  # it has ended the connection; what it had to say waits to be read
                break
            if count < len(chunks):
                self.look()
            if prompt is not None and count <= prompt and select.select([peer.sock], [], [], 0)[0]:
                assert count == prompt, "failed before anything was wrong"
                return True
        return prompt is None


def _shown(heard: Heard | None) -> str:
    """A frame as pytest can show its difference from another."""
    return "the end" if heard is None else f"{heard[0]}: {len(heard[1])} bytes {heard[1]!r}"


def _hear(peer: Peer) -> Heard | None:
    """The next frame that is no ping; None at the end."""
    while (got := peer.read_frame()) is not None and got[0] == PING:
        pass
    return got


def _hear_end(peer: Peer) -> tuple[tuple[Heard, ...], int]:
    """The frames before the server's close frame, and its code (1005: empty). It ends its direction behind it."""
    heard = []
    while (got := _hear(peer)) is not None:
        heard.append(got)
    assert heard, "ended without a close frame"
    *before, (opcode, payload) = heard
    assert opcode == CLOSE, heard
    payload[2:].decode()
    return tuple(before), int.from_bytes(payload[:2], "big") if payload else 1005
