"""What the store knows a channel by: its keys and its Pub/Sub channel; and, packed once, what each publish needs."""

from __future__ import annotations

from app.brokers.scripts import bulk
from app.core.messages import ChannelRule

_DAY_MS = 86_400_000


class Place:
    """Where a channel is kept.

    Attributes:
        channel: of Pub/Sub.
        meta_ttl: ms; outlives the log, so that a position can still be judged.
    """

    __slots__ = ("channel", "log", "meta", "meta_ttl")

    def __init__(self, prefix: str, channel: str, rule: ChannelRule) -> None:
        self.channel = f"{prefix}:{{{channel}}}"
        self.meta, self.log = f"{self.channel}:meta", f"{self.channel}:log"
        self.meta_ttl = max(_DAY_MS, 4000 * rule.ttl)


class Route(Place):
    """What is constant about publishing in one channel, packed for the wire.

    Attributes:
        plain: arguments of a publish up to its envelope.
        keyed: the same up to its idempotency key; `limits` follow that.
        ephemeral: arguments of one that is told and not kept.
        volatile: every message of this channel is ephemeral.
    """

    __slots__ = ("ephemeral", "key_prefix", "keyed", "limits", "plain", "volatile")

    def __init__(self, prefix: str, channel: str, rule: ChannelRule) -> None:
        super().__init__(prefix, channel, rule)
        self.key_prefix = f"{self.channel}:key:"
        name = bulk(self.channel.encode())
        keys = bulk(self.meta.encode()) + bulk(self.log.encode())
        self.limits = name + b"".join(bulk(b"%d" % number) for number in (rule.history, rule.ttl * 1000, self.meta_ttl))
        self.plain = bulk(b"2") + keys + self.limits
        self.keyed = bulk(b"3") + keys
        self.ephemeral = bulk(b"0") + name
        self.volatile = rule.history == 0
