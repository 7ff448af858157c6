"""The broker on Redis: a stream and a hash per channel, Pub/Sub to tell, Lua so that each step is whole.

Three connections: one carries publishes in batches, one the commands that are awaited, one listens; a fourth waits
where more than `written` is promised. The rules are in the scripts (`lua/`), what joins publishes in `writer`, what
holds their answers in `acks`, what hears in `reader`; here they meet.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import structlog

from app.brokers import WRITTEN, AckLevel, Extract, Listener, Receipt
from app.brokers.acks import Acks
from app.brokers.answers import position_arguments, read_answer, read_extract
from app.brokers.commands import Commands, away
from app.brokers.envelope import digest, open_envelope, read_id
from app.brokers.examine import Finding, Level, examine, examine_ack
from app.brokers.link import Link, connector
from app.brokers.prober import Prober
from app.brokers.reader import Reader
from app.brokers.route import Place, Route
from app.brokers.scripts import Argument, Opener, bulk, load
from app.brokers.writer import Bounds, Writer
from app.core.continuity import Reading, Verdict
from app.core.errors import Gone, NotFound, TocsinError, Unavailable
from app.core.identity import rule_for
from app.core.messages import ChannelRule, Draft, Position

PAGE_BYTES = 1_048_576
"""Bytes of envelopes in one answer at most (one message at least)."""
TOPS = 512
"""Channels in one call of `read_tops`'s script."""
_ROUTES = 10_000

_log = structlog.get_logger("tocsin.broker")


@dataclass(slots=True)
class Counters:
    """What the broker has done since it started.

    Attributes:
        published: messages that the store has taken, duplicates included.
        batches: writes that carried them.
        received: messages that the reader was given.
        reconnects: connections made after the first of each kind.
        resubscribes: channels subscribed again after a loss.
        probe_seconds: round trip of the newest probe by the commands, through Redis and back on the reader.
        probes_missed: probes that did not come back.
        errors: publishes and commands that failed, messages that could not be read.
    """

    published: int = 0
    batches: int = 0
    received: int = 0
    reconnects: int = 0
    resubscribes: int = 0
    probe_seconds: float = 0.0
    probes_missed: int = 0
    errors: int = 0


