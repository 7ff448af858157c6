"""`python -m tests.wire.conformance`: all cases over both paths, then the table for docs/conformance.md."""

from __future__ import annotations

import sys
from collections import Counter

from tests.stage.redis import RedisServer
from tests.wire.conformance.stage import Stage
from tests.wire.conformance.table import GROUPS, PORTABLE_DEVIATIONS, Group

Counts = Counter[str]


def run(stage: Stage, group: Group) -> Counts:
    """Play a group; what is not strict is said at once."""
    counts = Counts()
    for case in group.cases:
        try:
            outcome = "strict" if stage.play(case) else "non-strict"
        except (AssertionError, OSError) as error:
            outcome = "failed"
            print(f"{case}: {error}", file=sys.stderr)
        else:
            if outcome != "strict":
                print(f"{case}: {outcome}", file=sys.stderr)
        counts[outcome] += 1
    return counts


def describe(counts: Counts) -> str:
    """One cell of the table."""
    lenient = f" ({counts['non-strict']} non-strict)" if counts["non-strict"] else ""
    failed = f", {counts['failed']} failed" if counts["failed"] else ""
    return f"{counts['strict'] + counts['non-strict']} passed{lenient}{failed}"


def main() -> int:
    """Exit status: 1 when a case failed that is not known to."""
    columns: list[dict[int, Counts]] = []
    with RedisServer() as redis:
        for fast in (True, False):
            with Stage(redis.url, "conformance", fast=fast) as stage:
                columns.append({group.number: run(stage, group) for group in GROUPS})
                stage.check_aftermath()
    totals = [sum(column.values(), Counts()) for column in columns]
    print("| group | cases | fast path | portable path |\n|---|---|---|---|")
    for group in GROUPS:
        cells = " | ".join(describe(column[group.number]) for column in columns)
        print(f"| {group.number} {group.title} | {len(group.cases)} | {cells} |")
    print(f"| all | {sum(len(group.cases) for group in GROUPS)} | {' | '.join(map(describe, totals))} |")
    return int([total["failed"] for total in totals] != [0, len(PORTABLE_DEVIATIONS)])


if __name__ == "__main__":
    sys.exit(main())
