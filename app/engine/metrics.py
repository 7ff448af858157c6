"""Every metric, named once: how a worker counts it, and how a node's workers are shown together.

Counters are plain integers where things happen; this module only reads them. `/metrics` of any worker answers for all
workers of its node, from the snapshots in their leases.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from app.engine.admissions import Admissions
from app.engine.catchup import CatchUp
from app.engine.hub import Hub
from app.engine.presence import Presence
from app.engine.refusals import Refusals
from app.engine.roster import Roster
from app.engine.worker import LAG_BOUNDS, Lag

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Named:
    """One metric: `tocsin_<name>` (counters get `_total` from the text format)."""

    name: str
    counter: bool
    help: str


NAMES = (
    Named("connections", False, "Open sockets."),
    Named("channels", False, "Channels with a subscriber, or just left by the last one."),
    Named("connections_opened", True, "Sockets opened."),
    Named("deliveries", True, "Messages written to sockets of a channel's group."),
    Named("writes", True, "Writes for them: fewer than deliveries where messages are joined."),
    Named("replayed", True, "Messages written to sockets that were behind."),
    Named("pages", True, "Pages read from the log for sockets that were behind."),
    Named("lagged", True, "Times a socket left its group because its reader was slow."),
    Named("aborted", True, "Sockets aborted: stalled for too long, or the loop stood still."),
    Named("silent", True, "Sockets closed because they answered no ping."),
    Named("refused_upgrades", True, "Upgrades answered with an error: no or bad credentials, limits, not ready."),
    Named("turned_away", True, "Of these, those over a limit of connections or of their rate."),
    Named("rate_limited", True, "Commands, messages and requests refused because they came too fast."),
    Named("expired", True, "Sockets closed because their token had ended."),
    Named("revoked", True, "Sockets closed because their user or token was revoked, or was to be disconnected."),
    Named("floods", True, "Pauses in reading from sockets that sent more frames than TOCSIN_FRAME_RATE."),
    Named("gaps", True, "Times a client was told that continuity was lost."),
    Named("syncs", True, "Times a channel asked the log where it stands."),
    Named("reader_losses", True, "Times the Pub/Sub connection was lost."),
    Named("published", True, "Messages the store has taken from this worker."),
    Named("store_errors", True, "Publishes and commands that ended with an error."),
    Named("reconnects", True, "Connections to Redis made again."),
    Named("publish_batches", True, "Batches in which they were sent."),
    Named("received", True, "Messages heard from Redis."),
    Named("probe_seconds", False, "Last round trip of the probe through Redis, in seconds."),
    Named("presence_members", False, "Clients of this worker that are members, counted in each channel."),
    Named("presence_joins", True, "Joins of members that the store has taken, those told again included."),
    Named("presence_leaves", True, "Leaves of members that the store has taken, those told again included."),
    Named("presence_reaped", True, "Members of dead workers that this one has removed."),
    Named("ready", False, "1 when this worker is ready."),
    Named("resident_bytes", False, "Peak resident memory of the worker, in bytes (getrusage)."),
    Named("cpu_seconds", True, "CPU used by the worker, user and system, in seconds."),
)


def snapshot_of(
    *,
    hub: Hub,
    catchup: CatchUp,
    roster: Roster,
    admissions: Admissions,
    refusals: Refusals,
    presence: Presence,
    lag: Lag,
    store: Mapping[str, float],
    problems: Callable[[], list[str]],
) -> dict[str, Any]:
    """This worker's metrics now: name -> number, and the loop's lag as bucket counts. JSON-able."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "connections": roster.count,
        "connections_opened": roster.opened,
        "aborted": roster.aborted,
        "silent": roster.silent,
        "refused_upgrades": admissions.refused,
        "turned_away": admissions.turned_away,
        "rate_limited": admissions.limited,
        "expired": admissions.expired,
        "revoked": refusals.disconnected,
        "floods": roster.floods,
        "channels": len(hub.channels),
        "deliveries": hub.counters.deliveries,
        "writes": hub.counters.writes,
        "lagged": hub.counters.lagged,
        "gaps": hub.counters.gaps,
        "syncs": hub.inquiry.asked,
        "reader_losses": hub.counters.reconnects,
        "replayed": catchup.replayed,
        "pages": catchup.pages,
        "presence_members": presence.local,
        "presence_joins": presence.joins,
        "presence_leaves": presence.leaves,
        "presence_reaped": presence.reaped,
        "ready": int(not problems()),
        "resident_bytes": usage.ru_maxrss * 1024,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "lag": [*lag.counts, lag.total],
        **store,
    }


class _Node(Collector):
    """The snapshots of a node's workers, as Prometheus families."""

    def __init__(self, workers: Mapping[int, Mapping[str, Any] | None]) -> None:
        self._workers = workers

    def collect(self) -> Iterable[Metric]:
        up = GaugeMetricFamily("tocsin_worker_up", "1 when the worker could be asked.", labels=["worker"])
        lag = HistogramMetricFamily(
            "tocsin_loop_lag_seconds", "How much later than asked a timer of the event loop ran.", labels=["worker"]
        )
        families = {
            named.name: (CounterMetricFamily if named.counter else GaugeMetricFamily)(
                f"tocsin_{named.name}", named.help, labels=["worker"]
            )
            for named in NAMES
        }
        for slot, snapshot in sorted(self._workers.items()):
            label = [str(slot)]
            up.add_metric(label, int(snapshot is not None))
            for name, family in families.items():
                if snapshot is not None and name in snapshot:
                    family.add_metric(label, snapshot[name])
            if snapshot is not None:
                lag.add_metric(label, *_histogram(snapshot["lag"]))
        return [up, *families.values(), lag]


def _histogram(counts: list[float]) -> tuple[list[tuple[str, float]], float]:
    """Cumulative buckets and the sum, as the text format wants them."""
    buckets: list[tuple[str, float]] = []
    running = 0.0
    for bound, count in zip([*map(str, LAG_BOUNDS), "+Inf"], counts[:-1], strict=True):
        running += count
        buckets.append((bound, running))
    return buckets, counts[-1]


def render(workers: Mapping[int, Mapping[str, Any] | None]) -> bytes:
    """The Prometheus text format 0.0.4 for all workers of a node."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Node(workers))
    return generate_latest(registry)
