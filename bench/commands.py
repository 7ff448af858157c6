"""How many commands a Redis is sent, by its own counters (INFO commandstats): nothing is traced, so nothing is slower.

Those counters also count what scripts call. A command counts as sent by a client if no script of ours calls it, or if
the scripts had no reason to call it while it was counted: see `sent`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

import redis

from bench.install import ROOT

SCRIPTS = ROOT / "app" / "brokers" / "lua"
RUNS = frozenset({"eval", "evalsha"})
BOTH = frozenset({"publish"})
"""Scripts call these only when there is something to tell: not while nobody comes, goes or says anything."""
OWN = {"info": 1}
"""What one reading adds."""


class Commands:
    """The counters of one Redis from one reading to the next.

    Args:
        url: of the Redis.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._redis = redis.Redis(host=parts.hostname or "127.0.0.1", port=parts.port or 6379)
        self._inside = _inside()
        self._calls: Mapping[str, int] = {}
        self._at = 0.0

    def read(self) -> dict[str, float]:
        """Commands by name since the last reading, without this one, and `seconds`; empty at the first."""
        text = self._redis.execute_command("INFO", "commandstats")
        now = time.monotonic()
        calls = {name.removeprefix("cmdstat_"): int(stats["calls"]) for name, stats in text.items()}
        before, self._calls = self._calls, calls
        seconds, self._at = now - self._at, now
        if not before:
            return {}
        found = {name: count - before.get(name, 0) - OWN.get(name, 0) for name, count in calls.items()}
        sent = {name: float(count) for name, count in self.sent(found).items() if count}
        return {**sent, "seconds": seconds}

    def sent(self, calls: Mapping[str, int]) -> dict[str, int]:
        """Those of the calls that clients have sent. A script asks for INFO once, so what is above that is theirs."""
        runs = sum(calls.get(name, 0) for name in RUNS)
        found = {name: count for name, count in calls.items() if name not in self._inside or name in BOTH}
        found["info"] = max(0, calls.get("info", 0) - runs)
        return found

    def close(self) -> None:
        """Give the connection back."""
        self._redis.close()


def _inside() -> frozenset[str]:
    """The commands that scripts of this project call; `register` is told one of two by its caller."""
    text = "".join(path.read_text() for path in SCRIPTS.glob("*.lua"))
    return frozenset(name.lower() for name in re.findall(r"redis\.p?call\('([A-Z]+)'", text)) | {"sadd", "srem"}
