"""What is measured, and the run of one contender through one scenario."""

from __future__ import annotations

import json
import os
import re
import selectors
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import IO, Any

from bench.contenders import Contender, load_processes
from bench.install import Missing, load_program
from bench.stage import START_SECONDS, NotStarted, connections, family, free_port, redis_server, server

DISTURBED = 0.02
TRIES = 4


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of load.

    Attributes:
        phases: what the load program does, in its words (`window:8:4`), after all are connected.
        base: subscribers that are already there when memory and CPU of the others are read: imports, caches and free
            memory that the first ones use up are nobody's cost per connection.
        size: bytes of a message.
        settings: of Tocsin, without the prefix.
        options: more options of the load program.
        by_clock: what is asked of it is a time, so a run that the host disturbed is repeated.
    """

    name: str
    title: str
    subscribers: int
    publishers: int
    phases: tuple[str, ...]
    contenders: tuple[str, ...]
    workers: int = 1
    base: int = 0
    size: int = 128
    settings: tuple[tuple[str, str], ...] = ()
    options: tuple[str, ...] = ()
    by_clock: bool = False

    @property
    def alone(self) -> bool:
        """Whether one load process must have all connections."""
        return any(phase.startswith(("stall", "return")) for phase in self.phases)

    @property
    def seconds(self) -> float:
        """About how long a run takes, for the progress bar."""
        return 4 + self.subscribers / 2000 + sum(float(phase.split(":")[-1]) + 0.8 for phase in self.phases)

    def shortened(self) -> Scenario:
        """The same with phases of a second, for `--quick`."""
        quick = tuple(re.sub(r":[\d.]+$", ":1", phase) for phase in self.phases)
        return replace(self, phases=quick)


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "fanout",
            "1,000 subscribers of one channel",
            subscribers=1000,
            publishers=1,
            phases=("window:8:3", "window:64:3", "rate:50:3"),
            contenders=(
                "tocsin",
                "tocsin-native",
                "tocsin-portable",
                "floor-send",
                "floor-join",
                "socketio",
                "websockets",
                "fastapi-tutorial",
                "fastapi-redis",
                "python-socketio",
            ),
        ),
        Scenario(
            "idle",
            "2,000 connections more, beside 500, that say nothing",
            subscribers=2500,
            publishers=0,
            phases=(),
            contenders=(
                "tocsin",
                "tocsin-native",
                "tocsin-native-own",
                "tocsin-portable",
                "socketio",
                "websockets",
                "fastapi-receive",
                "fastapi-redis",
                "python-socketio",
            ),
            base=500,
        ),
        Scenario(
            "ingest",
            "50 publishers, 2 subscribers, 500 messages in flight",
            subscribers=2,
            publishers=50,
            phases=("window:500:4",),
            contenders=("tocsin", "tocsin-native", "tocsin-portable", "socketio", "fastapi-redis", "fastapi-publish"),
        ),
        Scenario(
            "answers",
            "10 publishers and 10 subscribers, 1,000 messages a second, each answered",
            subscribers=10,
            publishers=10,
            phases=("rate:1000:5",),
            contenders=("tocsin-native",),
            by_clock=True,
        ),
        Scenario(
            "workers",
            "four workers, 2,000 subscribers, 4 publishers",
            subscribers=2000,
            publishers=4,
            phases=("rate:50:4", "window:8:4"),
            contenders=("tocsin",),
            workers=4,
        ),
        Scenario(
            "crowd",
            "10,000 subscribers of one channel, 20 messages a second",
            subscribers=10_000,
            publishers=1,
            phases=("rate:20:5", "idle:1"),
            contenders=("tocsin",),
            by_clock=True,
        ),
        Scenario(
            "return",
            "10,000 subscribers return at once, each 50 messages behind, four workers",
            subscribers=10_000,
            publishers=1,
            phases=("return:50:30",),
            contenders=("tocsin-native",),
            workers=4,
            options=("-c", "4000"),
            by_clock=True,
        ),
        Scenario(
            "stalled",
            "100 of 5,000 subscribers stop to read, again and again",
            subscribers=5000,
            publishers=1,
            phases=("rate:20:3", "stall:100:20:8") * 5,
            contenders=("tocsin-native",),
            size=4000,
            settings=(("HIGH_MARK", "131072"), ("MAX_MESSAGE", "65536")),
            options=("-B", "100:4096"),
            by_clock=True,
        ),
    )
}


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
            if not contender.ours:
                continue
            if line["phase"] == "connect":
                outcome.spread = connections(family(process.pid), port)
                before = read_lag(port)
            elif not outcome.lag:
                outcome.lag = [(bound, count - before.get(bound, 0)) for bound, count in read_lag(port).items()]


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
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen([*command, *scenario.phases], stdout=subprocess.PIPE, stderr=errors) as process,
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
