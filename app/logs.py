"""One pipeline for every log line of the process: ours through structlog, and those of uvicorn and the libraries.

Console on a terminal, one JSON object a line otherwise, always on stderr. No line may carry a query string, a token, a
key or a password: `redact` is the last step before a line is rendered, so a traceback is covered too.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, Processor

HIDDEN = "[hidden]"

_SECRET_FIELDS = frozenset(
    {"authorization", "cookie", "set-cookie", "x-api-key", "api_key", "token", "password", "secret", "query_string"}
)
_RULES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"tocsin\.bearer\.[^\s,;\"']+"), f"tocsin.bearer.{HIDDEN}"),
    # A header in the text of a library: `Authorization: Basic x`, `(b'x-api-key', b'x')`, `"cookie": "x"`.
    (
        re.compile(
            r"(?i)\b((?:proxy-)?authorization|(?:set-)?cookie|x-api-key)(b?[\"']?\s*[:=,]\s*)b?[\"']?[^\"'\r\n]+"
        ),
        rf"\1\2{HIDDEN}",
    ),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {HIDDEN}"),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?"), HIDDEN),
    # User and password of an address.
    (re.compile(r"([a-z][a-z0-9+.-]*://)[^/\s@\"']+@"), rf"\1{HIDDEN}@"),
    # The query of a path or an address. A question mark behind an ordinary word stays.
    (re.compile(r"((?:^|[\s\"'(=])(?:[a-z][a-z0-9+.-]*:/)?/[^\s?\"']*)\?[^\s\"']*"), r"\1"),
)


def configure(style: Literal["auto", "console", "json"] = "auto", level: str = "info") -> None:
    """Send every log line of this process to stderr in one style. May be called again.

    Args:
        style: `console`, `json`, or `auto`: console if stderr is a terminal.
        level: debug, info, warning or error; what is below is dropped.
    """
    console = sys.stderr.isatty() if style == "auto" else style == "console"
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console),
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            pad_event_to=0,
            # The default one shows the values of local variables: no secret may get there.
            exception_formatter=structlog.dev.plain_traceback,
        )
        if console
        else structlog.processors.JSONRenderer(sort_keys=False)
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _drop_color,
                redact,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,  # a worker configures after modules have made their loggers
    )
    _quiet_libraries(debug=level == "debug")


def _quiet_libraries(*, debug: bool) -> None:
    """Keep what an operator needs. uvicorn tells at `info` of every socket opened, with its query; `serve` says
    itself when workers start, die and stop. websockets would log every frame.
    """
    for name in ("uvicorn", "uvicorn.error", "uvicorn.asgi"):
        library = logging.getLogger(name)
        library.handlers = []
        library.propagate = True
        library.setLevel(logging.INFO if debug else logging.WARNING)
    logging.getLogger("uvicorn.access").disabled = True
    logging.getLogger("websockets").setLevel(logging.INFO)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def redact(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Processor: hide query strings, tokens, keys and passwords in every field of a line."""
    return {name: HIDDEN if name.lower() in _SECRET_FIELDS else _clean(value) for name, value in event.items()}


def _clean(value: Any) -> Any:
    """The value without secrets; what is no number becomes text here, so that no renderer finds more to say."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return redact(None, "", {str(key): item for key, item in value.items()})
    if isinstance(value, list | tuple | set | frozenset):
        return _clean_items(value)
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def _clean_items(items: list[Any] | tuple[Any, ...] | set[Any] | frozenset[Any]) -> list[Any]:
    """A sequence without secrets. ASGI headers are pairs: the name decides about the value."""
    cleaned: list[Any] = []
    for item in items:
        if isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[0], bytes | str):
            name = item[0].decode("latin-1") if isinstance(item[0], bytes) else item[0]
            cleaned.append([_clean(name), HIDDEN if name.lower() in _SECRET_FIELDS else _clean(item[1])])
        else:
            cleaned.append(_clean(item))
    return cleaned


def _drop_color(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Uvicorn repeats each message in colours for its own formatter."""
    event.pop("color_message", None)
    return event
