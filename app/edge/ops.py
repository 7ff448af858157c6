"""What operators ask: alive, ready, metrics; and what browsers load: the page with its assets, the client."""

from __future__ import annotations

import hashlib
import hmac
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.core.errors import NotFound, Unauthorized
from app.edge.answers import json
from app.engine.metrics import CONTENT_TYPE, render
from app.engine.worker import Worker

HEALTH = frozenset({"/livez", "/readyz", "/healthz"})
"""Answered to everybody: they say nothing but how the service is."""
CSP = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
ASSET_HEADERS = {"x-content-type-options": "nosniff", "cache-control": "no-cache"}
PAGE_HEADERS = ASSET_HEADERS | {"content-security-policy": CSP, "referrer-policy": "no-referrer"}
CLIENT_HEADERS = ASSET_HEADERS | {"cross-origin-resource-policy": "cross-origin"}
"""A page of another origin loads the client by `import`, also one that asks for isolation (COEP `require-corp`)."""


@dataclass(frozen=True)
class Ops:
    """The handlers for operators and the page.

    Attributes:
        metrics_token: bearer token that /metrics asks for, or None.
    """

    worker: Worker
    metrics_token: str | None

    @cached_property
    def assets(self) -> Mapping[str, bytes]:
        """The files of the page by name; nothing else is served."""
        folder = files("app.edge").joinpath("page")
        return {entry.name: entry.read_bytes() for entry in folder.iterdir() if not entry.name.startswith("_")}

    @cached_property
    def client(self) -> tuple[bytes, str]:
        """The JavaScript client as one minified module, and its entity tag."""
        module = files("app.edge").joinpath("client", "tocsin.js").read_bytes()
        return module, f'"{hashlib.sha256(module).hexdigest()[:32]}"'

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter()

        @router.head("/livez", include_in_schema=False)
        @router.get("/livez", tags=["operations"])
        async def alive() -> dict[str, str]:
            """200 while the process turns its loop, whatever the store does."""
            return {"status": "alive"}

        @router.head("/readyz", include_in_schema=False)
        @router.get("/readyz", tags=["operations"])
        async def ready() -> Response:
            """200 when this worker can serve, else 503 with the reasons."""
            return self._ready()

        @router.head("/healthz", include_in_schema=False)
        @router.get("/healthz", tags=["operations"])
        async def healthy() -> Response:
            """The same as /readyz."""
            return self._ready()

        @router.get("/metrics", tags=["operations"], response_class=Response)
        async def metrics(request: Request) -> Response:
            """Prometheus text for all workers of this node."""
            if self.metrics_token is not None:
                shown = request.headers.get("authorization", "")
                if not hmac.compare_digest(shown.encode(), f"Bearer {self.metrics_token}".encode()):
                    raise Unauthorized("metrics need the token of TOCSIN_METRICS_TOKEN")
            return Response(render(await self.worker.workers()), media_type=CONTENT_TYPE)

        @router.head("/", include_in_schema=False)
        @router.get("/", include_in_schema=False)
        async def page() -> Response:
            return self._asset("index.html")

        @router.get("/page/{name}", include_in_schema=False)
        async def asset(name: str) -> Response:
            return self._asset(name)

        @router.head("/client/tocsin.js", include_in_schema=False)
        @router.get("/client/tocsin.js", include_in_schema=False)
        async def client(request: Request) -> Response:
            module, tag = self.client
            headers = CLIENT_HEADERS | {"etag": tag}
            known = request.headers.get("if-none-match", "")
            if known == "*" or tag in {each.strip().removeprefix("W/") for each in known.split(",")}:
                return Response(status_code=304, headers=headers)
            return Response(module, media_type="text/javascript", headers=headers)

        return router

    def _ready(self) -> Response:
        problems = self.worker.problems()
        body: dict[str, Any] = {"status": "not ready" if problems else "ready", "reasons": problems}
        return json(503 if problems else 200, body, {"cache-control": "no-store"})

    def _asset(self, name: str) -> Response:
        found = self.assets.get(name)
        if found is None:
            raise NotFound("there is no such file")
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        return Response(found, media_type=kind, headers=PAGE_HEADERS)
