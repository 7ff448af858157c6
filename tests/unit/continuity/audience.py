"""Four clients, how their workers answer them, and what the oracle thinks of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from app.core.continuity import (
    Effect,
    Follower,
    Gap,
    Join,
    Reading,
    Reason,
    Resumed,
    Verdict,
    label,
    on_history,
    subscribe,
)
from app.core.messages import Position, Publication
from tests.unit.continuity.oracle import Oracle
from tests.unit.continuity.parts import Ask, Client, Worker
from tests.unit.continuity.rules import Rules
from tests.unit.continuity.store import Answer, Store


class Audience:
    """All clients.

    Args:
        send: puts a client's request on its worker's connection.
        perform: carries out effects of a worker's channel.
    """

    def __init__(
        self,
        rules: Rules,
        oracle: Oracle,
        store: Store,
        send: Callable[[Worker, Ask], None],
        perform: Callable[[Worker, Sequence[Effect]], None],
    ) -> None:
        self.rules = rules
        self.oracle = oracle
        self.store = store
        self.clients = [Client(index) for index in range(4)]
        self._send = send
        self._perform = perform

    def of(self, worker: Worker) -> list[Client]:
        """The clients of a worker."""
        return [client for client in self.clients if client.worker is worker]

    def members(self, worker: Worker) -> list[Client]:
        """Its group."""
        return [client for client in self.clients if client.worker is worker and client.stage == "member"]

    # -- subscribing

    def subscribe(self, client: Client, worker: Worker, choice: int) -> None:
        """A client comes (back). `choice` says how it begins, and where its answer may come from."""
        client.worker, client.stage, client.asked_at = worker, "asking", self.store.step
        client.token += 1
        client.announced = None
        if choice % 6 == 5 or client.since is None:
            client.since = client.node = None
            client.seen = set()
        client.sent, client.named = client.node, client.since
        position = worker.state.position if worker.live and choice % 3 == 2 else None
        if client.since is None and position is not None:
            self._accept(client, Resumed(position, None), Follower(position, worker.state.epoch))
        elif client.since is None or choice % 2 == 0 or not self._from_memory(client, worker, client.since):
            self.ask(client, choice)

    def ask(self, client: Client, choice: int) -> None:
        """Put the client's subscribe to the store."""
        assert client.worker is not None
        client.waiting = True
        history = client.since is None and choice % 3 == 1
        ask = Ask(client, client.token, client.since, history=history, eager=choice >= 6)
        self._send(client.worker, ask)

    def answer(self, ask: Ask, answer: Answer | None) -> None:
        """The store's answer to a client's request; None: an error, the client asks again."""
        client = ask.client
        if ask.token != client.token:
            return
        client.waiting = False
        if answer is None:
            return
        if ask.page:
            self._page(client, answer)
        elif ask.position is not None:
            self._resume(client, ask.position, answer, eager=ask.eager)
        elif ask.history:
            reading = answer.reading
            count = len(reading.publications)
            before = Position(label(reading.lineage, reading.top - count), reading.top - count)
            self._accept(client, Resumed(before, None, count), Follower(before, reading.epoch))
        else:
            self._accept(client, *subscribe(answer.reading))

    def _resume(self, client: Client, since: Position, answer: Answer, *, eager: bool) -> None:
        assert client.worker is not None
        resumed, follower = self.rules.resume(answer.reading, since)
        if resumed.recovered:
            self._check_recovered(client, since, resumed, answer)
            client.worker.shared = {since: answer}
        else:
            assert resumed.reason is not None
            if answer.begun < client.asked_at:
                self.oracle.fail("stale verdict", f"client {client.index} was judged by an earlier reading")
            self._check_reset(client, since, resumed.reason, answer)
        self._accept(client, resumed, follower)
        if eager and resumed.recovered:
            self._page(client, answer)

    def _accept(self, client: Client, resumed: Resumed, follower: Follower) -> None:
        client.stage = "following"
        client.follower = self.rules.follower(follower.position, follower.epoch)
        client.missing = resumed.replayed
        self._write(client, resumed)
        self.join(client)

    def _from_memory(self, client: Client, worker: Worker, since: Position) -> bool:
        """Answer a resume from the ring or from a reading that somebody else asked for: only positively."""
        answer = worker.shared.get(since) or self._ring(worker, since)
        if answer is None and not self.rules.fresh_verdicts and worker.seen is not None:
            reading = worker.seen.reading
            if not on_history(reading.lineage, reading.top, since):
                answer = worker.seen._replace(reading=replace(reading, verdict=Verdict.DIVERGED))
        if answer is None:
            return False
        self._resume(client, since, answer, eager=True)
        return True

    def _ring(self, worker: Worker, since: Position) -> Answer | None:
        if not worker.live or worker.ring_before is None or worker.written is None:
            return None
        names = [worker.ring_before, *(item.position for item in worker.ring)]
        if since not in names:
            return None
        after = tuple(worker.ring[names.index(since) :])
        written = worker.written
        reading = Reading(Verdict.OK, worker.state.epoch, written.offset, written.epoch, (), None, after)
        return Answer(reading, -1, -1, self.oracle.nodes[written], self.store.step)

    # -- following

    def page(self, client: Client) -> None:
        """A follower's next step: join, read on, or ask again for what failed."""
        if client.waiting or client.worker is None:
            return
        if client.stage == "asking":
            self.ask(client, 0)
        elif client.stage == "following" and self.join(client) is not Join.NOW:
            assert client.follower is not None
            client.waiting = True
            self._send(client.worker, Ask(client, client.token, client.follower.position, page=True))

    def join(self, client: Client) -> Join:
        """Look whether a follower may enter its group."""
        worker, follower = client.worker, client.follower
        if worker is None or follower is None or client.stage != "following":
            return Join.WAIT
        join = follower.joins(worker.state, worker.written)
        if join is Join.NOW:
            client.stage, client.follower, client.joined = "member", None, follower.position
        elif join is Join.RESYNC:
            if worker.live:
                self._perform(worker, (worker.state.start_sync(),))
            follower.doubt()
        return join

    def lag(self, client: Client) -> None:
        """A member reads too slowly: it leaves the group with the group's position."""
        if client.stage == "member" and client.worker is not None:
            self._follow(client, client.worker, client.worker.state.epoch)

    def scatter(self, worker: Worker) -> None:
        """Every member becomes a follower at the group's position, to be proved again."""
        for client in self.members(worker):
            self._follow(client, worker, "")

    def _follow(self, client: Client, worker: Worker, epoch: str) -> None:
        """From the group's position; who has been given nothing since it joined keeps its own name for it."""
        position = worker.written
        assert position is not None
        if self.rules.own_position and client.joined is not None and client.joined.offset == position.offset:
            position = client.joined
        client.stage, client.follower = "following", self.rules.follower(position, epoch)

    def _page(self, client: Client, answer: Answer) -> None:
        worker, follower = client.worker, client.follower
        if worker is None or follower is None:
            return
        asked = follower.position
        group = worker.written if worker.live and answer.reading.epoch == worker.state.epoch else None
        result = follower.on_page(answer.reading, group)
        if isinstance(result, Gap):
            self.gap(client, result, asked, answer)
        else:
            for publication in result.publications:
                self.give(client, publication)
        if worker.live and follower.joins(worker.state, worker.written) is Join.NOW:
            self.join(client)

    # -- the wire

    def give(self, client: Client, publication: Publication) -> None:
        """Write a message to a client."""
        node = int(publication.attributes)
        if self.oracle.parent[node] != client.sent:
            self.oracle.fail("silent hole", f"client {client.index}, sent {client.sent}, gets {publication.position}")
        client.sent = node
        client.missing -= 1
        if node == client.announced and client.missing != 0:
            self.oracle.fail("wrong replay", f"client {client.index} has got all, {client.missing} more are announced")
        self._write(client, publication)

    def gap(self, client: Client, gap: Gap, asked: Position, answer: Answer | None) -> None:
        """Tell a client that continuity was lost."""
        if answer is not None:
            self._check_reset(client, asked, gap.reason, answer)
        client.announced = None
        self._write(client, gap)

    def _write(self, client: Client, event: Publication | Gap | Resumed) -> None:
        if isinstance(event, Gap) or (isinstance(event, Resumed) and not event.recovered):
            client.sent = self.oracle.nodes.get(event.position)
        client.named = event.position
        client.inbox.append(event)
        if not client.stalled:
            self.receive(client)

    def receive(self, client: Client) -> None:
        """The client handles what has been written to it."""
        inbox, client.inbox = client.inbox, []
        for event in inbox:
            assert event.position is not None
            client.since = event.position
            if isinstance(event, Publication):
                if event.position in client.seen:
                    self.oracle.fail("duplicate", f"client {client.index} gets {event.position} twice")
                self.oracle.check_payload(event.position, event.payload)
                client.seen.add(event.position)
                client.node = int(event.attributes)
            elif isinstance(event, Gap) or not event.recovered:
                client.node = self.oracle.nodes.get(event.position)
                client.owed = False

    def leave(self, client: Client) -> None:
        """The connection is lost, and with it what the client has not read."""
        client.stage, client.worker, client.follower = "off", None, None
        client.inbox, client.waiting, client.owed = [], False, False
        client.token += 1

    # -- the judge

    def _check_recovered(self, client: Client, since: Position, resumed: Resumed, answer: Answer) -> None:
        """Invariants 1 and 11 at the moment of the promise."""
        if self.oracle.nodes.get(since, client.node) != client.node:
            self.oracle.fail("silent hole", f"client {client.index} holds {since}, handled {client.node}: recovered")
            return
        client.announced = answer.node
        missed = self.oracle.since(answer.node, client.node)
        if missed is None or len(missed) != resumed.replayed:
            self.oracle.fail("wrong replay", f"client {client.index}: {resumed.replayed} announced, missed {missed}")

    def _check_reset(self, client: Client, asked: Position, reason: Reason, answer: Answer) -> None:
        """Invariant 4, and that the reason is true."""
        if reason is Reason.CLEARED and not self.oracle.clears & set(self.oracle.path(answer.node)):
            self.oracle.fail("wrong reason", f"client {client.index} is told of a clear that never was")
        if reason is Reason.EXPIRED and self.oracle.since(answer.node, client.sent) is None:
            self.oracle.fail("wrong reason", f"client {client.index} is told of an expiry, but {asked} has diverged")
        leader = self.store.leading
        if (answer.server, answer.reign) != (leader.index, leader.reign) or leader.state.meta is None:
            return
        if client.named not in self.oracle.messages and asked.epoch not in dict(leader.state.meta.lineage):
            return  # minted in a tail that is lost: cannot be told from a loss
        missed = self.oracle.since(leader.state.node, client.sent)
        log = {int(item.attributes) for item in leader.state.log}
        if missed is not None and set(missed) <= log:
            self.oracle.fail(
                "false reset", f"client {client.index} at {asked} is told {reason}, and nothing is missing"
            )
