"""A client of tocsin.v1 around a real hub: it says anything at any moment, and judges every frame it is given."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import dataclass
from typing import Any

import orjson

from app.core.identity import Identity
from app.core.messages import Position
from app.core.session import NativeSession
from app.engine.conversation import NativeConnection
from app.protocols.native import Native
from tests.unit.engine.crowd import RULE, Stage, Wire

CODEC = Native()
SUBSCRIPTIONS = 2


@dataclass
class View:
    """What a client knows of a channel that it hears: the node it is at, and how many replayed messages are due."""

    node: int
    due: int = 0


class Line(Wire):
    """A wire whose peer goes on sending when it is read from again."""

    talker: Talker

    def resume_reading(self) -> None:
        super().resume_reading()
        asyncio.get_running_loop().call_soon(self.talker.pump)


class Talker:
    """One client; `connect` it again after the end.

    Attributes:
        asked: commands without an answer yet, by ref.
        views: channels that it hears.
        since: where it stood in channels that it has heard.
    """

    def __init__(self, stage: Stage, index: int) -> None:
        self.stage = stage
        self.index = index
        self.wire: Line | None = None
        self.asked: dict[int, dict[str, Any]] = {}
        self.views: dict[str, View] = {}
        self.since: dict[str, str] = {}
        self.answers = 0
        self._outbox: deque[bytes] = deque()
        self._refs = 0
        self._welcomed = False

    def connect(self) -> None:
        """A new connection: nothing is heard, nothing is asked."""
        stage = self.stage
        self.asked, self.views, self._outbox, self._welcomed = {}, {}, deque(), False
        client = stage.new_client()
        connection = NativeConnection(
            session=NativeSession(client, Identity(), (RULE,), 1000, SUBSCRIPTIONS),
            codec=CODEC,
            hub=stage.hub,
            catchup=stage.catchup,
            broker=stage.broker,
            roster=stage.roster,
            admissions=stage.admissions,
            presence=stage.edge.presence,
            verify=stage.edge.access.verify,
            welcome=stage.edge.welcome(client, None),
        )
        self.wire = Line(self.take, self._on_end)
        self.wire.talker = self
        self.wire.receiver = connection
        stage.wires += 1
        connection.open(self.wire)

    def say(self, **command: Any) -> None:
        """Send a command, or have it wait until the server reads."""
        if self.wire is not None:
            self._refs += 1
            self.asked[self._refs] = command
            self._outbox.append(orjson.dumps({**command, "ref": self._refs}))
            self.pump()

    def say_anything(self, chance: random.Random) -> None:
        """A command that is often good."""
        channel = chance.choice(self.stage.names)
        match chance.choice(("subscribe",) * 6 + ("unsubscribe",) * 4 + ("publish",) * 4 + ("ping", "history", "bad")):
            case "subscribe":
                more: dict[str, Any] = {"history": chance.choice((0, 0, 2))}
                if channel in self.since and chance.random() < 0.8:
                    more["since"] = self.since[channel]
                self.say(type="subscribe", channel=channel, **more)
            case "publish":
                self.stage._messages += 1
                self.say(type="publish", channel=channel, data=f"n{self.stage._messages}")
            case "bad":
                self.say(type="subscribe", channel=chance.choice(("", "a b", 5, None)))
            case kind:
                self.say(type=kind, channel=channel)

    def pump(self) -> None:
        """Send what waits."""
        while self._outbox and self.wire is not None and self.wire.reading and self.wire.closed is None:
            self.wire.say(self._outbox.popleft())

    def take(self, payload: bytes) -> None:
        """A frame is written to it."""
        event = orjson.loads(payload)
        kind = event.pop("type")
        self.stage.fail_if(self._welcomed == (kind == "welcome"), f"{self}: {kind} at the wrong time")
        self._welcomed = True
        match kind:
            case "welcome" | "alive":
                pass
            case "message":
                self._take_message(event["channel"], event)
            case "gap":
                view = self.views.get(event["channel"])
                self.stage.fail_if(view is None, f"{self}: a gap in {event['channel']}, which it does not hear")
                if view is not None:
                    self._move(event["channel"], event["position"], due=0)
            case _:
                self._take_answer(kind, event)

    def _take_message(self, channel: str, event: dict[str, Any]) -> None:
        view = self.views.get(channel)
        if "id" not in event:
            return
        self.stage.fail_if(view is None, f"{self}: a message of {channel}, which it does not hear")
        if view is None:
            return
        oracle = self.stage.broker.room(channel).oracle
        node = oracle.nodes[Position.parse(event["id"])]
        self.stage.fail_if(oracle.parent[node] != view.node, f"{self}: {event['id']} does not follow {view.node}")
        self._move(channel, event["id"], due=max(0, view.due - 1))

    def _take_answer(self, kind: str, event: dict[str, Any]) -> None:
        self.answers += 1
        command = self.asked.pop(event.get("ref", 0), None)
        self.stage.fail_if(command is None, f"{self}: {kind} answers nothing that is open: {event}")
        if command is None:
            return
        fitting = {"subscribe": "subscribed", "unsubscribe": "unsubscribed", "publish": "published", "ping": "pong"}
        fits = kind in {"error", fitting.get(command["type"], command["type"])}
        self.stage.fail_if(not fits, f"{self}: {kind} answers {command}")
        if kind == "unsubscribed":
            self.views.pop(event["channel"], None)
        elif kind == "subscribed":
            self._take_subscribed(command, event)

    def _take_subscribed(self, command: dict[str, Any], event: dict[str, Any]) -> None:
        channel, since = event["channel"], command.get("since")
        oracle = self.stage.broker.room(channel).oracle
        self.stage.fail_if(channel in self.views, f"{self}: subscribed to {channel} twice")
        self.stage.fail_if((since is None) != (event["recovered"] is None), f"{self}: {event} answers {command}")
        if event["recovered"]:
            self.stage.fail_if(event["position"] != since, f"{self}: recovered from {event['position']}, not {since}")
        else:
            self.stage.fail_if((event["recovered"] is False) != ("reason" in event), f"{self}: {event}")
        if event["recovered"] is not None and not event["recovered"]:
            self.stage.fail_if(event["replayed"] != 0, f"{self}: replays after a loss: {event}")
        self.views[channel] = View(oracle.nodes[Position.parse(event["position"])])
        self._move(channel, event["position"], due=event["replayed"])

    def _move(self, channel: str, position: str, *, due: int) -> None:
        view = self.views[channel]
        view.node = self.stage.broker.room(channel).oracle.nodes[Position.parse(position)]
        view.due = due
        self.since[channel] = position

    def check_whole(self) -> None:
        """It has every answer and every message."""
        self.stage.fail_if(bool(self.asked), f"{self}: no answer to {self.asked}")
        for channel, view in self.views.items():
            room = self.stage.broker.room(channel)
            missing = room.oracle.since(room.store.leading.state.node or 0, view.node)
            self.stage.fail_if(missing != [], f"{self}: misses {missing} of {channel}")
            self.stage.fail_if(view.due != 0, f"{self}: {view.due} replayed messages of {channel} never came")

    def _on_end(self, code: int) -> None:
        self.wire = None
        self.stage.wires -= 1

    def __repr__(self) -> str:
        return f"talker {self.index}"
