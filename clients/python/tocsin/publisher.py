"""Publishing over REST: from a script, a thread, Django, Celery (`Publisher`), or asyncio (`AsyncPublisher`).

Each message has a key, so a request that was cut off is repeated, and publishes once.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

try:
    import httpx
except ImportError as error:  # pragma: no cover - the message is all there is
    raise ImportError("publishing over REST needs httpx: pip install 'tocsin[rest]'") from error

from tocsin.chances import Chances
from tocsin.errors import TocsinError
from tocsin.events import Ack
from tocsin.line import Backoff
from tocsin.posting import PATH, Fault, Outcomes, Post, Reply, Request, Steps, Terms, deliver

TIMEOUT = 30.0
_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class _Publishing:
    """What both publishers are given."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        token: str | Callable[[], Any] | None = None,
        timeout: float = TIMEOUT,
        key_seconds: float = 120.0,
        tls: ssl.SSLContext | None = None,
        backoff: Backoff | None = None,
        chances: Chances | None = None,
    ) -> None:
        """Where to publish, and as whom.

        Args:
            url: of the service: `http://127.0.0.1:8000`.
            api_key: sent as `X-API-Key`.
            token: in its place: a JWT, or what makes one; it is kept until the service refuses it.
            timeout: seconds for each call, all repetitions included.
            key_seconds: `TOCSIN_KEY_SECONDS` of the service.
            tls: for `https://`; without it the machine's default.
            backoff: how long to wait between tries.
            chances: clock and randomness.

        Raises:
            ValueError: the URL.
        """
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"not an HTTP URL: {url}")
        # Without TLS there is no need to read all certificates of the machine.
        self._verify: ssl.SSLContext | bool = tls or (
            parts.scheme == "https" or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        )
        self._url = url.rstrip("/") + PATH
        self._api_key = api_key
        self._token = token
        self._shown: str | None = token if isinstance(token, str) else None
        self._timeout = timeout
        self._key_seconds = key_seconds
        self._backoff = backoff or Backoff()
        self._chances = chances or Chances()
        self._clients: dict[int, httpx.Client] = {}

    def _steps(self, posts: Iterable[Post | tuple[str, Any]], timeout: float | None) -> Steps:
        terms = Terms(
            self._timeout if timeout is None else timeout,
            self._chances.clock,
            self._chances.random,
            self._key_seconds,
            self._backoff,
            callable(self._token),
        )
        return deliver([post if isinstance(post, Post) else Post(*post) for post in posts], terms)

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        if self._api_key is not None:
            headers["X-API-Key"] = self._api_key
        if self._shown is not None:
            headers["Authorization"] = f"Bearer {self._shown}"
        return headers


class Publisher(_Publishing):
    """Publishes and waits. May be shared by threads, and used after a fork."""

    def publish(
        self, channel: str, data: Any, key: str | None = None, *, ephemeral: bool = False, timeout: float | None = None
    ) -> Ack:
        """Publish one message exactly once. Returns when it is in the log.

        Args:
            channel: 1 to 128 of `A-Z a-z 0-9 _ . : @ -`.
            data: any JSON; bytes are published as binary.
            key: names this message, 16 to 64 of `A-Z a-z 0-9 _ -`; without one it is made. Give one where your own
                code may call again for the same message: a job that is repeated, for instance.
            ephemeral: not logged, not repeated.
            timeout: seconds, in place of the publisher's.

        Raises:
            PublishTimeout: given up; with `sent` the outcome is unknown.
            TocsinError: refused.
            TypeError, ValueError: `data` is no JSON.
        """
        return _only(self.publish_many([Post(channel, data, key, ephemeral)], timeout=timeout))

    def publish_many(self, posts: Iterable[Post | tuple[str, Any]], *, timeout: float | None = None) -> Outcomes:
        """Publish many messages in their order, up to 1,000 a request. Returns for each its `Ack` or its error.

        Args:
            posts: `Post(channel, data, key)`, or pairs of channel and data.
            timeout: seconds in all, in place of the publisher's.

        Raises:
            TocsinError: it is refused before anything can have been published.
            TypeError, ValueError: `data` is no JSON.
        """
        steps = self._steps(posts, timeout)
        answer: Reply | Fault | None = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as end:
                outcomes: Outcomes = end.value
                return outcomes
            if isinstance(step, Request):
                answer = self._post(step)
            else:
                answer = None
                time.sleep(step.seconds)

    def close(self) -> None:
        """Close the connections. The publisher may be used again."""
        client = self._clients.pop(os.getpid(), None)
        if client is not None:
            client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connections(self) -> httpx.Client:
        """Those of this process: a child must not use its parent's sockets."""
        client = self._clients.get(os.getpid())
        if client is None:
            made = httpx.Client(verify=self._verify)
            client = self._clients.setdefault(os.getpid(), made)  # of threads that come at once the first one's
            if client is not made:
                made.close()
        return client

    def _post(self, request: Request) -> Reply | Fault:
        if callable(self._token) and (self._shown is None or request.renew):
            self._shown = self._token()
        try:
            answer = self._connections().post(
                self._url, content=request.body, headers=self._headers(), timeout=request.seconds
            )
        except httpx.HTTPError as error:
            return _fault(error)
        return _reply(answer)


class AsyncPublisher(_Publishing):
    """The same on asyncio; its `token` may be made by a coroutine function. Each event loop has connections of its own:
    `close` before a loop ends, where you have several.
    """

    _client: httpx.AsyncClient | None = None
    _loop: asyncio.AbstractEventLoop | None = None

    async def publish(
        self, channel: str, data: Any, key: str | None = None, *, ephemeral: bool = False, timeout: float | None = None
    ) -> Ack:
        """`Publisher.publish`."""
        return _only(await self.publish_many([Post(channel, data, key, ephemeral)], timeout=timeout))

    async def publish_many(self, posts: Iterable[Post | tuple[str, Any]], *, timeout: float | None = None) -> Outcomes:
        """`Publisher.publish_many`."""
        steps = self._steps(posts, timeout)
        answer: Reply | Fault | None = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as end:
                outcomes: Outcomes = end.value
                return outcomes
            if isinstance(step, Request):
                answer = await self._post(step)
            else:
                answer = None
                await asyncio.sleep(step.seconds)

    async def close(self) -> None:
        """Close the connections. The publisher may be used again."""
        client, self._client = self._client, None
        if client is not None and self._loop is asyncio.get_running_loop():
            await client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _post(self, request: Request) -> Reply | Fault:
        if callable(self._token) and (self._shown is None or request.renew):
            made: str | Awaitable[str] = self._token()
            self._shown = await made if inspect.isawaitable(made) else made
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:  # sockets live and die with their loop
            self._client, self._loop = httpx.AsyncClient(verify=self._verify), loop
        try:
            answer = await self._client.post(
                self._url, content=request.body, headers=self._headers(), timeout=request.seconds
            )
        except httpx.HTTPError as error:
            return _fault(error)
        return _reply(answer)


def _only(outcomes: Outcomes) -> Ack:
    [outcome] = outcomes
    if isinstance(outcome, TocsinError):
        raise outcome
    return outcome


def _reply(answer: httpx.Response) -> Reply:
    return Reply(answer.status_code, answer.content, answer.headers.get("Retry-After"))


def _fault(error: httpx.HTTPError) -> Fault:
    return Fault(f"{type(error).__name__}: {error}", sent=not isinstance(error, _UNSENT))
