"""Presence of a subscribe that is overtaken: by an unsubscribe, another subscribe, a narrower token, or the end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, cast

import orjson
import pytest

from app.core.errors import Unavailable
from app.core.identity import Identity
from app.core.messages import PresencePage, Verb
from app.core.session import NativeSession
from app.engine.conversation import NativeConnection
from app.engine.presence import Presence
from app.protocols.native import Native
from tests.unit.engine.clock import run
from tests.unit.engine.crowd import RULE, Stage, Wire

ALL = dict.fromkeys(Verb, ("*",))
ADA = Identity("ada", "user/ada", ALL)


class Rooms:
    """Presence that takes a second for everything, and knows who is there in the end."""

    def __init__(self) -> None:
        self.members: dict[str, bytes] = {}
        self.watchers: list[object] = []
        self.begun = 0
        self.fails = False

    async def enter(self, channel: str, client: str, member: str, info: bytes) -> None:
        await asyncio.sleep(1)
        if self.fails:
            raise Unavailable("away")
        if self.watchers:  # whoever has left meanwhile is in the order of the store
            self.members[client] = info

    def leave(self, channel: str, client: str) -> None:
        self.members.pop(client, None)

    gone = leave

    def watch(self, channel: str, watcher: object) -> None:
        self.watchers.append(watcher)

    def begin(self, channel: str, watcher: object) -> None:
        self.begun += 1

    def unwatch(self, channel: str, watcher: object) -> None:
        if watcher in self.watchers:
            self.watchers.remove(watcher)

    async def members_of(self, channel: str, limit: int, cursor: str | None) -> PresencePage:
        await asyncio.sleep(1)
        return PresencePage((), len(self.members), None)


class Client:
    """One native connection on a stage with slow presence; `renewed` is who the next token says it is."""

    def __init__(self) -> None:
        self.stage = Stage(random.Random(1), clients=0)
        self.rooms = Rooms()
        self.heard: list[dict[str, Any]] = []
        self.renewed = ADA
        rooms = cast("Any", self.rooms)
        presence = cast("Any", type("Slow", (), {}))()
        for name in ("enter", "leave", "gone", "watch", "begin", "unwatch"):
            setattr(presence, name, getattr(rooms, name))
        presence.members = rooms.members_of
        self.connection = NativeConnection(
            session=NativeSession("c1", ADA, (RULE,), 1000, 4),
            codec=Native(),
            hub=self.stage.hub,
            catchup=self.stage.catchup,
            broker=self.stage.broker,
            roster=self.stage.roster,
            admissions=self.stage.admissions,
            presence=cast("Presence", presence),
            verify=self._verify,
            welcome=self.stage.edge.welcome("c1", "ada"),
        )
        self.wire = Wire(lambda payload: self.heard.append(orjson.loads(payload)), lambda _: None)
        self.connection.open(self.wire)

    async def _verify(self, token: str) -> Identity:
        return self.renewed

    def say(self, kind: str, ref: int, **fields: Any) -> None:
        self.connection.on_text(orjson.dumps({"type": kind, "ref": ref, "channel": "room0", **fields}))

    def answer(self, ref: int) -> dict[str, Any]:
        (found,) = [frame for frame in self.heard if frame.get("ref") == ref]
        return found


def play(script: Callable[[Client], Awaitable[None]]) -> None:
    async def whole() -> None:
        client = Client()
        await asyncio.sleep(1)
        await script(client)
        client.stage.stop()

    run(whole())


@pytest.mark.parametrize("after", [0.0, 0.5, 1.5])
def test_who_leaves_before_the_channel_is_open_is_no_member(after: float) -> None:
    async def script(client: Client) -> None:
        client.say("subscribe", 1, presence={"info": {}})
        await asyncio.sleep(after)
        client.say("unsubscribe", 2)
        client.say("subscribe", 3)
        await asyncio.sleep(10)
        assert client.answer(1)["code"] == "not_subscribed"
        assert "members" not in client.answer(3)
        assert not client.rooms.members
        assert not client.rooms.watchers

    play(script)


@pytest.mark.parametrize("after", [0.0, 0.5, 1.5, 2.5])
def test_a_right_that_ends_meanwhile_leaves_no_member_and_shows_none(after: float) -> None:
    async def script(client: Client) -> None:
        client.say("subscribe", 1, presence={"info": {}})
        client.renewed = replace(ADA, allows={Verb.SUBSCRIBE: ("*",)})
        await asyncio.sleep(after)
        client.say("authenticate", 2, token="a.b.c")
        await asyncio.sleep(10)
        assert client.answer(2)["type"] == "authenticated"
        assert client.answer(1)["type"] == "subscribed"
        assert ("members" in client.answer(1)) is (after == 2.5)
        assert not client.rooms.members
        assert not client.rooms.watchers

    play(script)


@pytest.mark.parametrize("after", [0.0, 0.5, 1.5])
def test_who_has_gone_before_the_channel_is_open_is_no_member(after: float) -> None:
    async def script(client: Client) -> None:
        client.say("subscribe", 1, presence={"info": {}})
        await asyncio.sleep(after)
        client.connection.on_closed(1006)
        await asyncio.sleep(10)
        assert not client.rooms.members
        assert not client.rooms.watchers

    play(script)


def test_a_member_that_the_store_does_not_take_is_told_and_watches_nobody() -> None:
    async def script(client: Client) -> None:
        client.rooms.fails = True
        client.say("subscribe", 1, presence={"info": {}})
        await asyncio.sleep(10)
        assert client.answer(1)["code"] == "unavailable"
        assert not client.rooms.watchers
        client.rooms.fails = False
        client.say("subscribe", 2, presence={"info": {}})
        await asyncio.sleep(10)
        assert client.answer(2)["type"] == "subscribed"
        assert (list(client.rooms.members), len(client.rooms.watchers), client.rooms.begun) == (["c1"], 1, 1)

    play(script)
