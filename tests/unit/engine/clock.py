"""An event loop whose time is its own: nothing is waited for, timers run in order, a run is the same every time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any


class _Selector(selectors.SelectSelector):
    """Sees no file; what a loop would wait is added to its time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "the loop has nothing to do and waits for ever"
        self.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop in virtual time (seconds from 0). What its callbacks raise is kept in `faults`."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)
        self.faults: list[str] = []
        self.set_exception_handler(lambda _, context: self.faults.append(repr(context.get("exception") or context)))

    def time(self) -> float:
        """Virtual seconds."""
        return self._virtual.now


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run in virtual time; a fault in any callback fails the run."""
    loop = VirtualLoop()
    try:
        loop.run_until_complete(work)
        assert not loop.faults, loop.faults
    finally:
        loop.close()
