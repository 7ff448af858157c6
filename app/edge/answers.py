"""The error model of HTTP, once: `{"error": {"code", "message"}}` with the status of the code's row in the table."""

from __future__ import annotations

import math
from typing import Any

import orjson
from starlette.responses import Response

from app.core.errors import RULES, Code, TocsinError
from app.protocols.native import error_object


def answer(error: TocsinError) -> Response:
    """The HTTP answer to an error; Retry-After (RFC 9110 section 10.2.3) where trying again helps."""
    headers = {}
    if error.rule.retry or error.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after or 1)))
    if error.code is Code.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    return json(error.rule.http, {"error": error_object(error)}, headers)


def refusal(status: int, code: Code, message: str, headers: dict[str, str] | None = None) -> Response:
    """An answer in the error model for what the framework refuses; the status may differ from the table's."""
    assert code in RULES
    return json(status, {"error": {"code": code.value, "message": message}}, headers)


def json(status: int, body: Any, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer by orjson."""
    return Response(orjson.dumps(body), status, headers, "application/json")
