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
from bench.figures import Table
from bench.install import ROOT, WORK
from bench.measure import Outcome
from bench.plot import draw
from bench.scenarios import SCENARIOS
from bench.tables import number, rows, tables_of

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
    lines = [
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
        rows(head, lines)
        + f"\n\n`make bench` on {about['cores']} cores with server, Redis and load on one machine ({when}): read the "
        "ratios. Tocsin logs every message, the others log none. It joins what is due in one turn of its loop, so "
        "compare it with the C program that joins too.\n"
    )


def tables(table: Table, about: dict[str, Any]) -> str:
    """All tables of a run, in Markdown."""
    return "\n\n".join([_about(about, table), *tables_of(table)]) + "\n"


def _later(about: dict[str, Any]) -> dict[str, str]:
    """When -> the scenarios of which later outcomes took the place."""
    found: dict[str, list[str]] = {}
    for name, when in about.get("again", {}).items():
        found.setdefault(when, []).append(f"`{name}`")
    return {when: ", ".join(names) for when, names in found.items()}


def _about(about: dict[str, Any], table: Table) -> str:
    usual, most = table.stolen()
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
    return (
        f"`{about['command']}`, {about['date']}, commit `{about['commit']}`, {about['rounds']} rounds, "
        f"{about['minutes']} minutes.  \n"
        f"{about['cpu']}, {about['cores']} cores, {about['memory_gb']} GB, Linux {about['kernel']}, "
        f"loopback, load processes: {about['load_processes']}. The host gave {usual:.0%} of its time to others "
        f"(median of all runs; {most:.0%} in the worst).  \n{versions}."
        + "".join(f"  \nMeasured later, {when}: {names}." for when, names in _later(about).items())
        + (
            f"\n\n**The machine was busy with other things (load average {about['busy']} at the start): repeat it.**"
            if about["busy"] > QUIET
            else ""
        )
    )
