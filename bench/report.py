"""A run as files: the raw outcomes (JSON), the tables (Markdown), and the tables inside docs/performance.md."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.contenders import CONTENDERS, load_processes
from bench.figures import BUSY, GOALS, Goal, Table
from bench.install import ROOT, WORK
from bench.plot import draw
from bench.scenarios import SCENARIOS, Outcome

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
QUIET = 1.0
"""Load average above which a run says that it was disturbed."""
PAGE, README = ROOT / "docs" / "performance.md", ROOT / "README.md"


def machine() -> dict[str, Any]:
    """What the figures hold for: machine, versions, commit, time."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    rival_python = WORK / "venv" / "bin" / "python"
    listing = _output(str(rival_python), "-m", "pip", "list", "--format=json") if rival_python.exists() else ""
    wanted = {"fastapi", "uvicorn", "uvloop", "websockets", "redis", "hiredis", "python-socketio", "starlette"}
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _output("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"),
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(int(memory[1]) / 2**20) if memory else None,
        "busy": round(os.getloadavg()[0], 1),
        "kernel": platform.release(),
        "load_processes": load_processes(),
        "versions": {
            "Python": platform.python_version(),
            "Node": _output("node", "--version").removeprefix("v"),
            "Redis": (re.search(r"v=(\S+)", _output("redis-server", "--version")) or ["", ""])[1],
            **{package["name"]: package["version"] for package in json.loads(listing or "[]")
               if package["name"] in wanted},
            **_node_versions(),
        },
    }  # fmt: skip


def _node_versions() -> dict[str, str]:
    folder = WORK / "node" / "node_modules"
    return {
        name: json.loads((folder / name / "package.json").read_text())["version"]
        for name in ("socket.io", "@socket.io/redis-adapter")
        if (folder / name / "package.json").exists()
    }


def _output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def merge(folder: Path, outcomes: Sequence[Outcome], about: dict[str, Any]) -> tuple[list[Outcome], dict[str, Any]]:
    """The recorded run with newer outcomes in place of those of the same scenarios, and what is said of it."""
    record = json.loads((folder / "results.json").read_text())
    newer = {outcome.scenario for outcome in outcomes}
    kept = [Outcome(**each) for each in record["outcomes"] if each["scenario"] not in newer]
    again = record["about"].get("again", {})
    again |= dict.fromkeys(sorted(newer), f"{about['date']}, commit `{about['commit']}`")
    order = list(SCENARIOS)
    merged = sorted([*kept, *outcomes], key=lambda outcome: (outcome.round, order.index(outcome.scenario)))
    return merged, {**record["about"], "again": again}


def write(folder: Path, outcomes: Sequence[Outcome], about: dict[str, Any], *, page: bool) -> None:
    """Write `results.json`, `table.md` and `ratios.svg` to a folder; with `page` also into docs/performance.md."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"about": about, "outcomes": [asdict(outcome) for outcome in outcomes]}
    (folder / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    table = Table(outcomes)
    text = tables(table, about)
    (folder / "table.md").write_text(text)
    (folder / "ratios.svg").write_text(draw(table, about))
    if page:
        _put(PAGE, text)
        _put(README, summary(table, about))


def _put(page: Path, text: str) -> None:
    """Replace what stands between the markers of a page."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")


SUMMARISED = ("fanout", "idle", "ingest")
SUMMARY = ("tocsin", "fastapi-redis", "socketio", "floor-send", "floor-join")


def summary(table: Table, about: dict[str, Any]) -> str:
    """The few figures that a newcomer asks for, in Markdown."""
    rows = [
        [
            CONTENDERS[name].title,
            number(table.median("fanout", name, "rate:50 us")),
            number(table.median("fanout", name, "window:8 us")),
            number(table.median("fanout", name, "window:8 rate")),
            number(table.median("idle", name, "memory_kb")),
            number(table.median("idle", name, "connect_us")),
            number(table.median("ingest", name, "window:500 messages")),
        ]
        for name in SUMMARY
    ]
    head = ["1,000 subscribers, one worker", "CPU a delivery, us: 50 msg/s", "8 in flight", "deliveries/s",
            "KB an idle socket", "CPU us a new socket", "ingest msg/s"]  # fmt: skip
    when = f"{about['date']}, commit `{about['commit'][:7]}`"
    when += "".join(f"; {name} {then}" for name, then in about.get("again", {}).items() if name in SUMMARISED)
    return (
        _rows(head, rows)
        + f"\n\n`make bench` on {about['cores']} cores with server, Redis and load on one machine ({when}): read the "
        "ratios. Tocsin logs every message, the others log none. It joins what is due in one turn of its loop, so "
        "compare it with the C program that joins too.\n"
    )


