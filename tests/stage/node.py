"""Node and the tools of the JavaScript client, as `make test` has installed them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "clients" / "javascript"


def _missing(what: str, how: str) -> str:
    """Without it a laptop skips and CI fails."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}: {how}")
    pytest.skip(what)


def node_binary() -> str:
    """Path of Node 18 or newer."""
    found = shutil.which("node")
    if found is None:
        return _missing("node is not installed", ".ci/run must install it")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.removeprefix("v").partition(".")[0]) < 18:
        return _missing(f"node {version.strip()} is too old", "18 is the oldest with a test runner")
    return found


def tool(name: str) -> str:
    """Path of a program in node_modules (esbuild, tsc)."""
    node_binary()
    found = CLIENT / "node_modules" / ".bin" / name
    if not found.exists():
        return _missing(f"{name} is not installed", "`make test` installs it where Node is")
    return str(found)


def run(*command: str | Path, seconds: float = 90, **environment: str) -> str:
    """Run it in the client's folder to its end; returns what it said, and fails with that."""
    more: Mapping[str, str] = {"NODE_OPTIONS": "", **environment}
    done = subprocess.run(
        command,
        cwd=CLIENT,
        env={**os.environ, **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}", pytrace=False)
    return done.stdout
