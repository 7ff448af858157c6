"""`connect`: from addresses and options to a client."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Generator, Mapping
from types import TracebackType
from typing import Any, Generic, Literal, Protocol, TypeVar, overload
from urllib.parse import urlsplit

from tocsin import frames
from tocsin.chances import Chances
from tocsin.client import Client
from tocsin.driver import Target, Token
from tocsin.errors import Stopped, Timeout
from tocsin.events import Change
from tocsin.line import Backoff
from tocsin.plain import PING_SECONDS, Plain, PlainClient
from tocsin.plain import SUBPROTOCOL as PLAIN
from tocsin.session import Session


class Startable(Protocol):
    """What can be made and then started."""

    @property
    def trouble(self) -> str:
        """Why there was no connection when there was none last."""

    async def start(self) -> None:
        """Connect, and wait for the first `open`."""

    async def close(self) -> None:
        """Close the connection for good."""


Kind = TypeVar("Kind", bound=Startable)


class Connecting(Generic[Kind]):
    """What `connect` returns: await it, or enter it with `async with`, for the client, which is open then."""

    def __init__(self, make: Callable[[], Kind], timeout: float | None) -> None:
        self._make = make
        self._timeout = timeout
        self._client: Kind | None = None

    def __await__(self) -> Generator[Any, None, Kind]:
        return self._start().__await__()

    async def _start(self) -> Kind:
        client = self._make()
        limit = asyncio.timeout(self._timeout)
        try:
            async with limit:
                await client.start()
        except TimeoutError:
            if limit.expired():
                raise Timeout(f"no connection within {self._timeout} s: {client.trouble}") from None
            raise
        except Stopped as error:
            raise error.__cause__ or error from None  # what the maker of tokens has raised is its caller's own
        return client

    async def __aenter__(self) -> Kind:
        self._client = await self._start()
        return self._client

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._client is not None
        await self._client.close()


@overload
def connect(
    url: str,
    *,
    token: Token | None = None,
    api_key: str | None = None,
    plain: Literal[False] = False,
    outbox: int = 1000,
    queue: int = 1000,
    on_state: Callable[[Change], None] | None = None,
    headers: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
    timeout: float | None = None,
    backoff: Backoff | None = None,
    chances: Chances | None = None,
) -> Connecting[Client]: ...


@overload
def connect(
    url: str,
    *,
    token: Token | None = None,
    api_key: str | None = None,
    plain: Literal[True],
    outbox: int = 1000,
    queue: int = 1000,
    on_state: Callable[[Change], None] | None = None,
    headers: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
    timeout: float | None = None,
    backoff: Backoff | None = None,
    chances: Chances | None = None,
) -> Connecting[PlainClient]: ...


def connect(
    url: str,
    *,
    token: Token | None = None,
    api_key: str | None = None,
    plain: bool = False,
    outbox: int = 1000,
    queue: int = 1000,
    on_state: Callable[[Change], None] | None = None,
    headers: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
    timeout: float | None = None,
    backoff: Backoff | None = None,
    chances: Chances | None = None,
) -> Connecting[Client] | Connecting[PlainClient]:
    """Connect to a service, and stay connected: `async with tocsin.connect(url) as client`, or `await` it.

    Entering waits for the first connection, and raises when coming back would not help: `Timeout` after `timeout`, what
    `token` has raised, or the service's refusal. Each failed try is a warning of the logger `tocsin`.

    Args:
        url: `ws://host/ws` or `wss://host/ws`; plain with the query `?channel=...`.
        token: a JWT, or what makes one (it may be async): called before each connection, before the end of the token
            in use, and once when the service has refused one. It may raise `Unauthorized` to stop for good.
        api_key: in place of a token.
        plain: speak `tocsin.plain`: messages as they are, without ids, answers and resuming.
        outbox: publishes and reads that may wait for their answers.
        queue: events of a subscription that may wait to be iterated over.
        on_state: called with each change of the connection's state; must return at once.
        headers: sent with each upgrade.
        tls: for `wss://`; without it the machine's default.
        timeout: seconds for the first connection; None: as long as it takes.
        backoff: how long to wait between connections.
        chances: clocks and randomness.

    Raises:
        ValueError: the URL, or a queue or an outbox for less than 1.
    """
    if urlsplit(url).scheme not in {"ws", "wss"} or not urlsplit(url).hostname:
        raise ValueError(f"not a WebSocket URL: {url}")
    if min(queue, outbox) < 1:
        raise ValueError("queue and outbox hold at least 1")
    given = chances or Chances()
    pauses, renewable = backoff or Backoff(), callable(token)
    options: dict[str, Any] = {"token": token, "api_key": api_key, "headers": dict(headers or {}), "tls": tls}

    def make_client() -> Client:
        session = Session(backoff=pauses, chance=given.random, outbox=outbox, wall=given.wall if renewable else None)
        target = Target(lambda: url, frames.SUBPROTOCOL, **options)
        return Client(session, target, queue=queue, on_state=on_state, clock=given.clock)

    def make_plain() -> PlainClient:
        machine = Plain(url, backoff=pauses, chance=given.random, renewable=renewable)
        target = Target(lambda: machine.url, PLAIN, ping=PING_SECONDS, **options)
        return PlainClient(machine, target, queue=queue, on_state=on_state, clock=given.clock)

    return Connecting(make_plain, timeout) if plain else Connecting(make_client, timeout)
