"""`python -m tests.faults`: the table's counts over several seeds, with progress, then the table."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.faults.checker import Kind
from tests.faults.scene import Fault, Grounds, Outcome
from tests.faults.table import BEGIN, COLUMNS, END, FAULTS, Row, markdown
from tests.stage.redis import redis_version

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"


def read_arguments() -> argparse.Namespace:
    """What to run."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="runs of each fault, which share the counts (5)")
    parser.add_argument("--first", type=int, default=1, help="the first seed (1)")
    parser.add_argument("--small", action="store_true", help="as small as `make test` runs them")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="only these faults")
    parser.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    arguments = parser.parse_args()
    unknown = set(arguments.only) - {fault.name for fault in FAULTS}
    if unknown:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}; there are {', '.join(f.name for f in FAULTS)}")
    return arguments


async def run(arguments: argparse.Namespace, console: Console) -> list[Row]:
    """Run all, one after the other: faults of one ground together, each seed in turn."""
    chosen = [fault for fault in FAULTS if not arguments.only or fault.name in arguments.only]
    rows = {fault.name: Row(fault) for fault in chosen}
    columns = (TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(chosen) * arguments.seeds)
        grounds = Grounds()
        try:
            for fault in chosen:
                started = time.monotonic()
                for seed in range(arguments.first, arguments.first + arguments.seeds):
                    progress.update(task, description=f"{fault.name} {seed}")
                    outcome = await _play(grounds, fault, seed, arguments)
                    rows[fault.name].add(outcome)
                    for text in outcome.broken:
                        console.print(f"[red]{fault.name}, seed {seed}:[/] {text}", highlight=False)
                    progress.advance(task)
                row, took = rows[fault.name], time.monotonic() - started
                console.print(f"{fault.name:<18} {row.passed} of {row.runs}, {took:.0f} s", highlight=False)
        except asyncio.CancelledError:  # Ctrl-C: what has been run is reported
            console.print("interrupted", highlight=False)
        finally:
            await grounds.close()
    return [row for row in rows.values() if row.runs]


async def _play(grounds: Grounds, fault: Fault, seed: int, arguments: argparse.Namespace) -> Outcome:
    try:
        return await grounds.play(fault, seed, small=arguments.small, seeds=arguments.seeds)
    except Exception as error:  # noqa: BLE001 - one run that dies is a finding, not the end of the others
        return Outcome(broken=[f"the run died: {error!r}"])


def show(rows: list[Row], console: Console) -> None:
    """The table for the terminal."""
    table = Table(title="Faults")
    for name in ("fault", "runs", *COLUMNS, "acked lost", "wrong"):
        table.add_column(name, justify="left" if name == "fault" else "right")
    table.add_column("figures, the worst")
    for row in rows:
        runs = f"[green]{row.runs}[/]" if row.passed == row.runs else f"[red]{row.passed} of {row.runs}[/]"
        numbers = [f"{row.counts[name]:,}" for name in (*COLUMNS, Kind.ACKNOWLEDGED_LOST)]
        table.add_row(row.fault.name, runs, *numbers, f"{row.wrong:,}", row.describe_figures())
    console.print(table)


def main() -> int:
    """Run, print, and say by the exit status whether all is well."""
    arguments = read_arguments()
    console = Console()
    started = time.monotonic()
    rows = asyncio.run(run(arguments, console))
    show(rows, console)
    version = ".".join(map(str, redis_version()))
    said = (
        f"Run with `python -m tests.faults --seeds {arguments.seeds}{' --small' if arguments.small else ''}` on Redis "
        f"{version}, {(time.monotonic() - started) / 60:.0f} minutes."
    )
    text = markdown(rows, said)
    if arguments.write:
        page = PAGE.read_text("utf-8")
        head, rest = page.split(BEGIN, 1)
        PAGE.write_text(head + text + rest.split(END, 1)[1], "utf-8")
    else:
        print(text)
    return 0 if all(row.passed == row.runs for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
