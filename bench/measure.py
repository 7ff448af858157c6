"""The run of one contender through one scenario."""

from __future__ import annotations

import json
import os
import re
import selectors
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import IO, Any

from bench.commands import Commands
from bench.contenders import Contender, load_processes
from bench.install import Missing, abuse_program, load_program
from bench.scenarios import SECRET, Scenario
from bench.stage import START_SECONDS, NotStarted, connections, family, free_port, redis_server, server
from bench.tokens import write_tokens

DISTURBED = 0.02
TRIES = 4


class LoadFailed(Exception):
    """The load could not be put on the server, or not all of it; the text says what happened."""


@dataclass(slots=True)
class Outcome:
    """What one contender did in one scenario of one round; `error` says why there is nothing.

    Attributes:
        lines: the load program's, first `connect`, then one per phase.
        spread: connections per worker process.
        lag: bucket bounds (seconds) and counts of the event loop's lag during the first phase, Tocsin only.
    """

    round: int
    scenario: str
    contender: str
    lines: list[dict[str, Any]] = field(default_factory=list)
    spread: list[int] = field(default_factory=list)
    lag: list[tuple[float, float]] = field(default_factory=list)
    error: str | None = None

    @property
    def stolen(self) -> float:
        """Share of the machine's time that its host gave to others, in the worst phase."""
        return max((line.get("stolen", 0.0) for line in self.lines), default=0.0)


def measure(scenario: Scenario, contender: Contender, number: int, tick: Callable[[], None]) -> Outcome:
    """Start the contender, load it, stop it. What fails is the outcome's `error`; `tick` is called now and then.

    Of a scenario by the clock the least disturbed of several runs counts: until one has lost at most `DISTURBED` of the
    machine's time to other machines of its host, `TRIES` at most.
    """
    runs: list[Outcome] = []
    while not runs or (scenario.by_clock and runs[-1].stolen > DISTURBED and len(runs) < TRIES):
        runs.append(_try(scenario, contender, number, tick))
    return min(runs, key=lambda run: (run.error is not None, run.stolen))


def _try(scenario: Scenario, contender: Contender, number: int, tick: Callable[[], None]) -> Outcome:
    outcome = Outcome(number, scenario.name, contender.name)
    try:
        _measure(scenario, contender, outcome, tick)
    except (Missing, NotStarted, LoadFailed) as error:
        outcome.error = str(error)
    return outcome


def _measure(scenario: Scenario, contender: Contender, outcome: Outcome, tick: Callable[[], None]) -> None:
    with ExitStack() as stack:
        watched: dict[str, list[int]] = {}
        url = ""
        if contender.redis:
            process, url = stack.enter_context(redis_server())
            watched["redis"] = [process.pid]
        counters = stack.enter_context(closing(Commands(url))) if scenario.counts else None
        port = free_port()
        process = stack.enter_context(
            server(
                contender.name,
                contender.command(port, scenario.workers),
                {
                    **contender.environment(port, scenario.workers, url),
                    **{f"TOCSIN_{name}": value for name, value in scenario.settings},
                },
                port,
                contender.path,
            )
        )
        tick()
        if contender.ours:
            wait_for_workers(port, scenario.workers)
        time.sleep(0.5)  # what a server still does after its first connection is not the load's doing
        watched["server"] = family(process.pid)
        before: dict[float, float] = {}
        for line in load(scenario, contender, port, watched):
            if line is None:
                tick()
                continue
            outcome.lines.append(line)
            if counters is not None:
                line["commands"] = counters.read()
            if not contender.ours:
                continue
            if line["phase"] == "connect":
                outcome.spread = connections(family(process.pid), port)
                before = read_lag(port)
            elif not outcome.lag:
                outcome.lag = [(bound, count - before.get(bound, 0)) for bound, count in read_lag(port).items()]
            if counters is not None:
                counters.read()  # what we asked the service meanwhile is not counted


def load(
    scenario: Scenario, contender: Contender, port: int, watched: dict[str, list[int]]
) -> Iterator[dict[str, Any] | None]:
    """Run the load program; its lines as they come, and None a few times a second in between.

    Raises:
        LoadFailed: it ended with an error.
    """
    command = [
        str(load_program()), "-p", str(port), "-u", contender.path, "-n", str(scenario.subscribers),
        "-b", str(scenario.base), "-P", str(scenario.publishers), "-s", str(scenario.size),
        "-j", str(1 if scenario.alone else load_processes()), *scenario.options, *contender.speech,
    ]  # fmt: skip
    for name, pids in watched.items():
        command += ["-i", f"{name}={','.join(map(str, pids))}"]
    with ExitStack() as stack:
        if any(phase.startswith("abuse:") for phase in scenario.phases):
            command += ["-A", str(abuse_program())]
        if any(phase.startswith("as:") for phase in scenario.phases):
            tokens = stack.enter_context(tempfile.NamedTemporaryFile("w", prefix="tocsin-bench-"))
            write_tokens(SECRET, tokens)
            command += ["-T", tokens.name]
        yield from _run([*command, *scenario.phases])


def _run(command: Sequence[str]) -> Iterator[dict[str, Any] | None]:
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as process,
    ):
        try:
            for line in _lines(process):
                if line and line["failed"]:
                    raise LoadFailed(f"{line['failed']} connections lost ({line['phase']}). {_said(errors)}")
                yield line
        finally:
            process.kill()
        if process.returncode:
            raise LoadFailed(f"the load program ended with {process.returncode}. {_said(errors)}")


def _said(errors: IO[bytes]) -> str:
    """The first line that the load program wrote to its standard error."""
    errors.seek(0)
    return errors.readline(300).decode(errors="replace").strip()


def _lines(process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any] | None]:
    assert process.stdout is not None
    waiting = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(0.25):
                yield None
                continue
            got = os.read(process.stdout.fileno(), 65_536)
            if not got:
                break
            *whole, waiting = (waiting + got).split(b"\n")
            for line in whole:
                yield json.loads(line)
    process.wait()


def read_metric(port: int, name: str, label: str) -> dict[str, float]:
    """A metric of the service, added up over all labels but one; empty when it cannot be read."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    sums: dict[str, float] = {}
    for labels, value in re.findall(rf"^{name}{{(.*)}} (\S+)$", text, re.MULTILINE):
        found = re.search(rf'\b{label}="([^"]+)"', labels)
        if found:
            sums[found[1]] = sums.get(found[1], 0) + float(value)
    return sums


def read_lag(port: int) -> dict[float, float]:
    """The cumulative histogram of the event loops' lag: upper bound (seconds) -> count."""
    return {float(bound): count for bound, count in read_metric(port, "tocsin_loop_lag_seconds_bucket", "le").items()}


def wait_for_workers(port: int, count: int) -> None:
    """Until every worker of the service says that it is ready: the first one that accepts is not all of them.

    Raises:
        NotStarted: they are not within `START_SECONDS`.
    """
    deadline = time.monotonic() + START_SECONDS
    while (ready := sum(read_metric(port, "tocsin_ready", "worker").values())) < count:
        if time.monotonic() > deadline:
            raise NotStarted(f"{ready:.0f} of {count} workers are ready after {START_SECONDS:.0f} s")
        time.sleep(0.1)
