"""`tocsin bench`: it counts right, ends by itself, and knows when it cannot be believed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

from tests.integration.test_serve import ROOT, run_tocsin
from tests.stage.redis import free_port
from tests.stage.service import Service
from tests.stage.terminal import Command, environment


def test_it_counts_what_is_delivered_while_connections_are_cut(service: Service) -> None:
    options = ["--connections", "30", "--publishers", "2", "--rate", "20", "--channels", "3", "--seconds", "2.5"]
    done = run_tocsin("bench", *options, "--cut", "1", "--json", url=service.url)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert (found["connected"], found["published"], found["delivered"]) == (30, 50, 500)
    assert [found[name] for name in ("missing", "duplicates", "reordered", "gaps", "unknown")] == [0] * 5
    assert found["reconnects"] > 20
    assert 0 < found["delivery_ms"]["p50"] <= found["delivery_ms"]["p99"] <= found["delivery_ms"]["max"]
    [warning] = done.stderr.splitlines()
    assert warning.startswith("tocsin: publishing 20 messages a second into bench:")
    assert warning.endswith(f":* of {service.url} for 2.5 s: real channels")


def test_ctrl_c_shows_what_was_seen(service: Service) -> None:
    with Command("bench", "--seconds", "60", "--rate", "50", url=service.url, terminal=True) as command:
        command.wait_for("100 connected, 2")
        assert command.end(signal.SIGINT) == 130
        for words in ("delivered", "missing", "reconnects", "acknowledgement", "p99", "Interrupted"):
            assert words in command.stdout
        assert "Traceback" not in command.stdout


def test_without_descriptors_enough_it_does_not_begin() -> None:
    done = subprocess.run(
        ["prlimit", "--nofile=256:256", sys.executable, "-m", "app.cli", "bench", "--connections", "300"],
        env=environment(url="http://127.0.0.1:1"), cwd=ROOT, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "tocsin: 365 open files are needed and 256 are allowed here: ulimit -n 365, or less\n"


def test_where_it_may_not_publish_or_nobody_is_there_it_says_so(service: Service) -> None:
    done = run_tocsin("bench", "--token", "no.good.token", url=service.url)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("(unauthorized)")
    with Command("bench", "--connections", "1", url=f"http://127.0.0.1:{free_port()}") as command:
        command.wait_for("real channels")
        assert command.end(signal.SIGINT) == 130
