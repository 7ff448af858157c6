"""From outcomes to figures: one number per contender and round, medians, and ratios taken inside a round.

Pure: no process, no file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import sub, truediv
from statistics import median

from bench.measure import Outcome
from bench.scenarios import ABUSES

BUSY = 0.92
"""Share of a core above which the load program counts as the limit, so a rate is a lower bound."""

Figures = Mapping[str, float]
"""Name of a figure -> value, of one contender in one round."""


def of(outcome: Outcome) -> dict[str, float]:
    """All figures of one outcome. CPU in us, memory in KB, latency in ms, rates in 1/s. Of a phase that is run several
    times the last run counts, but everything that is missing.
    """
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
        if not line.get("delivered"):
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
            f"{name} missing": line["missing"] + line.get("unanswered", 0) + found.get(f"{name} missing", 0),
            f"{name} out_of_order": line["out_of_order"] + found.get(f"{name} out_of_order", 0),
            f"{name} seconds": line["seconds"],
            f"{name} load": line["load_cpu"],
            f"{name} behind": line["behind"],
        }
        if "answer_ms" in line:
            found |= {f"{name} answer_{part}": value for part, value in line["answer_ms"].items()}
    found["stolen"] = outcome.stolen
    found |= _of_stalls(outcome) | _of_abuse(outcome) | _of_tokens(outcome) | _of_commands(outcome)
    if outcome.spread:
        found["spread"] = max(outcome.spread) * len(outcome.spread) / sum(outcome.spread)
        found["workers"] = len(outcome.spread)
    if outcome.lag:
        found["lag_ms"] = quantile(outcome.lag, 0.99) * 1000
    return found


def _of_stalls(outcome: Outcome) -> dict[str, float]:
    """What phases with readers that stall cost the others, each beside the calm phase before it."""
    calm: float | None = None
    pairs: list[tuple[float, float]] = []
    growth = [0.0]
    for line in outcome.lines:
        if line["phase"].startswith("rate:"):
            calm = line["latency_ms"]["p99"]
        elif line["phase"].startswith("stall:") and calm is not None:
            pairs.append((calm, line["latency_ms"]["p99"]))
            growth.append(line["memory_kb"]["server"])
    if not pairs:
        return {}
    return {
        "calm p99": median(before for before, _ in pairs),
        "stall p99": median(after for _, after in pairs),
        "stall share": median(after / max(1.5 * before, before + 10) for before, after in pairs),
        "stall growth_mb": max(growth) / 1024,
    }


def _of_abuse(outcome: Outcome) -> dict[str, float]:
    """What an abuser cost the others, each time beside the calm phase before it; of itself a second's sums."""
    calm: float | None = None
    rows: list[dict[str, float]] = []
    for line in outcome.lines:
        if line["phase"].startswith("rate:"):
            calm = line["latency_ms"]["p99"]
        elif line["phase"].startswith("abuse:") and calm is not None:
            did, seconds, p99 = line["abuse"], line["seconds"], line["latency_ms"]["p99"]
            rows.append(
                {
                    "calm p99": calm,
                    "abuse p99": p99,
                    "abuse share": p99 / max(1.5 * calm, calm + 10),
                    "abuse growth_mb": line["memory_kb"]["server"] / 1024,
                    "abuse offered": did["offered"] / seconds,
                    "abuse taken": did["taken"] / seconds,
                    "abuse opened": did["opened"] / seconds,
                    "abuse core": did["cpu"] / seconds,
                    "abuse server_core": line["cpu_seconds"]["server"] / seconds,
                    "abuse missing": line["missing"],
                }
            )
    if not rows:
        return {}
    found = {name: median(row[name] for row in rows) for name in rows[0]}
    return found | {
        "abuse growth_mb": max(row["abuse growth_mb"] for row in rows),
        "abuse missing": sum(row["abuse missing"] for row in rows),
    }


def _of_tokens(outcome: Outcome) -> dict[str, float]:
    """What clients with tokens cost, each time beside those without one in the same turn."""
    connect: dict[str, list[float]] = {}
    deliver: dict[str, list[float]] = {}
    who = ""
    for line in outcome.lines:
        if line["phase"].startswith("as:"):
            who = line["phase"].split(":")[1]
            connect.setdefault(who, []).append(line["cpu_seconds"]["server"] * 1e6 / max(line["connections"], 1))
        elif who and line.get("delivered"):
            deliver.setdefault(who, []).append(line["cpu_seconds"]["server"] * 1e6 / line["delivered"])
    found: dict[str, float] = {}
    for name, values in connect.items():
        found[f"{name} connect_us"] = median(values)
        found[f"{name} us"] = median(deliver[name])
        if name != "anonymous":
            found[f"{name} more_us"] = median(map(sub, values, connect["anonymous"]))
            found[f"{name} ratio"] = median(map(truediv, deliver[name], deliver["anonymous"]))
    return found


