"""What must be compiled or installed before anything is measured. All of it lands in `bench/.work`.

Nothing is repeated while its source file has not changed.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WORK = HERE / ".work"
SERVERS = HERE / "servers"


class Missing(Exception):
    """Something that a contender needs is not on this machine; the text says what."""


def load_program() -> Path:
    """The load side, compiled.

    Raises:
        Missing: there is no C compiler, or it refused the source.
    """
    return _compile("load")


def abuse_program() -> Path:
    """The abuser, compiled.

    Raises:
        Missing: there is no C compiler, or it refused the source.
    """
    return _compile("abuse")


def floor_program() -> Path:
    """The floors, compiled.

    Raises:
        Missing: there is no C compiler, or it refused the source.
    """
    return _compile("floor")


def rival_python() -> Path:
    """A Python with the rivals' packages in the versions of `servers/requirements.txt`.

    Raises:
        Missing: the packages cannot be installed.
    """
    folder = WORK / "venv"
    python = folder / "bin" / "python"
    requirements = SERVERS / "requirements.txt"
    stamp = folder / "stamp"
    if not _fresh(stamp, requirements):
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        _run([str(python), "-m", "pip", "install", "--disable-pip-version-check", "--requirement", str(requirements)])
        stamp.write_text(_digest(requirements))
    return python


def node_server() -> Path:
    """`server.js` beside its installed packages.

    Raises:
        Missing: there is no Node, or the packages cannot be installed.
    """
    folder = WORK / "node"
    lock = SERVERS / "node" / "package-lock.json"
    stamp = folder / "stamp"
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            raise Missing(f"{program} is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json", "server.js", ".npmrc"):
        shutil.copy(SERVERS / "node" / name, folder / name)
    if not _fresh(stamp, lock):
        # bufferutil brings its library with it: no install script has to run.
        _run(["npm", "ci", "--omit=dev", "--ignore-scripts"], folder)
        stamp.write_text(_digest(lock))
    return folder / "server.js"


def _compile(name: str) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        raise Missing("a C compiler (cc) is not installed")
    source, program, stamp = HERE / f"{name}.c", WORK / name, WORK / f"{name}.stamp"
    WORK.mkdir(exist_ok=True)
    if not (program.exists() and _fresh(stamp, source)):
        _run([compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(program), str(source)])
        stamp.write_text(_digest(source))
    return program


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _fresh(stamp: Path, source: Path) -> bool:
    return stamp.exists() and stamp.read_text() == _digest(source)


def _run(command: list[str], folder: Path | None = None) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no output"]
        raise Missing(f"{Path(command[0]).name} ended with {done.returncode}: {last[0]}")
