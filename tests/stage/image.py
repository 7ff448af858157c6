"""The container image without an engine: the Dockerfile's own lines, carried out in a folder by an unprivileged user.

RUN, CMD and HEALTHCHECK run literally. FROM is a fresh venv, WORKDIR and COPY act below the folder, ENV values that
name a path inside the image are moved there. Each stage is built at the same place, for a venv cannot be moved.
"""

from __future__ import annotations

import fnmatch
import json
import os
import shlex
import shutil
import string
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_PASSED_ON = ("PIP_", "SSL_", "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")
"""What the machine's own pip needs to reach its packages."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One line of a Dockerfile, continuation lines joined: `name` in upper case, flags apart from the rest."""

    name: str
    flags: dict[str, str]
    rest: str

    @property
    def words(self) -> list[str]:
        """The arguments, in exec form or split as a shell would."""
        if self.rest.startswith("["):
            words: list[str] = json.loads(self.rest)
            return words
        return shlex.split(self.rest)


def parse_dockerfile(text: str) -> list[list[Instruction]]:
    """The stages; each begins with its FROM."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    stages: list[list[Instruction]] = []
    for line in "\n".join(lines).replace("\\\n", "").splitlines():
        name, _, rest = line.strip().partition(" ")
        flags: dict[str, str] = {}
        while (rest := rest.lstrip()).startswith("--"):
            flag, _, rest = rest.partition(" ")
            key, _, value = flag.removeprefix("--").partition("=")
            flags[key] = value
        if name.upper() == "FROM":
            stages.append([])
        stages[-1].append(Instruction(name.upper(), flags, rest))
    return stages


def is_ignored(path: str, patterns: list[str]) -> bool:
    """Whether a .dockerignore of these patterns leaves out `path`, relative to the context: the last match decides."""
    parts = path.split("/")
    prefixes = ["/".join(parts[: length + 1]) for length in range(len(parts))]
    verdict = False
    for pattern in patterns:
        plain = pattern.removeprefix("!").removeprefix("**/")
        candidates = parts if "**/" in pattern else prefixes
        if any(fnmatch.fnmatchcase(candidate, plain) for candidate in candidates):
            verdict = not pattern.startswith("!")
    return verdict


@dataclass(slots=True)
class Image:
    """What a build leaves: an environment and the lines that use it."""

    root: Path
    context: Path
    unprivileged: str
    environment: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = ""
    ports: list[int] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)

    @property
    def log(self) -> Path:
        """What the container's process has said."""
        return self.root / "log"

    @property
    def files(self) -> Path:
        """Where the image's `/` is."""
        return self.root / "files"

    def place(self, path: str) -> Path:
        """A path of the image, on this machine."""
        return self.files / os.path.normpath(Path(self.folder, path)).lstrip("/")

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        """The container's process, with these variables in addition."""
        with self.log.open("wb") as log:
            return subprocess.Popen(
                self._find(self.command),
                cwd=self.place("."),
                env=self.environment | {"HOME": "/"} | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                **_become(self.user),
            )

    def check_health(self, **environment: str) -> int:
        """Exit code of the health check."""
        done: subprocess.CompletedProcess[bytes] = subprocess.run(
            self._find(self.health),
            cwd=self.place("."),
            env=self.environment | {"HOME": "/"} | environment,
            capture_output=True,
            timeout=10,
            check=False,
            **_become(self.user),
        )
        return done.returncode

    def _find(self, command: list[str]) -> list[str]:
        found = shutil.which(command[0], path=self.environment["PATH"])
        assert found, f"{command[0]} is not in the image's PATH"
        return [found, *command[1:]]

    def apply(self, instruction: Instruction, owner: str) -> None:
        """Carry out one line; what it makes belongs to `owner` (`uid:gid`)."""
        match instruction.name:
            case "FROM" | "LABEL":
                pass
            case "WORKDIR":
                self.folder = instruction.rest
                self.place(".").mkdir(parents=True, exist_ok=True)
                _give(self.place("."), owner)
            case "COPY":
                self._copy(instruction, owner)
            case "ENV":
                for word in instruction.words:
                    name, _, value = word.partition("=")
                    self.environment[name] = self._move(string.Template(value).substitute(self.environment))
            case "RUN":
                self._run(instruction.rest)
            case "USER":
                self.user = instruction.rest
            case "EXPOSE":
                self.ports += map(int, instruction.words)
            case "HEALTHCHECK":
                self.health = json.loads(instruction.rest.removeprefix("CMD"))
            case "CMD":
                self.command = json.loads(instruction.rest)
            case other:
                raise AssertionError(f"{other} is not carried out here: add it to tests/stage/image.py")

    def _copy(self, instruction: Instruction, owner: str) -> None:
        *sources, target = instruction.words
        origin = self.root / "stages" / instruction.flags["from"] if "from" in instruction.flags else self.context
        place = self.place(target)
        for source in sources:
            path = origin / source.lstrip("/")
            if path.is_dir():
                shutil.copytree(path, place, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
                _give(place, instruction.flags.get("chown", owner))
            else:
                into = place / path.name if place.is_dir() or target.endswith("/") else place
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, into)
                _give(into, instruction.flags.get("chown", owner))

    def _move(self, value: str) -> str:
        moved = [str(self.place(part)) if part.startswith("/") else part for part in value.split(":")]
        return ":".join(m if Path(m).exists() else p for m, p in zip(moved, value.split(":"), strict=True))

    def _run(self, line: str) -> None:
        done: subprocess.CompletedProcess[str] = subprocess.run(
            ["/bin/sh", "-c", line],
            cwd=self.place("."),
            env=self.environment | _pass_on() | {"HOME": str(self.root / "home")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            **_become(self.unprivileged),
        )
        assert done.returncode == 0, f"RUN {line}\n{done.stdout}"


def build_image(dockerfile: Path, context: Path) -> Iterator[Image]:
    """Build it below a temporary folder, which goes with the generator."""
    stages = parse_dockerfile(dockerfile.read_text("utf-8"))
    user = next(line.rest for line in stages[-1] if line.name == "USER")
    root = Path(tempfile.mkdtemp(prefix="tocsin-image-"))
    try:
        root.chmod(0o755)
        for name in ("stages", "home"):
            (root / name).mkdir()
        _give(root / "home", user)
        subprocess.run([_find_python(user), "-m", "venv", root / "base"], check=True)
        for stage in stages[:-1]:
            image = _build_stage(stage, root, context, user)
            image.files.rename(root / "stages" / stage[0].rest.rpartition(" ")[2])
        yield _build_stage(stages[-1], root, context, user)
    finally:
        shutil.rmtree(root)


def _build_stage(stage: list[Instruction], root: Path, context: Path, user: str) -> Image:
    path = os.pathsep.join([str(root / "base" / "bin"), os.defpath])
    image = Image(root, context, user, {"PATH": path})
    image.files.mkdir()
    # A stage without USER builds as the engine's root, to whom everything belongs: here the unprivileged user plays it.
    owner = "0:0" if any(line.name == "USER" for line in stage) else user
    for line in stage:
        image.apply(line, owner)
    return image


def _become(user: str) -> dict[str, Any]:
    """Arguments of `subprocess` that make root the user `uid:gid`; whoever is not root stays who he is."""
    if os.geteuid() != 0:
        return {}
    uid, gid = map(int, user.split(":"))
    return {"user": uid, "group": gid, "extra_groups": []}


def _give(path: Path, owner: str) -> None:
    if os.geteuid() == 0:
        uid, gid = map(int, owner.split(":"))
        for each in (path, *path.rglob("*")):
            os.lchown(each, uid, gid)


def _pass_on() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.upper().startswith(_PASSED_ON)}


def _find_python(user: str) -> str:
    """A Python 3.11 or newer with venv that `user` may run (one in root's home is out of reach)."""
    found = [shutil.which("python3", path=folder) for folder in ("/usr/local/bin", "/usr/bin")]
    for candidate in filter(None, [getattr(sys, "_base_executable", sys.executable), *found]):
        test = [candidate, "-c", "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))"]
        try:
            if subprocess.run(test, capture_output=True, check=False, **_become(user)).returncode == 0:
                return str(candidate)
        except PermissionError:
            continue
    if os.environ.get("CI"):
        pytest.fail("no Python 3.11 with venv that an unprivileged user can run")
    pytest.skip("no Python 3.11 with venv that an unprivileged user can run")