def tables(table: Table, about: dict[str, Any]) -> str:
    """All tables of a run, in Markdown."""
    makers = {
        "fanout": _fanout, "idle": _idle, "ingest": _ingest, "workers": _workers, "crowd": _crowd,
        "answers": _answers, "return": _return, "stalled": _stalled,
    }  # fmt: skip
    parts = [_about(about, table), "### Goals", goals(table)]
    for name, make in makers.items():
        if table.contenders(name):
            parts += [f"### {SCENARIOS[name].title}", make(table)]
    if table.errors:
        lines = [f"- {CONTENDERS[who].title} ({name}): {error}" for (name, who), error in table.errors.items()]
        parts += ["### Not measured", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _about(about: dict[str, Any], table: Table) -> str:
    usual, most = table.stolen()
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
    return (
        f"`{about['command']}`, {about['date']}, commit `{about['commit']}`, {about['rounds']} rounds, "
        f"{about['minutes']} minutes.  \n"
        f"{about['cpu']}, {about['cores']} cores, {about['memory_gb']} GB, Linux {about['kernel']}, "
        f"loopback, load processes: {about['load_processes']}. The host gave {usual:.0%} of its time to others "
        f"(median of all runs; {most:.0%} in the worst).  \n{versions}."
        + "".join(f"  \n`{name}` was measured again: {when}." for name, when in about.get("again", {}).items())
        + (
            f"\n\n**The machine was busy with other things (load average {about['busy']} at the start): repeat it.**"
            if about["busy"] > QUIET
            else ""
        )
    )


def number(value: float | None) -> str:
    """Three figures, thousands with commas."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 0.1 else f"{value:.2g}"


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join(['---'] + ['---:'] * (len(head) - 1))}|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def goals(table: Table) -> str:
    """The goals and what was reached, in Markdown."""

    def bound(goal: Goal) -> str:
        return f"{'at most' if goal.most else 'at least'} {number(goal.bound)}{'x' if goal.reference else ''}"

    rows = []
    for goal in GOALS:
        results, result, held = goal.results(table), goal.result(table), goal.held(table)
        unit = "{}x" if goal.reference else goal.unit
        rows.append(
            [
                goal.title,
                CONTENDERS[goal.reference].title if goal.reference else "itself",
                f"**{unit.format(number(result))}**" if result is not None else "not measured",
                f"{number(results[0])} to {number(results[-1])}" if results else "-",
                bound(goal),
                {True: "yes", False: "**no**", None: "-"}[held],
            ]
        )
    return _rows(["what", "against", "result", "rounds", "goal", "reached"], rows)


def _fanout(table: Table) -> str:
    rows = []
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
        rows.append(row)
    head = [
        "", "us, 50 msg/s", "msg/s", "us, 8 in flight", "deliveries/s", "us, 64 in flight", "deliveries/s",
        "ms, 8 in flight", "missing",
    ]  # fmt: skip
    return (
        "us: CPU of the server + CPU of Redis for one delivery. ms: latency, p50 / p99.\n\n"
        + _rows(head, rows)
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
    rows = [
        [
            CONTENDERS[name].title,
            number(table.median("idle", name, "memory_kb")),
            number(table.median("idle", name, "connect_us")),
        ]
        for name in table.contenders("idle")
    ]
    return _rows(["per connection", "memory, KB (PSS)", "CPU to open, us"], rows)


def _ingest(table: Table) -> str:
    rows = []
    for name in table.contenders("ingest"):

        def get(figure: str, name: str = name) -> float | None:
            return table.median("ingest", name, f"window:500 {figure}")

        rows.append(
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
    return _rows(head, rows)


def _workers(table: Table) -> str:
    def get(figure: str) -> float | None:
        return table.median("workers", "tocsin", figure)

    rows = [
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
    return _rows(head, rows) + (
        f"\n\nWorkers with connections: {number(get('workers'))}; most by mean: {number(get('spread'))}."
    )


def _crowd(table: Table) -> str:
    def get(figure: str) -> float | None:
        return table.median("crowd", "tocsin", figure)

    return _rows(
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

    return _rows(
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

    return _rows(
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

    return _rows(
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
