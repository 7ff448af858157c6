"""The run: scenarios and contenders in turn, round after round, with progress bars; then the report."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from bench import figures
from bench.contenders import CONTENDERS, Contender
from bench.install import HERE, WORK, Missing, load_program
from bench.measure import Outcome, measure
from bench.report import machine, merge, write
from bench.scenarios import ABUSES, SCENARIOS, Scenario
from bench.tables import goals, number

Step = tuple[int, Scenario, Contender]

HEADLINES = {
    "fanout": ("window:8 us", "us a delivery with 8 in flight"),
    "idle": ("memory_kb", "KB a connection"),
    "ingest": ("window:500 messages", "messages/s"),
    "workers": ("spread", "connections of the fullest worker by mean"),
    "crowd": ("lag_ms", "ms loop lag p99"),
    "answers": ("rate:1000 answer_p99", "ms answer p99"),
    "return": ("return:50 seconds", "s until all are whole"),
    "stalled": ("stall share", "of the p99 that the others are allowed"),
    **{f"abuser-{kind}": ("abuse share", "of the p99 that the others are allowed") for kind in ABUSES},
    "authenticated": ("header more_us", "us more for a connection with a token"),
    "presence": ("commands", "commands a second and worker"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 if every contender was measured, 1 if one was not, 2 for a wrong argument."""
    options = _parse(arguments)
    console = Console()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that servers are stopped on the way out
    try:
        load_program()
    except Missing as error:
        console.print(f"[red]{error}[/red]")
        return 2
    steps = plan(options)
    with console.status("Compiling and installing what is not there yet"):
        for contender in {contender.name: contender for _, _, contender in steps}.values():
            with suppress(Missing):  # said again, and shown, when its turn comes
                contender.command(0, 1)
    about = machine()
    started = time.monotonic()
    outcomes = perform(steps, console)
    about |= {
        "command": " ".join(["python -m bench", *(sys.argv[1:] if arguments is None else arguments)]),
        "rounds": len({number for number, _, _ in steps}),
        "minutes": round((time.monotonic() - started) / 60, 1),
    }
    whole = options.merge or not (options.quick or options.only or options.rounds)
    if options.merge:
        outcomes, about = merge(HERE / "results", outcomes, about)
    folder = options.output or (HERE / "results" if whole else WORK / "results")
    write(folder, outcomes, about, page=whole and options.output is None)
    console.print(Markdown(goals(figures.Table(outcomes))))
    console.print(f"Written: {folder}")
    return int(any(outcome.error for outcome in outcomes))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure Tocsin beside others, in turn.")
    parser.add_argument("--quick", action="store_true", help="one short round of the main contenders, about a minute")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", default=[], choices=[*SCENARIOS, *CONTENDERS],
        help=f"scenarios ({', '.join(SCENARIOS)}) and contenders ({', '.join(CONTENDERS)})",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", type=int, help="3 where nothing is said, and 1 of a scenario that has several in it"
    )
    parser.add_argument("--output", type=Path, help="folder for the results; bench/results only for a whole run")
    parser.add_argument(
        "--merge", action="store_true",
        help="put the scenarios that are run into the results of the last whole run, in place of what it has of them",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.merge and (options.quick or options.rounds or any(name in CONTENDERS for name in options.only)):
        parser.error("--merge takes whole scenarios: all their contenders and rounds, at full length")
    return options


QUICK = {
    "fanout": ("tocsin", "floor-send", "socketio", "fastapi-redis"),
    "idle": ("tocsin", "fastapi-receive"),
    "ingest": ("tocsin", "fastapi-redis"),
}


def plan(options: argparse.Namespace) -> list[Step]:
    """All steps in order. Each round begins with another contender, so that none has the best place every time."""
    asked = options.rounds or (1 if options.quick else None)
    scenarios = [name for name in SCENARIOS if name in options.only] or list(QUICK if options.quick else SCENARIOS)
    chosen = {name for name in CONTENDERS if name in options.only}
    steps: list[Step] = []
    for round_number in range(1, max(asked or SCENARIOS[name].rounds for name in scenarios) + 1):
        for name in scenarios:
            rounds = asked or SCENARIOS[name].rounds
            if round_number > rounds:
                continue
            scenario = SCENARIOS[name].shortened() if options.quick else SCENARIOS[name]
            usual = QUICK.get(name, scenario.contenders) if options.quick else scenario.contenders
            taking = [contender for contender in scenario.contenders if contender in (chosen or usual)]
            turn = (round_number - 1) * len(taking) // rounds
            steps += [(round_number, scenario, CONTENDERS[who]) for who in [*taking[turn:], *taking[:turn]]]
    return steps


def perform(steps: Sequence[Step], console: Console) -> list[Outcome]:
    """Carry out the steps."""
    outcomes: list[Outcome] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        whole = progress.add_task("all", total=len(steps))
        for round_number, scenario, contender in steps:
            title = contender.title.replace("*", "").replace("`", "")
            current = progress.add_task(f"{scenario.name}: {title}", total=round(scenario.seconds))
            begun = time.monotonic()

            def tick(task: TaskID = current, begun: float = begun) -> None:
                progress.update(task, completed=min(int(time.monotonic() - begun), progress.tasks[-1].total or 0))

            outcome = measure(scenario, contender, round_number, tick)
            outcomes.append(outcome)
            progress.remove_task(current)
            progress.advance(whole)
            progress.console.print(f"round {round_number}  {scenario.name:8}{title:44}{headline(outcome)}")
    return outcomes


def headline(outcome: Outcome) -> str:
    """One outcome in a few words."""
    if outcome.error is not None:
        return f"[red]not measured: {outcome.error}[/red]"
    figure, words = HEADLINES[outcome.scenario]
    return f"{number(figures.of(outcome).get(figure))} {words}"
