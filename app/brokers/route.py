"""What the store knows a channel by: its keys, its Pub/Sub channel and its limits, packed once."""

from __future__ import annotations

from app.brokers.scripts import bulk
from app.core.messages import ChannelRule

_DAY_MS = 86_400_000


class Route:
    """What is constant about one channel, packed for the wire.

    Attributes:
        meta_ttl: ms; outlives the log, so that a position can still be judged.
        plain: arguments of a publish up to its envelope.
        keyed: the same up to its idempotency key; `limits` follow that.
        ephemeral: arguments of one that is told and not kept.
        volatile: every message of this channel is ephemeral.
    """

    __slots__ = (
        "channel",
        "ephemeral",
        "key_prefix",
        "keyed",
        "limits",
        "log",
        "meta",
        "meta_ttl",
        "plain",
        "volatile",
    )

    def __init__(self, prefix: str, channel: str, rule: ChannelRule) -> None:
        name = f"{prefix}:{{{channel}}}"
        self.channel = name
        self.meta, self.log = f"{name}:meta", f"{name}:log"
        self.key_prefix = f"{name}:key:"
        ttl = rule.ttl * 1000
        self.meta_ttl = max(_DAY_MS, 4 * ttl)
        keys = bulk(self.meta.encode()) + bulk(self.log.encode())
        self.limits = bulk(name.encode()) + b"".join(
            bulk(b"%d" % number) for number in (rule.history, ttl, self.meta_ttl)
        )
        self.plain = bulk(b"2") + keys + self.limits
        self.keyed = bulk(b"3") + keys
        self.ephemeral = bulk(b"0") + bulk(name.encode())
        self.volatile = rule.history == 0
