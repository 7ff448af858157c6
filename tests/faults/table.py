"""All faults, in an order in which neighbours share a ground, and their table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.faults import delivery, failover, presence, store, workers
from tests.faults.checker import Kind
from tests.faults.scene import Fault, Outcome

GROUPS = {
    "Delivery": delivery.FAULTS,
    "Redis": (*store.FAULTS, *failover.FAULTS),
    "Workers and network": workers.FAULTS,
    "Presence and permission": presence.FAULTS,
}


def in_order(*groups: str) -> tuple[Fault, ...]:
    """The faults of some groups, neighbours on one ground."""
    found = (fault for group in groups for fault in GROUPS[group])
    return tuple(sorted(found, key=lambda fault: repr(fault.terms)))


FAULTS = in_order(*GROUPS)
COLUMNS = ("messages", "deliveries", "resumes", "told")
FINDINGS = tuple(kind for kind in Kind if kind is not Kind.MISCOUNTED)
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"


@dataclass(slots=True)
class Row:
    """All runs of one fault together."""

    fault: Fault
    runs: int = 0
    passed: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    figures: dict[str, float] = field(default_factory=dict)

    def add(self, outcome: Outcome) -> None:
        """One more run; of figures the worst is kept."""
        self.runs += 1
        self.passed += not outcome.broken
        self.counts += outcome.counts
        for name, value in outcome.figures.items():
            self.figures[name] = max(value, self.figures.get(name, value))

    @property
    def wrong(self) -> int:
        """Findings other than what the store was made to lose."""
        return sum(self.counts[kind] for kind in Kind if kind is not Kind.ACKNOWLEDGED_LOST)

    def describe_figures(self) -> str:
        """The row's own numbers."""
        return "; ".join(f"{name} {_number(value)}" for name, value in self.figures.items())


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:.2f}"


def markdown(rows: Iterable[Row], said: str) -> str:
    """The table as it stands in docs/reliability.md; `said` says what was run."""
    known = {row.fault.name: row for row in rows}
    lines = [BEGIN, said]
    for title, faults in GROUPS.items():
        lines += ["", f"**{title}**", ""]
        lines.append(f"| fault | promise | runs | {' | '.join([*COLUMNS, *FINDINGS])} | figures (worst) |")
        lines.append("|---|---|" + "--:|" * (1 + len(COLUMNS) + len(FINDINGS)) + "---|")
        for fault in faults:
            row = known.get(fault.name)
            if row is None:
                continue
            runs = f"{row.runs}" if row.passed == row.runs else f"{row.passed} of {row.runs}"
            numbers = [runs, *(f"{row.counts[name]:,}" for name in COLUMNS)]
            numbers += [f"{row.counts[kind]:,}" for kind in FINDINGS]
            lines.append(f"| {fault.title} | {fault.promise} | {' | '.join(numbers)} | {row.describe_figures()} |")
    return "\n".join([*lines, END])
