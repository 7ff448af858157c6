"""The tables of a run, in Markdown, one for each scenario."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.contenders import CONTENDERS
from bench.figures import BUSY, GOALS, Goal, Table
from bench.scenarios import ABUSES, SCENARIOS


def number(value: float | None) -> str:
    """Three figures, thousands with commas."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 0.1 else f"{value:.2g}"


def rows(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    top = [f"| {' | '.join(head)} |", f"|{'|'.join(['---'] + ['---:'] * (len(head) - 1))}|"]
    return "\n".join(top + [f"| {' | '.join(line)} |" for line in lines])


def tables_of(table: Table) -> list[str]:
    """Headings and tables of a run, in Markdown."""
    parts = ["### Goals", goals(table)]
    for name, make in MAKERS.items():
        if table.contenders(name):
            parts += [f"### {SCENARIOS[name].title}", make(table)]
    if any(table.contenders(f"abuser-{kind}") for kind in ABUSES):
        parts += ["### One abuser among 1,000 clients", _abuser(table)]
    if table.errors:
        lines = [f"- {CONTENDERS[who].title} ({name}): {error}" for (name, who), error in table.errors.items()]
        parts += ["### Not measured", "\n".join(lines)]
    return parts


def goals(table: Table) -> str:
    """The goals and what was reached, in Markdown."""

    def bound(goal: Goal) -> str:
        return f"{'at most' if goal.most else 'at least'} {number(goal.bound)}{'x' if goal.reference else ''}"

    lines = []
    for goal in GOALS:
        results, result, held = goal.results(table), goal.result(table), goal.held(table)
        unit = "{}x" if goal.reference else goal.unit
        lines.append(
            [
                goal.title,
                CONTENDERS[goal.reference].title if goal.reference else "itself",
                f"**{unit.format(number(result))}**" if result is not None else "not measured",
                f"{number(results[0])} to {number(results[-1])}" if results else "-",
                bound(goal),
                {True: "yes", False: "**no**", None: "-"}[held],
            ]
        )
    return rows(["what", "against", "result", "rounds", "goal", "reached"], lines)


def _fanout(table: Table) -> str:
    lines = []
    for name in table.contenders("fanout"):
        row = [CONTENDERS[name].title]
        for phase in ("rate:50", "window:8", "window:64"):

            def get(figure: str, phase: str = phase, name: str = name) -> float | None:
                return table.median("fanout", name, f"{phase} {figure}")

            redis = get("redis_us")
            row.append(f"{number(get('us'))}" + (f" + {number(redis)}" if redis else ""))
            rate = get("rate")
            if phase == "rate:50":
                row.append(number(get("messages")) + (" (all it takes)" if get("behind") else ""))
            else:
                row.append(("≥ " if (get("load") or 0) > BUSY else "") + number(rate))
        row.append(f"{number(table.median('fanout', name, 'window:8 p50'))} / "
                   f"{number(table.median('fanout', name, 'window:8 p99'))}")  # fmt: skip
        row.append(_lost(table, "fanout", name, ("rate:50", "window:8", "window:64")))
        lines.append(row)
    head = [
        "", "us, 50 msg/s", "msg/s", "us, 8 in flight", "deliveries/s", "us, 64 in flight", "deliveries/s",
        "ms, 8 in flight", "missing",
    ]  # fmt: skip
    return (
        "us: CPU of the server + CPU of Redis for one delivery. ms: latency, p50 / p99.\n\n"
        + rows(head, lines)
        + "\n\n≥: the load side used a whole core, so the rate is a lower bound. "
        "All it takes: 50 messages a second are more than the server can do."
    )


def _lost(table: Table, scenario: str, name: str, phases: Sequence[str]) -> str:
    def total(figure: str) -> float:
        return sum(sum(table.values(scenario, name, f"{phase} {figure}").values()) for phase in phases)

    if not table.values(scenario, name, f"{phases[0]} us"):
        return "-"
    disordered = total("out_of_order")
    return number(total("missing")) + (f", {number(disordered)} out of order" if disordered else "")


def _idle(table: Table) -> str:
    lines = [
        [
            CONTENDERS[name].title,
            number(table.median("idle", name, "memory_kb")),
            number(table.median("idle", name, "connect_us")),
        ]
        for name in table.contenders("idle")
    ]
    return rows(["per connection", "memory, KB (PSS)", "CPU to open, us"], lines)


def _ingest(table: Table) -> str:
    lines = []
    for name in table.contenders("ingest"):

        def get(figure: str, name: str = name) -> float | None:
            return table.median("ingest", name, f"window:500 {figure}")

        lines.append(
            [
                CONTENDERS[name].title,
                "2" if name == "fastapi-publish" else "52",
                ("≥ " if (get("load") or 0) > BUSY else "") + number(get("messages")),
                number(get("message_us")),
                number(get("message_redis_us")),
                f"{number(get('p50'))} / {number(get('p99'))}",
                _lost(table, "ingest", name, ("window:500",)),
            ]
        )
    head = ["", "sockets that receive", "messages/s", "server CPU, us a message", "Redis CPU, us a message",
            "ms p50 / p99", "missing"]  # fmt: skip
    return rows(head, lines)


def _workers(table: Table) -> str:
    def get(figure: str) -> float | None:
        return table.median("workers", "tocsin", figure)

    lines = [
        [
            phase,
            number(get(f"{name} us")),
            number(get(f"{name} redis_us")),
            number(get(f"{name} rate")),
            f"{number(get(f'{name} p50'))} / {number(get(f'{name} p99'))}",
            _lost(table, "workers", "tocsin", (name,)),
        ]
        for phase, name in (("50 messages/s", "rate:50"), ("8 in flight", "window:8"))
    ]
    head = ["Tocsin, 4 workers", "server CPU, us a delivery", "Redis CPU", "deliveries/s", "ms p50 / p99", "missing"]
    return rows(head, lines) + (
        f"\n\nWorkers with connections: {number(get('workers'))}; most by mean: {number(get('spread'))}."
    )


def _crowd(table: Table) -> str:
    def get(figure: str) -> float | None:
        return table.median("crowd", "tocsin", figure)

    return rows(
        ["Tocsin", "deliveries/s", "server CPU, us a delivery", "loop lag p99, ms", "ms p50 / p99", "missing"],
        [
            [
                "1 worker",
                number(get("rate:20 rate")),
                number(get("rate:20 us")),
                f"≤ {number(get('lag_ms'))}" if get("lag_ms") is not None else "not exposed",
                f"{number(get('rate:20 p50'))} / {number(get('rate:20 p99'))}",
                _lost(table, "crowd", "tocsin", ("rate:20",)),
            ]
        ],
    )


def _answers(table: Table) -> str:
    def get(figure: str) -> str:
        return number(table.median("answers", "tocsin-native", f"rate:1000 {figure}"))

    return rows(
        ["Tocsin, `tocsin.v1`", "messages/s", "answer, ms p50 / p99", "delivery, ms p50 / p99", "missing"],
        [
            [
                "1 worker",
                get("messages"),
                f"{get('answer_p50')} / {get('answer_p99')}",
                f"{get('p50')} / {get('p99')}",
                _lost(table, "answers", "tocsin-native", ("rate:1000",)),
            ]
        ],
    )


def _return(table: Table) -> str:
    def get(figure: str) -> str:
        return number(table.median("return", "tocsin-native", figure))

    return rows(
        [
            "Tocsin, `tocsin.v1`",
            "all whole after, s",
            "server CPU, us a delivery, the handshake in it",
            "loop lag p99, ms",
            "missing",
        ],
        [
            [
                "4 workers",
                get("return:50 seconds"),
                get("return:50 us"),
                f"≤ {get('lag_ms')}",
                _lost(table, "return", "tocsin-native", ("return:50",)),
            ]
        ],
    )


def _stalled(table: Table) -> str:
    def get(figure: str) -> str:
        return number(table.median("stalled", "tocsin-native", figure))

    return rows(
        ["Tocsin, `tocsin.v1`", "p99 of the others, ms", "p99 before, ms", "growth of the worker, MB", "missing"],
        [
            [
                "1 worker",
                get("stall p99"),
                get("calm p99"),
                get("stall growth_mb"),
                _lost(table, "stalled", "tocsin-native", ("stall:100:20", "rate:20")),
            ]
        ],
    )


def _abuser(table: Table) -> str:
    lines = []
    for kind, words in ABUSES.items():

        def get(figure: str, kind: str = kind) -> str:
            return number(table.median(f"abuser-{kind}", "tocsin-native", figure))

        lines.append(
            [
                words,
                get("abuse offered"),
                get("abuse taken"),
                get("abuse opened"),
                get("abuse core"),
                get("calm p99"),
                get("abuse p99"),
                get("abuse server_core"),
                get("abuse growth_mb"),
                get("abuse missing"),
            ]
        )
    head = [
        "it sends", "offered a second", "taken a second", "connections a second", "its CPU, cores", "p99 before, ms",
        "p99 of the others, ms", "server CPU, cores", "growth of the worker, MB", "missing",
    ]  # fmt: skip
    return rows(head, lines)


def _authenticated(table: Table) -> str:
    def get(figure: str) -> str:
        return number(table.median("authenticated", "tocsin-native", figure))

    def span(figure: str) -> str:
        values = table.values("authenticated", "tocsin-native", figure).values()
        return f"{get(figure)} ({number(min(values))} to {number(max(values))})" if values else "-"

    lines = [["without a token", span("anonymous connect_us"), "-", get("anonymous us"), "-"]]
    lines += [
        [words, span(f"{who} connect_us"), span(f"{who} more_us"), get(f"{who} us"), f"{span(f'{who} ratio')}"]
        for words, who in (("HS256, header", "header"), ("HS256, subprotocol", "subprotocol"))
    ]
    head = ["Tocsin, `tocsin.v1`", "CPU to open, us", "more, us", "CPU a delivery, us", "by anonymous"]
    return rows(head, lines) + "\n\nMedian of the rounds, in brackets the lowest and the highest."


def _presence(table: Table) -> str:
    def get(figure: str) -> float:
        return table.median("presence", "tocsin-native-members", figure) or 0.0

    runs = get("commands eval") + get("commands evalsha")
    return rows(
        ["Tocsin, `tocsin.v1`", "members", "commands a second and worker", "scripts", "others", "Redis CPU, of a core",
         "a worker's CPU, of a core"],
        [
            [
                "4 workers",
                number(get("members")),
                number(get("commands")),
                number(runs),
                number(get("commands") - runs),
                f"{get('redis_share'):.2%}",
                f"{get('server_share'):.2%}",
            ]
        ],
    )  # fmt: skip


MAKERS: dict[str, Callable[[Table], str]] = {
    "fanout": _fanout, "idle": _idle, "ingest": _ingest, "workers": _workers, "crowd": _crowd,
    "answers": _answers, "return": _return, "stalled": _stalled, "authenticated": _authenticated, "presence": _presence,
}  # fmt: skip
