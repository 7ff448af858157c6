"""What is measured: the scenarios."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace


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
        counts: whether the commands that Redis is sent are counted.
        rounds: of a whole run; where a run has pairs of its own to compare, one is enough.
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
    counts: bool = False
    rounds: int = 3

    @property
    def alone(self) -> bool:
        """Whether one load process must have all connections."""
        return any(phase.startswith(("stall", "return", "as:")) for phase in self.phases)

    @property
    def seconds(self) -> float:
        """About how long a run takes, for the progress bar."""
        return 4 + self.subscribers / 2000 + sum(float(phase.split(":")[-1]) + 0.8 for phase in self.phases)

    def shortened(self) -> Scenario:
        """The same with phases of a second, for `--quick`."""
        quick = tuple(re.sub(r":[\d.]+$", ":1", phase) for phase in self.phases)
        return replace(self, phases=quick)


SECRET = "a-secret-of-this-measurement-only-0123456789"
"""That tokens of a measurement are signed with."""
DEFAULTS = (
    ("ALLOW_ANONYMOUS", "true"),  # or this machine may do everything, without a limit
    ("PUBLISH_RATE", "100"),
    ("COMMAND_RATE", "200"),
    ("FRAME_RATE", "1000"),
    ("HANDSHAKE_SECONDS", "10"),
)
"""The limits as they are when nothing is said."""


def _abuser(kind: str, words: str, seconds: int = 8) -> Scenario:
    return Scenario(
        f"abuser-{kind}",
        f"One abuser among 1,000 clients: {words}",
        subscribers=1000,
        publishers=1,
        phases=("rate:20:4", f"abuse:{kind}:20:{seconds}") * 5,
        contenders=("tocsin-native",),
        settings=DEFAULTS,
        by_clock=True,
        rounds=1,
    )


ABUSES = {
    "messages": "messages into their channel, over one socket",
    "apart": "messages into a channel of its own",
    "pings": "pings",
    "bytes": "fragments of one byte",
    "handshakes": "2,000 handshakes, a byte every half second each",
}

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
        *(_abuser(kind, words, 12 if kind == "handshakes" else 8) for kind, words in ABUSES.items()),
        Scenario(
            "authenticated",
            "1,000 clients return without and with a token, in turn",
            subscribers=1000,
            publishers=1,
            phases=("as:anonymous:1", "rate:50:2", "as:header:1", "rate:50:2", "as:subprotocol:1", "rate:50:2") * 5,
            contenders=("tocsin-native",),
            settings=(("ALLOW_ANONYMOUS", "true"), ("JWT_SECRET", SECRET)),
        ),
        Scenario(
            "presence",
            "10,000 members of 100 channels, four workers",
            subscribers=10_000,
            publishers=0,
            phases=("idle:8", "idle:20"),
            contenders=("tocsin-native-members",),
            workers=4,
            counts=True,
        ),
    )
}
