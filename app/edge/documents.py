"""The documents for those who generate clients: OpenAPI of REST, AsyncAPI of `/ws` and `/sse`, from the same models."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import msgspec
from fastapi import APIRouter, FastAPI
from fastapi.responses import Response

from app.edge.answers import json
from app.edge.gate import PREFIX
from app.edge.models import CHANNEL_FORM, ID, MessageModel
from app.protocols import objects

SCHEMES: dict[str, Any] = {
    "apiKey": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "Of a backend; publishes and reads within its scope, and administers where it may.",
    },
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "Of a user; its claim `tocsin` says what is allowed in which channels.",
    },
}
_GUARDED: list[dict[str, list[str]]] = [{"apiKey": []}, {"bearer": []}, {}]
"""Either, or none where anonymous use is allowed."""
_MESSAGE = "Message"
_ANSWERS: dict[type[Any], type[Any]] = {
    objects.Subscribe: objects.Subscribed,
    objects.Unsubscribe: objects.Unsubscribed,
    objects.Publish: objects.Published,
    objects.History: objects.HistoryPage,
    objects.Presence: objects.Members,
    objects.Authenticate: objects.Authenticated,
    objects.Ping: objects.Pong,
}
_PUSHES = (
    "Welcome",
    _MESSAGE,
    "PresenceChange",
    "Gap",
    "Unsubscribed",
    "Alive",
    "Reconnect",
)
_STREAMED = (_MESSAGE, "Gap", "Reconnect")
_CHANNEL = {"type": "string", **CHANNEL_FORM}
_SINCE = {"type": "string", "examples": [ID], "description": "Resume behind this id."}


def describe_security(app: FastAPI) -> None:
    """Say in the application's OpenAPI document how one shows who one is (OpenAPI 3.1 section 4.8.27)."""
    made: Callable[[], dict[str, Any]] = app.openapi

    def document() -> dict[str, Any]:
        found = made()
        found.setdefault("components", {})["securitySchemes"] = SCHEMES
        for path, operations in found["paths"].items():
            if path.startswith(PREFIX) or path == "/sse":
                for operation in operations.values():
                    operation["security"] = _GUARDED
        return found

    app.openapi = document  # type: ignore[method-assign] # FastAPI's own way


def router(version: str) -> APIRouter:
    """The route of the AsyncAPI document."""
    routes = APIRouter()

    @routes.get("/asyncapi.json", include_in_schema=False)
    async def document() -> Response:
        """What one says on sockets and hears on them."""
        return json(200, asyncapi(version))

    return routes


def asyncapi(version: str, examples: Mapping[str, Sequence[Mapping[str, Any]]] | None = None) -> dict[str, Any]:
    """The AsyncAPI 3.0 document of this version, as the service sees it: it receives commands and sends events.

    Args:
        version: of the service.
        examples: of messages by the name of their type, each with `name` and `payload`.
    """
    types = [*get_args(objects.Command), *get_args(objects.Event)]
    _, schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    schemas = _read_by_all(schemas)
    schemas[_MESSAGE] = _message_schema()
    messages = {each.__name__: _message(each.__name__, inspect.getdoc(each) or "") for each in types}
    messages[_MESSAGE] = _message(_MESSAGE, "A publication, live or replayed; an ephemeral one has no id.")
    for name, shown in (examples or {}).items():
        messages[name]["examples"] = list(shown)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Tocsin",
            "version": version,
            "description": "One broadcast domain over all workers: sockets (`tocsin.v1`, or plain) and event streams. "
            "What the types cannot say is in docs/protocol.md.",
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "sockets": {"host": "127.0.0.1:8000", "protocol": "ws", "security": _references("securitySchemes")},
            "streams": {"host": "127.0.0.1:8000", "protocol": "http", "security": _references("securitySchemes")},
        },
        "channels": _channels(list(messages)),
        "operations": _operations(),
        "components": {
            "messages": messages,
            "schemas": schemas,
            "securitySchemes": {
                "apiKey": {"type": "httpApiKey"}
                | {key: SCHEMES["apiKey"][key] for key in ("in", "name", "description")},
                "bearer": SCHEMES["bearer"],
            },
        },
    }


