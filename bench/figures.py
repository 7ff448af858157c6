"""From outcomes to figures: one number per contender and round, medians, and ratios taken inside a round.

Pure: no process, no file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.scenarios import Outcome

BUSY = 0.92
"""Share of a core above which the load program counts as the limit, so a rate is a lower bound."""

Figures = Mapping[str, float]
"""Name of a figure -> value, of one contender in one round."""


def of(outcome: Outcome) -> dict[str, float]:
    """All figures of one outcome. CPU in us, memory in KB, latency in ms, rates in 1/s."""
    found: dict[str, float] = {}
    if outcome.error is not None:
        return found
    for line in outcome.lines:
        cpu = line["cpu_seconds"]
        if line["phase"] == "connect":
            count = max(line["connections"], 1)
            found["connect_us"] = cpu["server"] * 1e6 / count
            found["memory_kb"] = line["memory_kb"]["server"] / count
            continue
        name = line["phase"].rpartition(":")[0]
        if not line["delivered"]:
            continue
        delivered = line["delivered"]
        found |= {
            f"{name} us": cpu["server"] * 1e6 / delivered,
            f"{name} redis_us": cpu.get("redis", 0) * 1e6 / delivered,
            f"{name} rate": delivered / line["seconds"],
            f"{name} messages": delivered / line["seconds"] / line["subscribers"],
            f"{name} message_us": cpu["server"] * 1e6 * line["subscribers"] / delivered,
            f"{name} message_redis_us": cpu.get("redis", 0) * 1e6 * line["subscribers"] / delivered,
            f"{name} p50": line["latency_ms"]["p50"],
            f"{name} p99": line["latency_ms"]["p99"],
            f"{name} missing": line["missing"],
            f"{name} out_of_order": line["out_of_order"],
            f"{name} load": line["load_cpu"],
            f"{name} behind": line["behind"],
        }
    if outcome.spread:
        found["spread"] = max(outcome.spread) * len(outcome.spread) / sum(outcome.spread)
        found["workers"] = len(outcome.spread)
    if outcome.lag:
        found["lag_ms"] = quantile(outcome.lag, 0.99) * 1000
    return found


def quantile(buckets: Sequence[tuple[float, float]], share: float) -> float:
    """The upper bound of the bucket in which the quantile lies; buckets are cumulative."""
    total = max(count for _, count in buckets)
    return next((bound for bound, count in sorted(buckets) if count >= total * share), float("inf"))


class Table:
    """All figures of a run, by scenario, contender and round."""

    def __init__(self, outcomes: Iterable[Outcome]) -> None:
        self._figures: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
        self.errors: dict[tuple[str, str], str] = {}
        for outcome in outcomes:
            key = outcome.scenario, outcome.contender
            self._figures.setdefault(key, {})[outcome.round] = of(outcome)
            if outcome.error is not None:
                self.errors[key] = outcome.error

    def contenders(self, scenario: str) -> list[str]:
        """Who took part, also those that did not start, in the order of the first round."""
        return [contender for name, contender in self._figures if name == scenario]

    def values(self, scenario: str, contender: str, figure: str) -> dict[int, float]:
        """Round -> value; empty where there is none."""
        rounds = self._figures.get((scenario, contender), {})
        return {number: figures[figure] for number, figures in rounds.items() if figure in figures}

    def median(self, scenario: str, contender: str, figure: str) -> float | None:
        """The median over the rounds."""
        values = self.values(scenario, contender, figure)
        return median(values.values()) if values else None

    def ratios(self, scenario: str, ours: str, theirs: str, figure: str) -> list[float]:
        """One contender's figure divided by another's, for each round that has both, ascending."""
        divisors = self.values(scenario, theirs, figure)
        values = self.values(scenario, ours, figure)
        return sorted(value / divisors[number] for number, value in values.items() if divisors.get(number))


@dataclass(frozen=True, slots=True)
class Goal:
    """One row of the table of goals.

    Attributes:
        reference: whom our figure is divided by; None: the figure itself is held against the bound.
        most: whether `bound` is the most that is allowed (else the least).
        unit: how the figure is written (`{}` is the number).
        worst: judge the worst round, not the median.
    """

    title: str
    scenario: str
    figure: str
    reference: str | None
    most: bool
    bound: float
    unit: str = "{}"
    contender: str = "tocsin"
    worst: bool = False

    def results(self, table: Table) -> list[float]:
        """What is held against the bound, one per round, ascending."""
        if self.reference is None:
            return sorted(table.values(self.scenario, self.contender, self.figure).values())
        return table.ratios(self.scenario, self.contender, self.reference, self.figure)

    def result(self, table: Table) -> float | None:
        """The one that counts, or None: not measured."""
        results = self.results(table)
        if not results:
            return None
        return (results[-1] if self.most else results[0]) if self.worst else median(results)

    def held(self, table: Table) -> bool | None:
        """Whether the goal is reached, or None: not measured."""
        result = self.result(table)
        if result is None:
            return None
        return result <= self.bound if self.most else result >= self.bound


GOALS = (
    Goal("CPU a delivery, 50 messages/s", "fanout", "rate:50 us", "floor-send", True, 2.5),
    Goal("CPU a delivery, 8 in flight", "fanout", "window:8 us", "floor-send", True, 0.35),
    Goal("deliveries/s, 8 in flight", "fanout", "window:8 rate", "socketio", False, 8),
    Goal("durable ingest, messages/s", "ingest", "window:500 messages", "fastapi-redis", False, 15),
    Goal("memory per idle connection", "idle", "memory_kb", "fastapi-receive", True, 1 / 8),
    Goal("memory per idle connection", "idle", "memory_kb", None, True, 4, "{} KB"),
    Goal("CPU per new connection", "idle", "connect_us", "fastapi-receive", True, 0.5),
    Goal(
        "CPU a delivery on the portable path, 8 in flight", "fanout", "window:8 us", "fastapi-redis", True, 1,
        contender="tocsin-portable",
    ),
    Goal("four workers: messages missing, 50 messages/s", "workers", "rate:50 missing", None, True, 0, worst=True),
    Goal("four workers: messages missing, 8 in flight", "workers", "window:8 missing", None, True, 0, worst=True),
    Goal("four workers: connections, most by mean", "workers", "spread", None, True, 2, "{}x", worst=True),
    Goal("10,000 subscribers: loop lag p99", "crowd", "lag_ms", None, True, 50, "{} ms", worst=True),
)  # fmt: skip