class RedisBroker:
    """`Broker` on one Redis (6.2 or newer, or Valkey); see there for the guarantees.

    Args:
        url: redis://, rediss://, unix:// or redis+sentinel://.
        prefix: of all keys and Pub/Sub channels; without braces.
        rules: what holds for which channel; the first that matches decides.
        key_seconds: how long an idempotency key is remembered.
        deadline: seconds for each answer of Redis.
        probe_seconds: between two probes.
        bounds: how much the publish queue takes on.
        ack: what must hold before a publish is answered.
        ack_timeout: seconds in which it must.
        nonce: another unpredictable value with each call; epochs are made from them.
    """

    def __init__(
        self,
        url: str,
        prefix: str,
        rules: Sequence[ChannelRule],
        key_seconds: float = 120,
        *,
        deadline: float = 2.0,
        probe_seconds: float = 3.0,
        bounds: Bounds | None = None,
        ack: AckLevel = WRITTEN,
        ack_timeout: float = 2.0,
        nonce: Callable[[], bytes] | None = None,
    ) -> None:
        if "{" in prefix or "}" in prefix:
            raise ValueError("the prefix of keys cannot hold braces: they mark the channel")
        self._prefix = prefix
        self._rules = rules
        self._key_ttl = bulk(b"%d" % (key_seconds * 1000))
        self._deadline = deadline
        self._probe_seconds = probe_seconds
        self._nonce = nonce or _nonces()
        self._routes: dict[str, Route] = {}
        self._make = connector(url, "tocsin", deadline, self.reconnect)
        self._connected = asyncio.Event()
        self._commands = Commands(self._make, deadline, on_up=self._on_connected, on_replica=self.reconnect)
        self._acks: Acks | None = None
        if ack != WRITTEN:
            self._acks = Acks(
                self._make,
                f"{prefix}:acks",
                ack,
                timeout=ack_timeout,
                deadline=deadline,
                on_replica=self.reconnect,
            )
        self._writer = Writer(
            self._make,
            deadline,
            lambda: bulk(self._nonce()),
            self.reconnect,
            bounds=bounds or Bounds(),
            acks=self._acks,
        )
        self._reader: Reader | None = None
        self._tender: asyncio.Task[None] | None = None
        self._control = f"{prefix}:control"
        self._own_control = ""
        self._writers_turn = True
        self._prober = Prober(self._commands, self._writer, deadline, self._nonce)
        self._counters = Counters()
        self._plain = Opener(load("publish"), 10)
        self._keyed = Opener(load("publish"), 13)
        self._ephemeral = Opener(load("ephemeral"), 5)
        self._findings: list[Finding] | None = None
        self._ack_findings: list[Finding] = []

    def start(self, listener: Listener, incarnation: str) -> None:
        """Connect, and stay connected until `close`; `listener` hears what is subscribed, `incarnation` names this
        worker's own control channel.
        """
        self._own_control = self._prober.channel = f"{self._control}:{incarnation}"
        self._reader = Reader(
            self._make,
            self._deadline,
            listener,
            prefix=f"{self._prefix}:",
            control=(self._control, self._own_control),
            on_probe=self._prober.heard,
        )
        self._writer.on_settled = listener.settled
        for link in self._links():
            link.start()
        self._tender = asyncio.create_task(self._tend(), name="tocsin broker")

    async def close(self) -> None:
        """End all connections; what waits is told that the store is away."""
        if self._tender is not None:
            self._tender.cancel()
            await asyncio.wait((self._tender,))
        await asyncio.gather(*(link.close() for link in self._links()))

    @property
    def full(self) -> bool:
        """Whether the next publish would be refused because too many wait."""
        return self._writer.full

    @property
    def busy(self) -> bool:
        """See `Outlet`."""
        return self._writer.busy

    @property
    def congested(self) -> bool:
        """Whether the publish queue is half full: stop reading from those who publish."""
        return self._writer.congested

    def when_uncongested(self, callback: Callable[[], None]) -> None:
        """Call back once, when the queue is down to a quarter (at once if it is not congested)."""
        self._writer.when_uncongested(callback)

    def publish(self, draft: Draft, receipt: Receipt) -> None:
        """See `Broker`."""
        try:
            route = self._routes.get(draft.channel) or self._add_route(draft.channel)
        except NotFound as error:
            asyncio.get_running_loop().call_soon(receipt, error)
            return
        head, payload = open_envelope(draft), draft.payload
        body = b"$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(head), head, len(payload), payload)
        if draft.ephemeral or route.volatile:
            self._writer.publish(self._ephemeral, route.ephemeral + body, receipt)
        elif draft.key is None:
            self._writer.publish(self._plain, route.plain + body, receipt)
        else:
            key = bulk(f"{route.key_prefix}{draft.scope}:{draft.key}".encode())
            packed = b"".join((route.keyed, key, route.limits, body, bulk(digest(draft)), self._key_ttl))
            self._writer.publish(self._keyed, packed, receipt)

    async def read(self, channel: str, position: Position | None, limit: int) -> Reading:
        """See `Broker`."""
        place = self._place(channel)
        asked = position_arguments(position)
        reply = await self._commands.script(
            "sync",
            (place.meta, place.log),
            (place.channel, place.meta_ttl, *asked, limit, PAGE_BYTES, self._nonce()),
        )
        return read_answer(reply)

    async def read_tops(self, asked: Sequence[tuple[str, Position | None]]) -> list[Reading | TocsinError]:
        """See `Broker`. One call of a script for 512 channels; raises only if all calls have failed."""
        chunks = [asked[at : at + TOPS] for at in range(0, len(asked), TOPS)]
        answers = await asyncio.gather(*(self._read_chunk(chunk) for chunk in chunks))
        failures = [answer for answer in answers if isinstance(answer, TocsinError)]
        if failures and len(failures) == len(chunks):
            raise failures[0]
        readings: list[Reading | TocsinError] = []
        for chunk, answer in zip(chunks, answers, strict=True):
            readings += [answer] * len(chunk) if isinstance(answer, TocsinError) else answer
        return readings

    async def _read_chunk(self, chunk: Sequence[tuple[str, Position | None]]) -> list[Reading] | TocsinError:
        keys: list[Argument] = []
        arguments: list[Argument] = [self._nonce()]
        try:
            for channel, position in chunk:
                place = self._place(channel)
                keys += (place.meta, place.log)
                arguments += (place.channel, place.meta_ttl, *position_arguments(position))
            return [read_answer(reply) for reply in await self._commands.script("tops", keys, arguments)]
        except TocsinError as error:
            return error

    async def extract(
        self, channel: str, since: Position | None, before: Position | None, limit: int, size: int
    ) -> Extract:
        """See `Broker`."""
        place = self._place(channel)
        bounds = (*position_arguments(since), *position_arguments(before))
        reply = await self._commands.script(
            "extract",
            (place.meta, place.log),
            (place.channel, place.meta_ttl, *bounds, limit, size, self._nonce()),
        )
        reading = read_answer(reply)
        if reading.verdict is not Verdict.OK:
            raise Gone("the log does not reach back to this position", position=str(reading.at_top))
        return read_extract(reading, since, before)

    async def clear(self, channel: str) -> Position:
        """See `Broker`."""
        place = self._place(channel)
        reply = await self._commands.script(
            "clear", (place.meta, place.log), (place.channel, place.meta_ttl, self._nonce())
        )
        return read_id(reply)

    def subscribe(self, channel: str) -> None:
        """See `Broker`."""
        assert self._reader is not None
        self._reader.subscribe(channel)

    def unsubscribe(self, channel: str) -> None:
        """See `Broker`."""
        assert self._reader is not None
        self._reader.unsubscribe(channel)

    def reconnect(self, reason: str = "not the same primary") -> None:
        """See `Broker`. What comes next is another server, perhaps: it is checked again."""
        self._findings = None
        for link in self._links():
            link.drop(reason)

    async def tell(self, message: bytes, to: str | None = None) -> int:
        """Publish to the control channel of all workers, or of one incarnation; returns how many connections of the
        server were told. A message does not begin with a zero byte.

        Raises:
            Unavailable: the store is away, refuses, or missed the deadline.
        """
        told: int = await self._commands.run(
            "PUBLISH", self._control if to is None else f"{self._control}:{to}", message
        )
        return told

    async def script(self, name: str, keys: Sequence[Argument], arguments: Sequence[Argument]) -> Any:
        """Run `lua/<name>.lua`.

        Raises:
            Unavailable: the store is away, refuses, or missed the deadline.
        """
        return await self._commands.script(name, keys, arguments)

    async def examine(self) -> list[Finding]:
        """All findings of the start-up check, made now.

        Raises:
            Unavailable: the store is away.
        """
        if not self._commands.link.up:
            raise away()
        return [*await examine(self._commands, self._prefix, self._nonce), *await self._examine_ack()]

    async def _examine_ack(self) -> list[Finding]:
        return [] if self._acks is None else await examine_ack(self._commands, self._acks.level)

    def problems(self) -> list[str]:
        """Why this worker's store is not fit for service, in sentences without hosts; empty when it is."""
        sentences = []
        if not self._commands.link.up:
            sentences.append(f"the store cannot be asked: {self._commands.link.reason}")
        if not self._writer.link.up:
            sentences.append(f"nothing can be published to the store: {self._writer.link.reason}")
        if self._acks is not None and not self._acks.link.up:
            sentences.append(f"how safe a message is cannot be asked: {self._acks.link.reason}")
        if self._reader is None or not self._reader.ready:
            sentences.append("nothing is heard live: not subscribed at the store")
        if self._findings is None:
            sentences.append("the store has not been checked yet")
        else:
            sentences += [one.sentence for one in (*self._findings, *self._ack_findings) if one.level is Level.PROBLEM]
        return sentences

    def counters(self) -> Counters:
        """What has been done so far."""
        counters, reader = self._counters, self._reader
        counters.published, counters.batches = self._writer.published, self._writer.batches
        counters.errors = self._commands.errors + self._writer.errors
        counters.errors += 0 if self._acks is None else self._acks.errors
        counters.reconnects = sum(max(0, link.connections - 1) for link in self._links())
        if reader is not None:
            counters.received, counters.resubscribes = reader.messages, reader.resubscribed
            counters.errors += reader.errors
        counters.probe_seconds, counters.probes_missed = self._prober.seconds, self._prober.missed
        return counters

    def _links(self) -> list[Link]:
        links = [self._writer.link, self._commands.link]
        if self._acks is not None:
            links.append(self._acks.link)
        return links if self._reader is None else [*links, self._reader.link]

    def _place(self, channel: str) -> Place:
        return self._routes.get(channel) or Place(self._prefix, channel, self._rule(channel))

    def _add_route(self, channel: str) -> Route:
        if len(self._routes) >= _ROUTES:
            self._routes.clear()
        route = self._routes[channel] = Route(self._prefix, channel, self._rule(channel))
        return route

    def _rule(self, channel: str) -> ChannelRule:
        rule = rule_for(self._rules, channel)
        if rule is None:
            raise NotFound("this channel does not exist here")
        return rule

    async def _tend(self) -> None:
        """Check the store until it passes, and send probes."""
        while True:
            try:
                async with asyncio.timeout(self._probe_seconds):
                    await self._connected.wait()
                    self._connected.clear()
            except TimeoutError:
                pass
            try:
                await self._check()
                await self._probe()
            except Unavailable:
                continue
            except Exception:  # noqa: BLE001 - the boundary of this task: it must live as long as the broker
                _log.exception("store_check_failed")

    def _on_connected(self) -> None:
        self._findings = None  # perhaps it is another server now
        self._connected.set()

    async def _check(self) -> None:
        findings = self._findings
        if findings is None or any(one.level is Level.PROBLEM for one in findings):
            findings = await examine(self._commands, self._prefix, self._nonce)
        # What a level needs can go away while the store is up: a replica.
        ack_findings = await self._examine_ack()
        _report(findings, self._findings)
        _report(ack_findings, self._ack_findings)
        self._findings, self._ack_findings = findings, ack_findings

    async def _probe(self) -> None:
        """See whether what is published comes back on the reader, in every second round what the writer publishes. If
        only that does not, nobody can say which connection is at the right server.
        """
        reader = self._reader
        if reader is None:
            return
        self._writers_turn = not self._writers_turn
        missed = False
        if self._writers_turn:
            with contextlib.suppress(Unavailable):  # the writer is away, which is known
                if await self._prober.publishes_are_heard(reader):
                    return
                missed = True
        if not await self._prober.commands_are_heard(reader):
            reader.link.drop("a probe did not come back")
            self._commands.link.drop("a probe did not come back")
        elif missed:
            self.reconnect("a probe did not come back")


def _report(findings: list[Finding], known: list[Finding] | None) -> None:
    """Log what is new and not fine."""
    for finding in findings:
        if finding.level is not Level.FINE and (known is None or finding not in known):
            _log.warning("store_check", level=finding.level.value, finding=finding.sentence, advice=finding.advice)


def _nonces() -> Callable[[], bytes]:
    """A random start of this process's own, and a number: cheap, and never the same twice."""
    start, numbers = secrets.token_hex(12).encode(), count()
    return lambda: b"%b.%x" % (start, next(numbers))