def _read_by_all(schema: Any) -> Any:
    """With patterns that mean the same in ECMA 262, where the end of the text is `$`."""
    if isinstance(schema, dict):
        return {
            name: value.replace(r"\Z", "$") if name == "pattern" and isinstance(value, str) else _read_by_all(value)
            for name, value in schema.items()
        }
    return [_read_by_all(value) for value in schema] if isinstance(schema, list) else schema


def _references(kind: str) -> list[dict[str, str]]:
    return [{"$ref": f"#/components/{kind}/{name}"} for name in SCHEMES]


def _message(name: str, text: str) -> dict[str, Any]:
    return {
        "name": name,
        "title": name,
        "summary": " ".join(text.split()),
        "payload": {"$ref": f"#/components/schemas/{name}"},
    }


def _message_schema() -> dict[str, Any]:
    """As REST shows it, but that an ephemeral one comes here too."""
    schema = MessageModel.model_json_schema(by_alias=True)
    schema["required"].remove("id")
    schema["title"] = _MESSAGE
    schema["properties"]["type"] = {"enum": ["message"]}
    schema["required"].insert(0, "type")
    return schema


def _channels(names: Sequence[str]) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "type": "object",
        "properties": {
            "channel": _CHANNEL | {"default": "lobby"},
            "since": _SINCE,
            "history": {"type": "integer", "minimum": 0, "maximum": 1000, "default": 0},
            "echo": {"type": "string", "enum": ["true", "false"], "default": "true"},
        },
    }
    return {
        "native": {
            "address": "/ws",
            "title": "tocsin.v1",
            "description": "With the subprotocol `tocsin.v1`: one JSON object a text frame. From a browser a token "
            "rides beside it as `tocsin.bearer.<jwt>`.",
            "servers": [{"$ref": "#/servers/sockets"}],
            "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in names},
        },
        "plain": {
            "address": "/ws",
            "title": "plain",
            "description": "Without a subprotocol: every frame is a message of one channel, verbatim.",
            "servers": [{"$ref": "#/servers/sockets"}],
            "messages": {"Frame": {"title": "Frame", "contentType": "application/octet-stream", "payload": {}}},
            "bindings": {"ws": {"method": "GET", "query": plain, "bindingVersion": "0.1.0"}},
        },
        "stream": {
            "address": "/sse",
            "title": "server-sent events",
            "description": "Events whose data are native objects; a message's event needs no name, `gap` and "
            "`reconnect` have theirs. The id of each is where to resume; of several channels it is `a=<id>,b=<id>`.",
            "servers": [{"$ref": "#/servers/streams"}],
            "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in _STREAMED},
        },
    }


def _operations() -> dict[str, Any]:
    def of(channel: str, *names: str) -> dict[str, Any]:
        return {
            "channel": {"$ref": f"#/channels/{channel}"},
            "messages": [{"$ref": f"#/channels/{channel}/messages/{name}"} for name in names],
        }

    stream_query = {
        "type": "object",
        "required": ["channel"],
        "properties": {"channel": {"type": "array", "items": _CHANNEL, "minItems": 1, "maxItems": 32}, "since": _SINCE},
    }
    found: dict[str, Any] = {}
    for command, answer in _ANSWERS.items():
        asked, told = command.__name__, answer.__name__
        found[asked[0].lower() + asked[1:]] = {
            "action": "receive",
            **of("native", asked),
            "reply": of("native", told, "Error"),
        }
    found["push"] = {"action": "send", **of("native", *_PUSHES)}
    found["publishPlain"] = {"action": "receive", **of("plain", "Frame")}
    found["broadcastPlain"] = {"action": "send", **of("plain", "Frame")}
    found["stream"] = {
        "action": "send",
        **of("stream", *_STREAMED),
        "bindings": {"http": {"method": "GET", "query": stream_query, "bindingVersion": "0.3.0"}},
    }
    return found
