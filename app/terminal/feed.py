"""Publishing lines: read as they come, sent in batches, each line once.

A batch is what is there, up to 1,000 lines: one who types is published line by line, a file in as few requests as
possible. Nothing is read while a batch is on its way, so whoever writes into the pipe waits. Lines are published in
their order; those of a batch that had to be repeated may come behind others of it.
"""

from __future__ import annotations

import json
import os
import select
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from app.exits import Exit
from app.terminal.remote import Failed
from tocsin.errors import PublishTimeout, TocsinError
from tocsin.posting import BATCH, Post
from tocsin.publisher import Publisher

CHUNK = 65_536
BATCH_BYTES = 500_000
"""Of lines in one batch, so that it is one request: JSON may make them longer."""
LONGEST = 900_000
"""Bytes of a line: more fits into no request."""


@dataclass(slots=True)
class Tally:
    """What came of the lines.

    Attributes:
        duplicates: those of the published that an earlier run with the same key had published already.
        unknown: neither acknowledged nor refused.
        number: of the last line that was taken.
        size: bytes of the lines that were dealt with.
    """

    published: int = 0
    duplicates: int = 0
    refused: int = 0
    unknown: int = 0
    number: int = 0
    size: int = 0

    def __str__(self) -> str:
        words = f"{self.published:,} published, {self.refused:,} refused"
        if self.duplicates:
            words += f", {self.duplicates:,} of them had been published before"
        return words + (f", {self.unknown:,} unknown" if self.unknown else "")


def read_lines(descriptor: int) -> Iterator[list[bytes]]:
    """The lines of a file, pipe or terminal without their ends: as many at once as are there, at least one.

    Raises:
        Failed: a line is longer than any message may be.
    """
    rest, lines, size = b"", [], 0
    while data := os.read(descriptor, CHUNK):
        *whole, rest = (rest + data).split(b"\n")
        if len(rest) > LONGEST:
            raise Failed(Exit.USAGE, f"a line has more than {LONGEST:,} bytes: no message may")
        lines += whole
        size += len(data)
        waits = select.select([descriptor], [], [], 0)[0]
        while len(lines) >= BATCH or (lines and (size >= BATCH_BYTES or not waits)):
            yield lines[:BATCH]
            del lines[:BATCH]
            size = 0
    if rest:
        lines.append(rest)
    if lines:
        yield lines


class Feed:
    """Publishes lines into one channel.

    Args:
        key: names the lines, `<key>-<number>`, so that the same input can be given again; None: each try is its own.
        as_json: each line is JSON; otherwise text.
        say: takes a sentence about a line that was not published.

    Attributes:
        tally: so far.
    """

    def __init__(
        self, publisher: Publisher, channel: str, *, key: str | None, as_json: bool, say: Callable[[str], None]
    ) -> None:
        self.tally = Tally()
        self._publisher = publisher
        self._channel = channel
        self._key = key
        self._as_json = as_json
        self._say = say

    def publish(self, lines: list[bytes]) -> None:
        """Publish a batch. A line that is refused is told and counted, and the next ones are published.

        Raises:
            TocsinError: all is refused.
            Failed: the service has not answered in time.
        """
        numbers, posts = [], []
        for line in lines:
            self.tally.number += 1
            self.tally.size += len(line) + 1
            if self._as_json and not line.strip():
                continue
            try:
                posts.append(Post(self._channel, self._read(line), self._name(self.tally.number)))
            except ValueError as error:
                self._refuse(self.tally.number, str(error))
            else:
                numbers.append(self.tally.number)
        try:
            outcomes = self._publisher.publish_many(posts)
        except BaseException:
            self.tally.unknown += len(posts)
            raise
        lost: list[tuple[int, PublishTimeout]] = []
        for number, outcome in zip(numbers, outcomes, strict=True):
            if isinstance(outcome, PublishTimeout):
                lost.append((number, outcome))
            elif isinstance(outcome, TocsinError):
                self._refuse(number, f"{outcome.message} ({outcome.code})")
            else:
                self.tally.published += 1
                self.tally.duplicates += outcome.duplicate
        if lost:
            first, timeout = lost[0]
            self.tally.unknown += sum(late.sent for _, late in lost)
            raise Failed(Exit.UNREACHABLE, f"stopped at line {first:,}: {timeout.message}")

    def _read(self, line: bytes) -> Any:
        text = line.removesuffix(b"\r")
        if self._as_json:
            try:
                return json.loads(text)
            except ValueError as error:
                raise ValueError(f"not JSON: {error}") from error
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            raise ValueError("not UTF-8") from error

    def _name(self, number: int) -> str | None:
        return None if self._key is None else f"{self._key}-{number:08}"

    def _refuse(self, number: int, reason: str) -> None:
        self.tally.refused += 1
        self._say(f"line {number:,}: {reason}")
