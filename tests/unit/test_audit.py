"""The audit of dependencies: real pip-audit, and databases of the tests' own on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.audit import LOCK, Verdict, judge

FLAW = {
    "id": "PYSEC-0000-1",
    "summary": "of the tests",
    "affected": [
        {
            "package": {"name": "starlette", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.0"}]}],
        }
    ],
}


@contextmanager
def database(*, flawed: str = "", status: int = 200) -> Iterator[str]:
    """A vulnerability database (OSV's query by package) in which one package has a flaw; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            body = json.dumps({"vulns": [FLAW]} if asked["package"]["name"] == flawed else {}).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the library's
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


def run(address: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.audit", "-s", "osv", "--osv-url", address, *arguments]
    return subprocess.run(command, cwd=LOCK.parent, capture_output=True, text=True, check=False, timeout=60)


def test_a_known_vulnerability_fails_and_is_named() -> None:
    with database(flawed="starlette") as address:
        done = run(address, "--if-reachable")
    assert done.returncode == Verdict.VULNERABLE, done.stderr
    [line] = done.stdout.splitlines()
    assert line.startswith("audit: starlette ")
    assert line.endswith(": PYSEC-0000-1, mended in 99.0")


def test_where_none_is_known_all_packages_were_asked_for() -> None:
    with database() as address:
        done = run(address)
    assert (done.returncode, done.stderr) == (Verdict.SOUND, "")
    packages = int(done.stdout.split()[-2])
    assert packages > 20


@pytest.mark.parametrize(("arguments", "code"), [((), Verdict.UNKNOWN), (("--if-reachable",), Verdict.SOUND)])
def test_a_database_that_is_away_is_said_in_one_line(arguments: tuple[str, ...], code: Verdict) -> None:
    with database() as address:
        pass  # gone
    done = run(address, *arguments)
    assert done.returncode == code
    [line] = done.stdout.splitlines()
    assert line.startswith("audit: the vulnerability database could not be asked: ")


def test_a_package_that_the_database_does_not_know_is_not_taken_for_sound() -> None:
    unknown = [{"name": name, "skip_reason": "not found"} for name in "abcde"]
    assert judge(unknown) == (Verdict.UNKNOWN, ["the vulnerability database does not know a, b, c and 2 more"])
    assert judge([])[0] is Verdict.UNKNOWN
    sound = {"name": "f", "version": "1", "vulns": []}
    assert judge([sound, *unknown[:1]])[0] is Verdict.UNKNOWN
    flawed = {"name": "g", "version": "1", "vulns": [{"id": "X", "fix_versions": []}]}
    assert judge([flawed, *unknown]) == (Verdict.VULNERABLE, ["g 1: X, mended in no version"])
