"""A conversation: the connection of a format that answers. Commands go to the session, answers and events come back.

Those of one turn of the loop leave in one write. Whatever has its place among a channel's messages keeps it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from app.brokers import Broker
from app.core.errors import NotSubscribed, TocsinError
from app.core.identity import Identity
from app.core.messages import (
    Acknowledged,
    Authenticate,
    Event,
    Pong,
    PresencePage,
    ReadHistory,
    ReadMembers,
    Refused,
    Subscribe,
    Welcome,
)
from app.core.session import (
    Absent,
    Disconnect,
    Effect,
    Extract,
    Leave,
    NativeSession,
    Open,
    Survey,
    Verify,
)
from app.engine.admissions import Admissions
from app.engine.catchup import CatchUp
from app.engine.connection import BUSY, SLOW, EventConnection
from app.engine.hub import Hub
from app.engine.presence import Presence
from app.engine.roster import Roster
from app.protocols import Conversation
from app.sockets import Socket, Unit

log = structlog.get_logger("tocsin.connection")

PAGE_BYTES = 1_048_576
"""Bytes of messages in one page of history at most."""
MEMBERS = 100
"""Members that the answer to a subscribe lists at most."""
UNDER_WAY = 128
"""Subscribes of one client that may wait for the store, abandoned ones included; or one page of history."""


_Asked = Subscribe | ReadHistory | ReadMembers | Authenticate
"""Commands whose answer takes a while."""


class NativeConnection(EventConnection):
    """A connection whose format has answers. Those of one turn of the loop leave in one write.

    Args:
        presence: who is where.
        verify: who a token says it is; raises a `TocsinError`.
        welcome: the first event.
    """

    __slots__ = ("_answers", "_attending", "_opening", "_presence", "_under_way", "_verify", "_welcome")

    session: NativeSession

    def __init__(
        self,
        *,
        session: NativeSession,
        codec: Conversation,
        hub: Hub,
        catchup: CatchUp,
        broker: Broker,
        roster: Roster,
        admissions: Admissions,
        presence: Presence,
        verify: Callable[[str], Awaitable[Identity]],
        welcome: Welcome,
        address: str | None = None,
    ) -> None:
        super().__init__(
            session=session,
            codec=codec,
            hub=hub,
            catchup=catchup,
            broker=broker,
            roster=roster,
            admissions=admissions,
            address=address,
        )
        self._presence = presence
        self._verify = verify
        self._attending: set[str] | None = None
        self._welcome: Welcome | None = welcome
        self._answers: list[Unit] | None = None
        self._opening: dict[str, Subscribe] | None = None
        self._under_way = 0

    def open(self, socket: Socket) -> None:
        """The connection begins with `welcome`."""
        super().open(socket)
        welcome, self._welcome = self._welcome, None
        if welcome is not None:
            self._say(welcome)

    def on_paused(self) -> None:
        """The client reads too slowly: nothing more is read from it, since that would make answers."""
        super().on_paused()
        self._hold(SLOW)

    def on_resumed(self) -> None:
        """The client has read what was waiting."""
        self._release(SLOW)
        super().on_resumed()

    def _perform(self, effect: Effect | None) -> None:
        match effect:
            case Open(command):
                if self._opening is None:
                    self._opening = {}
                self._opening[command.channel] = command
                self._ask(command, 1)
            case Leave(channel, event):
                opening = self._opening.pop(channel, None) if self._opening else None
                if opening is not None:
                    self._say(Refused(NotSubscribed("left before the channel was open"), opening.ref))
                super()._perform(effect)
                self._stay_away(channel)
                self._say(event)
            case Absent(channel):
                self._stay_away(channel)
            case Extract(command) | Survey(command):
                self._ask(command, UNDER_WAY)
            case Verify(command):
                self._ask(command, UNDER_WAY)  # two at once could end in the wrong order
            case Disconnect():
                self._write_answers()
                super()._perform(effect)
            case _:
                super()._perform(effect)

    def _ask(self, command: _Asked, share: int) -> None:
        """Begin what needs an answer of the store. A client with enough of that under way is not read from: neither
        tasks nor pages pile up.
        """
        self._under_way += share
        if self._under_way >= UNDER_WAY:
            self._hold(BUSY)
        self._hub.spawn(self._await(command, share))

    async def _await(self, command: _Asked, share: int) -> None:
        try:
            match command:
                case Subscribe():
                    await self._open(command)
                case ReadHistory():
                    await self._extract(command)
                case ReadMembers():
                    await self._survey(command)
                case Authenticate():
                    await self._authenticate(command)
        except Exception as error:  # noqa: BLE001 - as in `on_text`
            self._fault(error)
        finally:
            self._under_way -= share
            if self._under_way < UNDER_WAY:
                self._release(BUSY)

    async def _open(self, command: Subscribe) -> None:
        """Open a channel for this client and begin to hear it, unless it has left meanwhile."""
        try:
            channel = await self._hub.open(command.channel)
        except TocsinError as error:
            self._fail(command, error)
            return
        held = True
        try:
            if command.since is not None:
                resumed, follower = await self._catchup.resume(channel, command.since)
            else:
                resumed, follower = await self._catchup.begin(channel, command.history)
            present = await self._attend(command)
            if self._is_opening(command):
                held = False
                self._perform(self.session.on_opened(command, resumed, present))
                if present is not None:
                    self._presence.begin(command.channel, self)
                self.hear(channel, follower)
        except TocsinError as error:
            self._fail(command, error)
        finally:
            if held:
                if command.channel not in self._subscriptions and command.channel not in (self._opening or ()):
                    self._stay_away(command.channel)
                self._hub.release(channel)

    def _attends(self, command: Subscribe) -> bool:
        """Whether presence is still asked for, and allowed: meanwhile the client may have left, or its right ended."""
        opening = self._opening.get(command.channel) if self._opening else None
        return not self.closed and opening is command and self.session.attends(command.channel)

    async def _attend(self, command: Subscribe) -> PresencePage | None:
        """Be told of who joins and leaves, be a member if asked for, and see who is there."""
        channel, client = command.channel, self.session.client
        if not self._attends(command):
            return None
        if self._attending is None:
            self._attending = set()
        self._attending.add(channel)
        self._presence.watch(channel, self)
        if command.info is not None:
            await self._presence.enter(channel, client, self.identity.user or client, command.info)
        page = await self._presence.members(channel, MEMBERS, None) if self._attends(command) else None
        return page if self._attends(command) else None

    def _stay_away(self, channel: str) -> None:
        """Be no member of a channel any more, and watch nobody there."""
        if self._attending is not None and channel in self._attending:
            self._attending.discard(channel)
            self._presence.unwatch(channel, self)
            if self.closed:
                self._presence.gone(channel, self.session.client)
            else:
                self._presence.leave(channel, self.session.client)

    def on_closed(self, code: int) -> None:
        """The connection is gone: its presence ends a little later, unless it is back by then."""
        already = self.closed
        super().on_closed(code)
        if not already:
            for channel in list(self._attending or ()):
                self._stay_away(channel)

    def _is_opening(self, command: Subscribe) -> bool:
        """Whether this is still wanted; forgets that it is under way."""
        if self._opening is None or self._opening.get(command.channel) is not command:
            return False
        del self._opening[command.channel]
        if not self._opening:
            self._opening = None
        return not self.closed

    def _fail(self, command: Subscribe, error: TocsinError) -> None:
        if self._is_opening(command):
            self._perform(self.session.on_failed(command, error))

    async def _extract(self, command: ReadHistory) -> None:
        try:
            found = await self._broker.extract(
                command.channel, command.since, command.before, command.limit, PAGE_BYTES
            )
        except TocsinError as error:
            self._perform(self.session.on_failed(command, error))
            return
        self._perform(self.session.on_extract(command, found.publications, found.position, found.complete))

    async def _survey(self, command: ReadMembers) -> None:
        try:
            page = await self._presence.members(command.channel, command.limit, command.cursor)
        except TocsinError as error:
            self._perform(self.session.on_failed(command, error))
            return
        self._perform(self.session.on_survey(command, page))

    async def _authenticate(self, command: Authenticate) -> None:
        try:
            identity = await self._verify(command.token)
        except TocsinError as error:
            self._perform(self.session.on_failed(command, error))
            return
        if self.closed:
            return
        for effect in self.session.on_verified(command, identity):
            self._perform(effect)
        self._admissions.renew(self)

    def _say(self, event: Event) -> None:
        """Write an event. Answers to commands wait for the end of the turn; whatever has its place among the messages
        of a channel, or may be large, is written at once, after them.
        """
        if self.closed:
            return
        unit = self._unit(event)
        if self._answers is None:
            self._answers = []
            asyncio.get_running_loop().call_soon(self._write_answers)
        self._answers.append(unit)
        if not isinstance(event, Acknowledged | Refused | Pong):
            self._write_answers()

    def _write_answers(self) -> None:
        answers, self._answers = self._answers, None
        if answers:
            self._write(answers)
