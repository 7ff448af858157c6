"""Logs: one pipeline, and no secret in any line."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from app import logs

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhZGEifQ.c2lnbmF0dXJl"


Said = Callable[[], str]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Iterator[Said]:
    """What has been logged since the last call; the process's logging is as before afterwards."""
    root = logging.getLogger()
    kept = root.handlers, root.level
    yield lambda: capsys.readouterr().err
    root.handlers, root.level = kept
    structlog.reset_defaults()
    for name in ("uvicorn", "uvicorn.error", "uvicorn.asgi", "websockets", "asyncio"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    logging.getLogger("uvicorn.access").disabled = False


def lines(said: Said) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said().splitlines()]


def test_away_from_a_terminal_a_line_is_a_json_object(said: Said) -> None:
    logs.configure()
    structlog.stdlib.get_logger("a.b").info("served", clients=3)
    [line] = lines(said)
    assert (line["event"], line["level"], line["logger"], line["clients"]) == ("served", "info", "a.b", 3)
    assert line["timestamp"].endswith("Z")


def test_a_console_line_is_for_people(said: Said) -> None:
    logs.configure("console")
    structlog.stdlib.get_logger("a.b").info("served", clients=3)
    assert said().rstrip().endswith("[info     ] served [a.b] clients=3")


def test_libraries_go_through_the_same_pipeline(said: Said) -> None:
    logs.configure("json")
    logging.getLogger("uvicorn.error").error("bad %s", "thing", extra={"color_message": "in colours"})
    logging.getLogger("asyncio").warning("slow")
    first, second = lines(said)
    assert (first["event"], second["event"]) == ("bad thing", "slow")
    assert "color_message" not in first


def test_what_is_below_the_level_is_dropped(said: Said) -> None:
    logs.configure("json", "warning")
    structlog.stdlib.get_logger("a").info("no")
    structlog.stdlib.get_logger("a").warning("yes")
    assert [line["event"] for line in lines(said)] == ["yes"]


def test_uvicorn_is_reduced_to_what_an_operator_needs(said: Said) -> None:
    logs.configure("json")
    logging.getLogger("uvicorn.error").info('%s - "WebSocket %s" [accepted]', ("127.0.0.1", 1), "/ws?channel=a")
    logging.getLogger("uvicorn.access").info("GET /")
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    assert [line["event"] for line in lines(said)] == ["Invalid HTTP request received."]


@pytest.mark.parametrize("style", ["json", "console"])
def test_no_secret_reaches_a_line(said: Said, style: Any) -> None:
    logs.configure(style, "debug")
    log = structlog.stdlib.get_logger("a")
    log.info("x", path="/ws?channel=s3cret", url="http://h:1/sse?s=s3cret", authorization="s3cret", Token="s3cret")
    log.info(
        "opened /ws?since=s3cret",
        offered="tocsin.v1, tocsin.bearer.s3cret.s3cret",
        nested={"a": ["tocsin.bearer.s3cret"]},
    )
    log.info("x", headers=[(b"authorization", b"Bearer s3cret"), (b"x-api-key", b"s3cret"), (b"host", b"h")])
    log.info("x", redis="rediss://user:s3cret@h:1/0", jwt=JWT.replace("eyJzdWIi", "s3cret"), raw=b"Cookie: a=s3cret")
    log.info("got X-API-Key: s3cret")
    log.info("got authorization: Basic s3cret")
    log.info("got Bearer s3cret-s3cret")
    logging.getLogger("uvicorn.error").info('%s - "WebSocket %s" [accepted]', ("127.0.0.1", 1), "/ws?channel=s3cret")
    logging.getLogger("websockets.server").info("< %s: %s", "Authorization", "Bearer s3cret")
    logging.getLogger("b").info("({'x-api-key': 's3cret', 'cookie': 's3cret'})")
    try:
        password = "s3cret-local"
        raise ValueError(f"connecting to redis://u:{password}@h")  # noqa: TRY301 - a traceback is what is tested
    except ValueError:
        log.exception("failed")
    text = said()
    assert "s3cret" not in text
    assert "failed" in text
    assert "ValueError" in text


def test_ordinary_words_stay(said: Said) -> None:
    logs.configure("json")
    structlog.stdlib.get_logger("a").info("why? because", path="/ws", ratio=0.5, none=None, url="http://h:1/a")
    [line] = lines(said)
    assert line["event"] == "why? because"
    assert (line["path"], line["ratio"], line["none"], line["url"]) == ("/ws", 0.5, None, "http://h:1/a")
