"""The client reads and writes the golden frames as the service does."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tocsin import frames
from tocsin.errors import BadChannel, BadRequest, TocsinError
from tocsin.events import Ack, Gap, Member, Members, Message, Page, Presence

WIRE = Path(__file__).parents[2] / "wire"
EVENTS = json.loads((WIRE / "events.json").read_text("utf-8"))
COMMANDS = json.loads((WIRE / "commands.json").read_text("utf-8"))


def message(channel: str, meaning: dict[str, Any]) -> Message:
    """What a golden frame means, as the client's value. Text and JSON are both `data`."""
    data: Any = meaning["payload"]
    if meaning["kind"] == "json":
        data = json.loads(data)
    elif meaning["kind"] == "binary":
        data = base64.b64decode(data)
    told = meaning["attributes"]
    return Message(channel, meaning["position"], data, told.get("c"), told.get("u"), told.get("t"))


def members(meaning: list[dict[str, Any]]) -> tuple[Member, ...]:
    return tuple(Member(one["member"], one["clients"], json.loads(one["info"])) for one in meaning)


def expected(meaning: dict[str, Any]) -> frames.Frame:
    channel, ref = meaning.get("channel", ""), meaning.get("ref")
    match meaning["event"]:
        case "welcome":
            return frames.Welcome(**{name: value for name, value in meaning.items() if name != "event"})
        case "subscribed":
            here = meaning["presence"]
            return frames.Subscribed(
                channel,
                meaning["position"],
                meaning["recovered"],
                meaning["replayed"],
                meaning["reason"],
                None if here is None else members(here["members"]),
                0 if here is None else here["count"],
                ref,
            )
        case "unsubscribed":
            return frames.Unsubscribed(channel, meaning["reason"], ref)
        case "published":
            return frames.Answer(ref, Ack(meaning["position"], meaning["duplicate"]))
        case "history":
            found = tuple(message(channel, one) for one in meaning["messages"])
            return frames.Answer(ref, Page(found, meaning["position"], meaning["complete"]))
        case "members":
            return frames.Answer(ref, Members(members(meaning["members"]), meaning["count"], meaning["cursor"]))
        case "presence":
            return Presence(channel, members(meaning["joined"]), members(meaning["left"]), meaning["count"])
        case "message":
            return message(channel, meaning)
        case "gap":
            return Gap(channel, meaning["reason"], meaning["position"])
        case "authenticated":
            return frames.Authenticated(meaning["user"], meaning["expires_at"], ref)
        case "reconnect":
            return frames.Reconnect(meaning["after"], meaning["reason"])
        case "pong":
            return frames.Pong(ref)
        case "alive":
            return frames.Alive()
        case other:
            raise AssertionError(other)


@pytest.mark.parametrize("golden", EVENTS, ids=lambda golden: golden["name"])
def test_a_frame_of_the_service_is_read(golden: dict[str, Any]) -> None:
    frame, meaning = frames.read(golden["frame"]), golden["meaning"]
    if meaning["event"] == "error":
        assert isinstance(frame, frames.Refused)
        told = (frame.ref, frame.error.code, frame.error.message, frame.error.retry_after, frame.error.position)
        assert told == tuple(meaning[name] for name in ("ref", "code", "message", "retry_after", "position"))
        assert isinstance(frame.error, TocsinError)
        assert type(frame.error) is not TocsinError
    else:
        assert frame == expected(meaning)


def written(meaning: dict[str, Any]) -> str | None:
    """The frame that this client writes for a command, or None where it writes no such thing."""
    channel, ref = meaning.get("channel"), meaning.get("ref")
    match meaning["command"]:
        case "subscribe":
            presence = meaning["presence"]
            if presence not in {None, "watch"}:
                presence = {"info": json.loads(presence)}
            return frames.subscribe(
                str(channel), ref, since=meaning["since"], history=meaning["history"], presence=presence
            )
        case "publish":
            payload = meaning["payload"]
            data = json.loads(payload) if meaning["kind"] == "json" else base64.b64decode(payload)
            body, _ = frames.body(data)
            return frames.publish(str(channel), ref, body, key=meaning["key"], ephemeral=meaning["ephemeral"])
        case "unsubscribe":
            return frames.command("unsubscribe", ref, channel=channel)
        case "history":
            bounds = {name: meaning[name] for name in ("since", "before", "limit")}
            return frames.command("history", ref, channel=channel, **bounds)
        case "presence":
            return frames.command("presence", ref, channel=channel, limit=meaning["limit"], cursor=meaning["cursor"])
        case "authenticate":
            return frames.command("authenticate", ref, token=meaning["token"])
        case _:
            return None


DEFAULTS: dict[str, Any] = {"history": 0, "limit": 100, "ephemeral": False}
"""Fields that may be left away."""


def meant(frame: dict[str, Any]) -> dict[str, Any]:
    """A command without what says nothing."""
    told = {name: value for name, value in frame.items() if value is not None and value != DEFAULTS.get(name, ...)}
    if told.get("presence") == {}:
        told["presence"] = {"info": {}}
    return told


GOOD = [golden for golden in COMMANDS if "command" in golden["meaning"] and written(golden["meaning"]) is not None]


@pytest.mark.parametrize("golden", GOOD, ids=lambda golden: golden["name"])
def test_a_command_is_written_as_the_service_reads_it(golden: dict[str, Any]) -> None:
    text = written(golden["meaning"])
    assert text is not None
    known = set(json.loads(text)) | {"type", "ref", "channel", "key", "data", "base64", "since", "before", "presence"}
    wanted = {name: value for name, value in json.loads(golden["frame"]).items() if name in known}
    assert meant(json.loads(text)) == meant(wanted)


def test_most_golden_commands_are_written() -> None:
    assert len(GOOD) >= 20


@pytest.mark.parametrize("text", ["", "[]", "1", "{}", '{"type":"message"}', '{"type":"gap","channel":"a"}', "{"])
def test_what_no_service_sends_is_bad(text: str) -> None:
    with pytest.raises(frames.BadFrame):
        frames.read(text)


def test_unknown_types_and_fields_are_ignored() -> None:
    assert frames.read('{"type":"tomorrow","channel":"a"}') is None
    assert frames.read('{"type":"pong","ref":1,"tomorrow":true}') == frames.Pong(1)


def test_an_unknown_error_keeps_its_code() -> None:
    frame = frames.read('{"type":"error","ref":1,"code":"tomorrow","message":"no"}')
    assert isinstance(frame, frames.Refused)
    assert frame.error.code == "tomorrow"


@pytest.mark.parametrize("data", [float("nan"), float("inf"), {1, 2}, "\ud800", object()])
def test_what_is_no_json_is_refused_before_it_is_sent(data: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        frames.body(data)


def test_the_size_is_counted_as_the_service_does() -> None:
    assert frames.body({"é": 1}) == ('"data":{"é":1}', 8)
    assert frames.body(b"\x00\x01\x02\xff") == ('"base64":"AAEC/w=="', 8)


@pytest.mark.parametrize("name", ["", "a b", "ä", "x" * 129, "a\n", "a/b"])
def test_names_outside_the_grammar_are_refused(name: str) -> None:
    with pytest.raises(BadChannel):
        frames.check_channel(name)


@pytest.mark.parametrize("key", ["", "short", "x" * 65, "0123456789abcde!", "0123456789abcdef\n"])
def test_keys_outside_the_grammar_are_refused(key: str) -> None:
    with pytest.raises(BadRequest):
        frames.check_key(key)