def _of_commands(outcome: Outcome) -> dict[str, float]:
    """Commands that each worker sent to Redis a second in the last phase, and CPU."""
    line = outcome.lines[-1]
    calls = dict(line.get("commands") or {})
    seconds = calls.pop("seconds", 0.0)
    if not seconds or not outcome.spread:
        return {}
    workers = len(outcome.spread)
    found = {f"commands {name}": count / seconds / workers for name, count in calls.items()}
    return found | {
        "commands": sum(calls.values()) / seconds / workers,
        "redis_share": line["cpu_seconds"]["redis"] / line["seconds"],
        "server_share": line["cpu_seconds"]["server"] / line["seconds"] / workers,
        "members": outcome.lines[0]["connections"],
    }


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

    def stolen(self) -> tuple[float, float]:
        """Share of the machine's time that its host gave to others: the median of all runs, and the most."""
        shares = [figures.get("stolen", 0.0) for rounds in self._figures.values() for figures in rounds.values()]
        return (median(shares), max(shares)) if shares else (0.0, 0.0)

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
    Goal("durable ingest over `tocsin.v1`, each answered", "ingest", "window:500 messages", "fastapi-redis", False, 10,
         contender="tocsin-native"),
    Goal("CPU a delivery, `tocsin.v1`, 50 messages/s", "fanout", "rate:50 us", "tocsin", True, 1.2,
         contender="tocsin-native"),
    Goal("CPU a delivery, `tocsin.v1`, 8 in flight", "fanout", "window:8 us", "tocsin", True, 1.6,
         contender="tocsin-native"),
    Goal("memory per idle connection", "idle", "memory_kb", "fastapi-receive", True, 1 / 8),
    Goal("memory per idle connection", "idle", "memory_kb", None, True, 4, "{} KB"),
    Goal("memory per idle connection, `tocsin.v1`", "idle", "memory_kb", None, True, 6, "{} KB",
         contender="tocsin-native"),
    Goal("memory per idle connection, `tocsin.v1`, a channel each", "idle", "memory_kb", None, True, 10, "{} KB",
         contender="tocsin-native-own"),
    Goal("CPU per new connection", "idle", "connect_us", "fastapi-receive", True, 0.5),
    Goal(
        "CPU a delivery on the portable path, 8 in flight", "fanout", "window:8 us", "fastapi-redis", True, 1,
        contender="tocsin-portable",
    ),
    Goal("four workers: messages missing, 50 messages/s", "workers", "rate:50 missing", None, True, 0, worst=True),
    Goal("four workers: messages missing, 8 in flight", "workers", "window:8 missing", None, True, 0, worst=True),
    Goal("four workers: connections, most by mean", "workers", "spread", None, True, 2, "{}x", worst=True),
    Goal("10,000 subscribers: loop lag p99", "crowd", "lag_ms", None, True, 50, "{} ms", worst=True),
    Goal("1,000 messages/s: answer p99", "answers", "rate:1000 answer_p99", None, True, 20, "{} ms",
         contender="tocsin-native"),
    Goal("10,000 return: all are whole", "return", "return:50 seconds", None, True, 30, "{} s",
         contender="tocsin-native", worst=True),
    Goal("10,000 return: messages missing", "return", "return:50 missing", None, True, 0,
         contender="tocsin-native", worst=True),
    Goal("10,000 return: loop lag p99", "return", "lag_ms", None, True, 250, "{} ms",
         contender="tocsin-native", worst=True),
    Goal("100 stalled: the others' p99, of 1.5x or 10 ms more", "stalled", "stall share", None, True, 1, "{} of it",
         contender="tocsin-native"),
    Goal("100 stalled: growth of the worker", "stalled", "stall growth_mb", None, True, 25, "{} MB",
         contender="tocsin-native", worst=True),
    Goal("100 stalled: messages missing after they read again", "stalled", "stall:100:20 missing", None, True, 0,
         contender="tocsin-native", worst=True),
    *(
        Goal(f"one abuser, {words}: the others' p99, of 1.5x or 10 ms more", f"abuser-{kind}", "abuse share", None,
             True, 1, "{} of it", contender="tocsin-native")
        for kind, words in ABUSES.items()
    ),
    Goal("CPU per new connection, token in the header, more than anonymous", "authenticated", "header more_us", None,
         True, 60, "{} us", contender="tocsin-native"),
    Goal("CPU per new connection, token as subprotocol, more than anonymous", "authenticated", "subprotocol more_us",
         None, True, 60, "{} us", contender="tocsin-native"),
    Goal("CPU a delivery to clients with tokens, by anonymous", "authenticated", "header ratio", None, True, 1.1, "{}x",
         contender="tocsin-native"),
    Goal("10,000 members: Redis commands a second and worker", "presence", "commands", None, True, 4,
         contender="tocsin-native-members", worst=True),
)  # fmt: skip
