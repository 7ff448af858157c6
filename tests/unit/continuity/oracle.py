"""The judge: every publication is a node with a parent, so what a client may see next is known exactly.

Nothing here knows a lineage, compares epochs or uses the code under test.
"""

from __future__ import annotations

from collections.abc import Iterator

from app.core.messages import Position, Publication

ROOT = 0
"""The node of a channel that nobody has ever touched."""
NEUTRAL = Position("", 0)
"""The position of such a channel where the rule that gives it an epoch was taken away."""


class Violation(Exception):
    """An invariant does not hold.

    Attributes:
        kind: which one, in two or three words.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind


class Oracle:
    """The tree of all publications on all servers, and who may be at which node.

    Args:
        wanted: the only kind of violation that counts; None: all do.

    Attributes:
        parent: node before each node; None where a history begins.
        nodes: node that a position names.
        messages: positions that name a message; the others were minted for an empty channel or a gap.
        clears: nodes that began with a clear.
    """

    def __init__(self, wanted: str | None = None) -> None:
        self.wanted = wanted
        self.parent: dict[int, int | None] = {ROOT: None}
        self.nodes: dict[Position, int] = {NEUTRAL: ROOT}
        self.messages: set[Position] = set()
        self.clears: set[int] = set()
        self._payloads: dict[Position, bytes] = {}
        self._keys: dict[str, set[int]] = {}
        self._reigns: dict[str, tuple[int, int]] = {}
        self._ends: dict[str, int] = {}

    def fail(self, kind: str, detail: str) -> None:
        """An invariant does not hold.

        Raises:
            Violation: it is one of those that count.
        """
        if self.wanted is None or self.wanted == kind:
            raise Violation(kind, detail)

    def root(self) -> int:
        """A node that begins a history."""
        node = len(self.parent)
        self.parent[node] = None
        return node

    def minted(self, epoch: str, top: int, node: int, reign: tuple[int, int]) -> None:
        """An epoch began behind `node` (invariant 8: it belongs to one server and one reign)."""
        if self._reigns.setdefault(epoch, reign) != reign:
            self.fail("two reigns", f"epoch {epoch} belongs to {self._reigns[epoch]} and {reign}")
        self.nodes[Position(epoch, top)] = node
        self._ends[epoch] = node

    def published(self, position: Position, parent: int, key: str) -> int:
        """A message was appended behind `parent`. Returns its node."""
        node = len(self.parent)
        self.parent[node] = parent
        self.nodes[position] = node
        self.messages.add(position)
        self._keys.setdefault(key, set()).add(node)
        self._ends[position.epoch] = node
        return node

    def path(self, node: int | None) -> Iterator[int]:
        """The nodes from here back to where the history began."""
        while node is not None:
            yield node
            node = self.parent[node]

    def since(self, top: int, node: int | None) -> list[int] | None:
        """The nodes after `node` up to `top`, newest first; None: `node` is not on that path."""
        between: list[int] = []
        for step in self.path(top):
            if step == node:
                return between
            between.append(step)
        return None

    def check_consecutive(self, log: tuple[Publication, ...], top: int | None) -> None:
        """Invariant 7: a log has no holes and ends at the counter."""
        offsets = [item.position.offset for item in log if item.position is not None]
        if offsets != list(range(offsets[0], offsets[0] + len(offsets))) if offsets else False:
            self.fail("not consecutive", f"the log holds {offsets}")
        if offsets and top is not None and offsets[-1] != top:
            self.fail("not consecutive", f"the log ends at {offsets[-1]}, the counter says {top}")

    def check_proved(self, who: str, position: Position | None, epoch: str) -> None:
        """Invariant 10: a live position lies on the history of the epoch it was proved under."""
        node = self.nodes.get(position) if position is not None else None
        if node is None or node not in self.path(self._ends.get(epoch, ROOT)):
            self.fail("unproved", f"{who} is live at {position} under {epoch}")

    def check_payload(self, position: Position, payload: bytes) -> None:
        """Invariant 3: one payload per id, over all clients."""
        first = self._payloads.setdefault(position, payload)
        if first != payload:
            self.fail("two payloads", f"{position} is {first.decode()} and {payload.decode()}")

    def check_keys(self, top: int) -> None:
        """Invariant 6: one entry per key on the path to the top."""
        path = set(self.path(top))
        for key, nodes in self._keys.items():
            if len(nodes & path) > 1:
                self.fail("published twice", f"key {key} is on one history {len(nodes & path)} times")
