"""One case: what is sent and in which chunks, what must come back, and how the connection must end. No I/O."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from tests.stage.frames import close

Heard = tuple[int, bytes]
"""Opcode and payload of a frame from the server."""
Chunks = tuple[bytes, ...]
"""What is sent piece by piece: the server has read one before the next is sent."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Chunks, and the frames that must come before the next turn."""

    chunks: Chunks
    answers: tuple[Heard, ...] = ()


@dataclass(frozen=True, slots=True)
class Case:
    """One case. Whoever begins to close, the server sends a close frame last, and ends its direction of the TCP
    connection (RFC 6455 section 7.1.1); where Autobahn takes a dropped connection for a close frame, we do not.

    Attributes:
        number: as Autobahn counts.
        meaning: in a few words.
        turns: what is sent and answered. Between the answers of the last turn and the close frame nothing may come.
        codes: that the server's close frame may carry; 1005 is an empty one.
        lenient: the answers of the last turn that Autobahn takes too, as non-strict.
        prompt: how many chunks of the last turn a strict server needs to fail the connection, and not before. One that
            needs all of them is non-strict.
    """

    number: str
    meaning: str
    turns: tuple[Turn, ...]
    codes: frozenset[int]
    lenient: tuple[Heard, ...] | None = None
    prompt: int | None = None

    def __str__(self) -> str:
        return f"{self.number}-{'-'.join(self.meaning.split())}"

    @property
    def group(self) -> int:
        """The first part of the number."""
        return int(self.number.split(".")[0])


def whole(*frames: bytes) -> Chunks:
    """All at once."""
    return (b"".join(frames),)


def apart(*frames: bytes) -> Chunks:
    """Frame by frame."""
    return frames


def pieces(size: int, *frames: bytes) -> Chunks:
    """In chunks of so many bytes, wherever frames end."""
    data = b"".join(frames)
    return tuple(data[at : at + size] for at in range(0, len(data), size))


def octets(*frames: bytes) -> Chunks:
    """Byte by byte."""
    return pieces(1, *frames)


def answered(number: str, meaning: str, *turns: Turn) -> Case:
    """After all answers we close with 1000, and so does the server."""
    return Case(number, meaning, (*turns, Turn((close(1000),))), frozenset({1000}))


def failed(
    number: str,
    meaning: str,
    chunks: Chunks,
    code: int,
    *,
    echoed: Heard | None = None,
    prompt: int | None = None,
) -> Case:
    """The server fails the connection with this code. `echoed` is the answer to what was good before: strict servers
    send it, but non-strict ones may fail the connection without it.
    """
    answers = () if echoed is None else (echoed,)
    lenient = None if echoed is None else ()
    return Case(number, meaning, (Turn(chunks, answers),), frozenset({code}), lenient, prompt)


def closed(number: str, meaning: str, chunks: Chunks, codes: Collection[int]) -> Case:
    """The chunks hold our close frame, and nothing is answered but by another."""
    return Case(number, meaning, (Turn(chunks),), frozenset(codes))
