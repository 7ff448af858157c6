"""Two workers and four clients around the store; the workers run the real state machines.

What the hub and the catch-up do with effects is done here in the same order, one step at a time, so that a run is a
list of actions. Toggles make things late: the requests of a `lazy` worker reach the server later, the group of a
`holding` one is flushed later, a `stalled` client has not read yet what was written to it.
"""

from __future__ import annotations

from collections.abc import Sequence

from app.core.continuity import (
    Deliver,
    Effect,
    Gap,
    Mode,
    Reading,
    Reason,
    Reconnect,
    Scatter,
    Sync,
    Verdict,
)
from app.core.messages import Cleared
from tests.unit.continuity.audience import Audience
from tests.unit.continuity.oracle import Oracle
from tests.unit.continuity.parts import Ask, Check, Client, Request, Worker
from tests.unit.continuity.rules import Rules
from tests.unit.continuity.store import HISTORY, Answer, Item, Store

RING = 3
ROUNDS = 60
"""Rounds in which everything must come to rest after healing."""
REPLIES = 200
"""Replies in one such round."""


class World:
    """The whole.

    Args:
        rules: what is in force.
        wanted: the only kind of violation that counts; None: all do.
    """

    def __init__(self, rules: Rules, wanted: str | None = None) -> None:
        self.rules = rules
        self.oracle = Oracle(wanted)
        self.store = Store(rules.store, self.oracle, self._hear)
        self.workers = [Worker(rules.channel()) for _ in range(2)]
        self.audience = Audience(rules, self.oracle, self.store, self._send, self._perform)
        self._unsure: list[tuple[bytes, str]] = []
        self._published = 0

    # -- publishers

    def publish(self, worker: Worker, *, again: bool = False, doubtful: bool = False) -> None:
        """Publish through a worker; a refused or unanswered one is retried later with its key."""
        again = again and bool(self._unsure)
        if again:
            payload, key = self._unsure.pop(0)
        else:
            self._published += 1
            payload, key = b"p%d" % self._published, f"k{self._published}"
        server = self.store.servers[worker.commands]
        before = server.state
        position = self.store.publish(server, payload, key, retry=again)
        if position is None and server.state is not before:
            self.oracle.fail("half done", f"a refused publish of {key} changed the store")
        if position is None or doubtful:
            self._unsure.append((payload, key))

    def clear(self) -> None:
        """DELETE, through the leader. Who is whole must be told; nobody else can be sure to be."""
        if self.store.leading.state.meta is None:
            return
        for client in self.audience.clients:
            worker = client.worker
            member = client.stage == "member" and worker is not None
            client.owed = member and worker is not None and worker.commands == worker.reader == self.store.leader
        self.store.clear(self.store.leading)

    # -- a worker's connections

    def _hear(self, server: int, item: Item) -> None:
        for worker in self.workers:
            if worker.reader == server and worker.linked and worker.state.mode is not Mode.OFF:
                worker.queue.append(item)

    def unlink(self, worker: Worker) -> None:
        """The reader's connection is lost."""
        worker.linked = False
        if not self.rules.drop_old:
            worker.old += worker.queue
        worker.queue = []

    def relink(self, worker: Worker, reader: int) -> None:
        """The reader has a new connection, and its subscription is confirmed."""
        self.unlink(worker)
        worker.linked, worker.reader = True, reader
        sync = worker.state.connection_replaced()
        if sync is not None:
            self._perform(worker, (sync,))

    def read(self, worker: Worker, queue: list[Item]) -> None:
        """The next live message arrives."""
        if not queue:
            return
        item = queue.pop(0)
        if isinstance(item, Cleared) and not self.rules.store.clear_is_epoch:
            if worker.live and worker.state.position is not None:
                for client in self.audience.members(worker):
                    self.audience.gap(client, Gap(Reason.CLEARED, worker.state.position), worker.state.position, None)
            return
        self._perform(worker, worker.state.on_publication(item))

    def _perform(self, worker: Worker, effects: Sequence[Effect], reading: Reading | None = None) -> None:
        for effect in effects:
            match effect:
                case Deliver(publications):
                    worker.pending += publications
                case Sync():
                    self._send(worker, effect)
                case Scatter():
                    assert reading is not None
                    self.audience.scatter(worker)
                    worker.pending, worker.ring_before = [], None
                    if self.rules.group_moves:
                        worker.written = reading.at_top
                case Reconnect():
                    self.unlink(worker)
                    for request in worker.requests:
                        request.executed, request.answer = True, None
        if not worker.holding:
            self.flush(worker)
        elif worker.live and not worker.pending:
            worker.written = worker.state.position

    def flush(self, worker: Worker) -> None:
        """Write what was delivered to the group."""
        for publication in worker.pending:
            for client in self.audience.members(worker):
                self.audience.give(client, publication)
            if worker.ring_before is None:
                worker.ring, worker.ring_before = [], worker.written
            worker.ring.append(publication)
            if len(worker.ring) > RING:
                worker.ring_before = worker.ring.pop(0).position
            worker.written = publication.position
        worker.pending = []
        if worker.live:
            worker.written = worker.state.position

    # -- requests

    def _send(self, worker: Worker, purpose: Sync | Check | Ask) -> None:
        request = Request(purpose)
        worker.requests.append(request)
        if not worker.lazy:
            self._execute(worker, request)

    def _execute(self, worker: Worker, request: Request) -> None:
        if request.executed:
            return
        request.executed = True
        server = self.store.servers[worker.commands]
        match request.purpose:
            case Ask(history=True):
                request.answer = self.store.newest(server, HISTORY)
            case Ask(position=position, page=page):
                request.answer = self.store.read(server, position, proves=not page)
            case Sync(position, _) | Check(_, position):
                request.answer = self.store.read(server, position)

    def execute(self, worker: Worker) -> None:
        """The next request reaches the server."""
        for request in worker.requests:
            if not request.executed:
                self._execute(worker, request)
                return

    def fail(self, worker: Worker) -> None:
        """The next reply will be an error."""
        if worker.requests:
            worker.requests[0].executed, worker.requests[0].answer = True, None

    def reply(self, worker: Worker) -> None:
        """The next reply arrives."""
        if not worker.requests:
            return
        request = worker.requests.pop(0)
        self._execute(worker, request)
        answer = request.answer
        match request.purpose:
            case Ask() as ask:
                self.audience.answer(ask, answer)
            case Sync() as sync if answer is None:
                worker.retry = sync
            case Sync(_, generation):
                assert answer is not None
                self._perform(worker, worker.state.on_reading(answer.reading, generation), answer.reading)
            case Check() as check:
                if answer is not None:
                    self._on_check(worker, check, answer)

    def tick(self, worker: Worker, *, anew: bool) -> None:
        """A backoff is over: the failed sync is sent again. Followers look whether they may join."""
        retry, worker.retry = worker.retry, None
        if retry is not None and retry.generation == worker.state.generation and worker.state.mode is Mode.SYNC:
            self._perform(worker, (worker.state.start_sync() if anew else retry,))
        for client in self.audience.of(worker):
            if not client.waiting:
                self.audience.join(client)

    def check(self, worker: Worker) -> None:
        """A periodic check is sent."""
        if worker.live and worker.state.position is not None:
            self._send(worker, Check(worker.state.epoch, worker.state.position))

    def _on_check(self, worker: Worker, check: Check, answer: Answer) -> None:
        state, reading = worker.state, answer.reading
        worker.seen = answer
        if self.rules.check_is_hint:
            if state.differs(reading, check.epoch, check.position):
                self._perform(worker, (state.start_sync(),))
        elif worker.live and reading.verdict is not Verdict.OK:
            for client in self.audience.members(worker):
                self.audience.gap(client, Gap(Reason.DIVERGED, reading.at_top), check.position, answer)
            state.position, state.epoch, worker.written = reading.at_top, reading.epoch, reading.at_top
        elif worker.live and (reading.top, reading.epoch) != (check.position.offset, state.epoch):
            self._perform(worker, (state.start_sync(),))

    # -- clients

    def subscribe(self, client: Client, worker: Worker, choice: int) -> None:
        """A client comes (back); the first one of a worker has it subscribe."""
        if client.stage != "off":
            return
        if worker.state.mode is Mode.OFF:
            worker.state.mode = Mode.SYNC
            if worker.linked:
                self.relink(worker, worker.reader)
        self.audience.subscribe(client, worker, choice)

    def close(self, worker: Worker) -> None:
        """Nobody has listened for a while."""
        if not self.audience.of(worker):
            worker.state.close()
            worker.queue, worker.old, worker.pending, worker.shared = [], [], [], {}
            worker.written = worker.ring_before = worker.retry = worker.seen = None

    # -- judging

    def settle_accounts(self) -> None:
        """What must hold after every step (invariant 10)."""
        for worker in self.workers:
            state = worker.state
            if worker.live and worker.proved != (state.position, state.epoch):
                worker.proved = (state.position, state.epoch)
                self.oracle.check_proved("a worker", state.position, state.epoch)

    def heal(self) -> None:
        """Everything works again; then invariants 5 and 6 must hold, and again after one publish."""
        leader = self.store.leading
        leader.primary = True
        self.store.other.primary, self.store.other.source = False, None
        for client in self.audience.clients:
            client.stalled = False
            self.audience.receive(client)
        for worker in self.workers:
            worker.lazy = worker.holding = False
            self.flush(worker)
            worker.commands, worker.old = leader.index, []
            self.relink(worker, leader.index)
        self._come_to_rest()
        for _ in range(len(self._unsure)):
            self.publish(self.workers[0], again=True)
        self.publish(self.workers[0])
        self._come_to_rest()
        self.oracle.check_keys(leader.state.node)

    def _come_to_rest(self) -> None:
        for _ in range(ROUNDS):
            for worker in self.workers:
                self._work_off(worker)
            if self._whole():
                break
        else:
            client = next((client for client in self.audience.clients if not self._is_whole(client)), None)
            where = client and f"client {client.index} {client.stage} at {client.since}"
            self.oracle.fail("stuck", f"{where}, top {self.store.leading.state.meta}")
        for client in self.audience.clients:
            if client.owed:
                self.oracle.fail("never told", f"client {client.index} at {client.since} was there when it was cleared")

    def _work_off(self, worker: Worker) -> None:
        while worker.queue:
            self.read(worker, worker.queue)
        if not worker.linked:
            worker.commands = self.store.leader
            self.relink(worker, self.store.leader)
        self.tick(worker, anew=False)
        self.check(worker)
        for client in self.audience.of(worker):
            self.audience.page(client)
        for _ in range(REPLIES):
            if not worker.requests:
                break
            self.reply(worker)
            self.settle_accounts()
        else:
            self.oracle.fail("stuck", "a worker asks for ever")

    def _whole(self) -> bool:
        return not any(worker.queue or worker.requests for worker in self.workers) and all(
            map(self._is_whole, self.audience.clients)
        )

    def _is_whole(self, client: Client) -> bool:
        return client.stage == "off" or (client.stage == "member" and client.node == self.store.leading.state.node)
