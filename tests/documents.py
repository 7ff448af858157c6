"""The committed documents, made again from the service's models: `python -m tests.documents`.

The examples of the AsyncAPI document are the golden frames of tests/wire.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from app import __version__
from app.edge.documents import asyncapi
from app.protocols import objects

DOCS = Path(__file__).parents[1] / "docs"
WIRE = Path(__file__).parent / "wire"
EXAMPLES = 3
"""Of each message at most: the parser looks at each wherever its message is referred to."""
_NAMES = {"members": "Members", "history": "HistoryPage", "presence": "PresenceChange", "message": "Message"}
"""Of events whose type is a command's too, or has none."""


def examples() -> dict[str, list[dict[str, Any]]]:
    """Golden frames by the name of their type: of good commands and of events, the first of each."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, row in named():
        found.setdefault(name, []).append({"name": row["name"], "payload": json.loads(row["frame"])})
    return {name: rows[:EXAMPLES] for name, rows in found.items()}


def named() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every golden frame of a good command or an event, with the name of its type."""
    commands = {each.__struct_config__.tag: each.__name__ for each in get_args(objects.Command)}
    for row in json.loads((WIRE / "commands.json").read_text("utf-8")):
        if "command" in row["meaning"]:
            yield commands[row["meaning"]["command"]], row
    events = {each.__struct_config__.tag: each.__name__ for each in get_args(objects.Event)} | _NAMES
    for row in json.loads((WIRE / "events.json").read_text("utf-8")):
        yield events[row["meaning"]["event"]], row


def make() -> dict[str, dict[str, Any]]:
    """The documents by file name."""
    os.environ.setdefault("TOCSIN_REDIS_URL", "redis://127.0.0.1:1/0")  # the module that has `create_app` makes one
    from app.main import create_app
    from app.settings import Settings

    app = create_app(Settings(_env_file=None))
    return {"openapi.json": app.openapi(), "asyncapi.json": asyncapi(__version__, examples())}


def text_of(document: dict[str, Any]) -> str:
    """As it is committed."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name, document in make().items():
        (DOCS / name).write_text(text_of(document), "utf-8")
