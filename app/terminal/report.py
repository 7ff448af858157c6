"""How a load test looks in a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from app.terminal.latencies import Latencies
from app.terminal.load import Outcome, Plan

WIDTH = 48


def report(plan: Plan, outcome: Outcome) -> RenderableType:
    """All of it: what came of the messages, how long they took, and what is to be thought of it."""
    return Group(_counts(plan, outcome), Text(), _picture(outcome.way), Text(), _quantiles(outcome), *_words(outcome))


def _counts(plan: Plan, outcome: Outcome) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_column(style="dim")
    rate = outcome.delivered / outcome.seconds if outcome.seconds else 0.0
    table.add_row("connections", f"{outcome.connected:,}", f"of {plan.connections:,}")
    table.add_row("published", f"{outcome.published:,}", f"in {outcome.seconds:.1f} s" + _unpublished(outcome))
    table.add_row("delivered", f"{outcome.delivered:,}", f"{rate:,.0f} a second")
    for name, count in (
        ("missing", outcome.missing),
        ("duplicates", outcome.duplicates),
        ("out of order", outcome.reordered),
        ("gaps", outcome.gaps),
    ):
        table.add_row(name, Text(f"{count:,}", style="bold red" if count else "green"))
    share = f"the fullest second had {outcome.fullest_second:.1%} of them" if len(outcome.returns) > 1 else ""
    table.add_row("reconnects", f"{len(outcome.returns):,}", share)
    return table


def _unpublished(outcome: Outcome) -> str:
    words = "".join(f", {count:,} refused ({code})" for code, count in outcome.refused.items())
    return words + (f", {outcome.unknown:,} unknown" if outcome.unknown else "")


def _picture(way: Latencies) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", style="dim")
    table.add_column()
    table.add_column(justify="right", style="dim")
    rows = list(way.rows())
    most = max((count for _, count in rows), default=1)
    for end, count in rows:
        bar = ProgressBar(total=most, completed=count, width=WIDTH, complete_style="cyan", finished_style="cyan")
        table.add_row(f"to {1000 * end:,.3g} ms" if end < 1 else f"to {end:,.3g} s", bar, f"{count:,}")
    return table


def _quantiles(outcome: Outcome) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("milliseconds", style="dim")
    rows = {"delivery": outcome.way, "acknowledgement": outcome.answers, "this generator's lag": outcome.lag}
    for name in outcome.way.summary():
        table.add_column(name, justify="right")
    for name, latencies in rows.items():
        table.add_row(name, *(f"{value:,.1f}" for value in latencies.summary().values()))
    return table


def _words(outcome: Outcome) -> Iterator[Text]:
    for reason, count in outcome.ended.items():
        yield Text(f"{count:,} connections ended: {reason}", style="bold red")
    if outcome.limited:
        yield Text(
            f"This generator was the bottleneck: {outcome.busy:.0%} of a core, its loop up to "
            f"{outcome.lag.summary()['p99']:,.0f} ms late. The latencies are in part its own: use fewer connections, a "
            "lower rate, or a machine that has nothing else to do.",
            style="yellow",
        )
    if outcome.interrupted:
        yield Text("Interrupted: what was on its way counts as missing.", style="yellow")
