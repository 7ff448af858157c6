"""`python -m tests.crowds [jitter|restart]`: the scenarios as they are meant, with their figures."""

from __future__ import annotations

import argparse
import json
import sys

import uvloop
from rich.console import Console

from tests.crowds.scenes import SCENES


def main() -> int:
    """Run, print, and say by the exit status whether the goals are reached."""
    parser = argparse.ArgumentParser(prog="python -m tests.crowds", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SCENES)}; all without one")
    parser.add_argument("--small", action="store_true", help="as small as `make test` runs them")
    parser.add_argument("--json", action="store_true", help="all figures of each as one JSON object a line")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(SCENES):
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}; there are {', '.join(SCENES)}")
    console, missed = Console(highlight=False, soft_wrap=True), 0
    for name in arguments.names or SCENES:
        scene = SCENES[name]
        console.print(f"[bold]{name}[/]: {scene.title}")
        scale = scene.small if arguments.small else scene.whole
        outcome = uvloop.run(scene.play(scale))
        if arguments.json:
            print(json.dumps({"scene": name, **outcome.summary()}))
        for goal, figure, reached in scene.judge(scale, outcome):
            missed += not reached
            console.print(f"  {'[green]✓[/]' if reached else '[red]✗[/]'} {goal}: {figure}")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
