"""What the scripts are asked and answer, as values of the core."""

from __future__ import annotations

from typing import Any

from app.brokers import Extract
from app.brokers.commands import away
from app.brokers.envelope import read_page
from app.brokers.scripts import Argument
from app.core.continuity import Reading, Verdict, label
from app.core.errors import Gone
from app.core.messages import Position

_VERDICTS = {verdict.value.encode(): verdict for verdict in Verdict}


def position_arguments(position: Position | None) -> tuple[Argument, Argument]:
    """A position as our scripts take it; None is an empty epoch."""
    return ("", 0) if position is None else (position.epoch, position.offset)


def read_answer(reply: list[Any]) -> Reading:
    """The answer of `sync`, `tops` and `extract`.

    Raises:
        Unavailable: it is none of ours; somebody has written into our keys.
    """
    try:
        verdict, epoch, top, tail, lineage, cleared, page = reply
        reigns = (reign.partition(":") for reign in lineage.decode().split(","))
        return Reading(
            _VERDICTS[verdict],
            epoch.decode(),
            int(top),
            tail.decode(),
            tuple((name, int(first)) for name, _, first in reigns),
            cleared.decode() or None,
            read_page(page),
        )
    except (ValueError, AttributeError, LookupError, TypeError):
        raise away("the store holds something else than what we wrote") from None


def read_extract(reading: Reading, since: Position | None, before: Position | None) -> Extract:
    """Where a page begins and ends; without `since` it came newest first.

    A message of a kind that this version does not know is never passed over in silence: the page ends before it, or
    begins after it.

    Raises:
        Gone: such a message comes first; its position says where to go on.
    """
    last = reading.top if before is None else before.offset - 1
    publications = reading.publications if since is not None else reading.publications[::-1]
    unknown = [index for index, publication in enumerate(publications) if publication.kind is None]
    if unknown and since is not None:
        if unknown[0] == 0:
            position = str(publications[0].position)
            raise Gone("the next message is of a kind that this version does not know", position=position)
        publications = publications[: unknown[0]]
    elif unknown:
        publications = publications[unknown[-1] + 1 :]
    if not publications:
        end = Position(reading.tail, reading.top) if before is None else _labelled(reading, last)
        at = end if since is None else since
        return Extract((), at, at, complete=since is None or since.offset >= last)
    first, newest = publications[0].position, publications[-1].position
    assert first is not None
    assert newest is not None
    start = _labelled(reading, first.offset - 1) if since is None else since
    return Extract(publications, newest, start, complete=newest.offset == last)


def _labelled(reading: Reading, offset: int) -> Position:
    offset = max(0, offset)
    return Position(label(reading.lineage, offset), offset)
