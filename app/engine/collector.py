"""The cyclic garbage collector looks at everything that lives, again and again: it is told what has come to stay."""

from __future__ import annotations

import gc

EVERY = 5_000
"""So many more of one kind, and what is there is left alone from then on."""


class Settled:
    """Things of one kind that stay: connections, channels. Reference counting frees them as before (gc.freeze)."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known = 0

    def grown_to(self, count: int) -> None:
        """There are so many now."""
        if count >= self._known + EVERY:
            self._known = count
            gc.freeze()
