"""What is left of an event stream that fails while it begins."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fastapi import Request

from app.core.identity import Identity
from app.edge.sse import StreamEdge
from app.protocols.sse import EventStream
from app.sockets import EXTENSION, Handover, Limits, Receiver
from tests.unit.engine.clock import run
from tests.unit.engine.crowd import LIMITS, RULE, Stage, Wire


class Fault(Exception):
    """As the test wants."""


def fail(_: Identity) -> bool:
    raise Fault


def edge_of(stage: Stage, refuses: Callable[[Identity], bool]) -> StreamEdge:
    """An endpoint for event streams beside the stage's for sockets."""
    edge = stage.edge
    return StreamEdge(
        access=edge.access,
        entrance=replace(edge.entrance, refuses=refuses),
        one=EventStream(several=False),
        many=EventStream(several=True),
        rules=[RULE],
        hub=stage.hub,
        catchup=stage.catchup,
        broker=stage.broker,
        roster=stage.roster,
        admissions=stage.admissions,
        limits=LIMITS,
        new_client=stage.new_client,
        chance=lambda: 0.5,
    )


def hand_over(receiver: Receiver, _: Limits) -> Wire:
    """A socket that the server keeps for us."""
    wire = Wire(lambda _: None, lambda _: None)
    wire.receiver = receiver
    return wire


@pytest.mark.parametrize("handover", [None, hand_over], ids=["portable", "fast"])
@pytest.mark.parametrize("channels", [["room0"], ["room0", "room1"]], ids=["one", "two"])
def test_a_stream_that_fails_while_it_begins_is_forgotten(handover: Handover | None, channels: list[str]) -> None:
    async def check() -> None:
        stage = Stage(random.Random(1))
        extensions = {} if handover is None else {EXTENSION: handover}
        request = Request({"type": "http", "path": "/sse", "headers": [], "extensions": extensions})
        sent: list[str] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message["type"])

        with pytest.raises(Fault):
            await edge_of(stage, fail).serve(request, channels, None, receive, send)
        assert sent == ["http.response.start", "http.response.body"]
        assert stage.roster.opened == 1
        assert stage.roster.count == 0
        await asyncio.sleep(30)
        stage.check_empty()
        assert stage.violations == []
        stage.stop()

    run(check())
