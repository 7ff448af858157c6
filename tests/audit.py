"""`python -m tests.audit`: whether a vulnerability is known in what the service installs (`requirements.lock`).

Ends with 0 when none is known, with 1 when one is, with 2 when this could not be found out: pip-audit itself makes no
difference between the last two, and takes packages that the database does not know for sound ones.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from enum import IntEnum
from pathlib import Path
from typing import Any

LOCK = Path(__file__).parents[1] / "requirements.lock"
PATIENCE = 300
"""Seconds for all packages."""


class Verdict(IntEnum):
    """The exit code."""

    SOUND = 0
    VULNERABLE = 1
    UNKNOWN = 2


def audit(more: list[str]) -> tuple[Verdict, list[str]]:
    """Ask pip-audit, with more arguments for it; the verdict, and what to say."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(LOCK), "--require-hashes", "--disable-pip"]
        command += ["--format", "json", "--output", str(report), "--progress-spinner", "off", *more]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            return Verdict.UNKNOWN, [f"the vulnerability database did not answer in {PATIENCE} s"]
        if not report.exists():  # it writes one whenever it has come to an end
            *_, last = ["nothing was said", *done.stderr.strip().splitlines()]
            return Verdict.UNKNOWN, [f"the vulnerability database could not be asked: {last}"]
        return judge(json.loads(report.read_text("utf-8"))["dependencies"])


def judge(dependencies: list[dict[str, Any]]) -> tuple[Verdict, list[str]]:
    """The verdict on what pip-audit reports, and what to say."""
    asked = [one for one in dependencies if "skip_reason" not in one]
    skipped = [one["name"] for one in dependencies if "skip_reason" in one]
    found = [
        f"{one['name']} {one['version']}: {known['id']}, mended in {', '.join(known['fix_versions']) or 'no version'}"
        for one in asked
        for known in one["vulns"]
    ]
    if found:
        return Verdict.VULNERABLE, found
    if skipped or not asked:
        named = ", ".join(skipped[:3]) + (f" and {len(skipped) - 3} more" if len(skipped) > 3 else "")
        return Verdict.UNKNOWN, [f"the vulnerability database does not know {named or 'any package'}"]
    return Verdict.SOUND, [f"no vulnerability is known in {len(asked)} packages"]


def main() -> int:
    """Say what is known; returns the exit code. Unknown arguments go to pip-audit."""
    parser = argparse.ArgumentParser(prog="python -m tests.audit", description=__doc__)
    parser.add_argument(
        "--if-reachable", action="store_true", help="what cannot be found out is said, and is no failure"
    )
    arguments, more = parser.parse_known_args()
    verdict, lines = audit(more)
    for line in lines:
        print(f"audit: {line}")
    return Verdict.SOUND if verdict is Verdict.UNKNOWN and arguments.if_reachable else verdict


if __name__ == "__main__":
    sys.exit(main())
