"""Hearing a channel from a terminal: what is shown of it, and how it ends.

It goes on through restarts of the service, as the client does, and ends with Ctrl-C, SIGTERM, or when nobody reads what
it writes. Then `position` says from where one can go on.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import signal
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.rule import Rule
from rich.text import Text

import tocsin
from app.exits import Exit
from app.terminal.remote import Failed, Remote
from tocsin import Change, Event, Gap, Message, State

_UNSEEN = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Characters that would move the cursor, end the line or turn the text around: whoever publishes could write anything
into the terminal of who listens."""
_LIGHTS = {State.OPEN: "green", State.CONNECTING: "yellow", State.WAITING: "yellow", State.STOPPED: "red"}


class View(Protocol):
    """Shows what is heard. Used as a context manager, around everything."""

    def show(self, event: Event) -> None:
        """A message or a gap. Raises `BrokenPipeError` when nobody reads any more."""

    def tell(self, change: Change) -> None:
        """The connection's state has changed."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""


class Lines:
    """One line a message, flushed; what is about the connection goes to stderr.

    Args:
        describe: a message or a gap as a line, or None to show nothing of it on stdout.
    """

    def __init__(self, describe: Callable[[Event], str | None]) -> None:
        self._describe = describe
        self._lost = False

    def show(self, event: Event) -> None:
        """Write it."""
        line = self._describe(event)
        if isinstance(event, Gap):
            complain(f"gap ({event.reason}): messages are missing here; it goes on after {event.position}")
        if line is not None:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()

    def tell(self, change: Change) -> None:
        """Say when the connection is lost and when it is back."""
        if change.state is State.WAITING:
            self._lost = True
            complain(f"{change.reason}; trying again in {change.delay or 0:.1f} s")
        elif change.state is State.OPEN and self._lost:
            self._lost = False
            complain("connected again")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class Screen:
    """For people: messages roll by, the last line says how the connection is."""

    def __init__(self, channel: str) -> None:
        self._channel = channel
        self._console = Console(highlight=False, soft_wrap=True)
        self._change = Change(State.CONNECTING)
        self._messages = self._gaps = self._returns = 0
        self._live = Live(console=self._console, refresh_per_second=4, transient=True, get_renderable=self._state)

    def show(self, event: Event) -> None:
        """Print it above the state."""
        if isinstance(event, Gap):
            self._gaps += 1
            title = f"gap ({event.reason}): messages are missing here"
            self._console.print(Rule(title, style="bold red", characters="━"))
        elif isinstance(event, Message):
            self._messages += 1
            at = datetime.fromtimestamp(event.at / 1000).astimezone().strftime("%H:%M:%S") if event.at else "--:--:--"
            who = visible(event.user or (event.sender or "")[:8] or "-")
            self._console.print(Text.assemble((at, "dim"), " ", (f"{who:<8}", "cyan"), " ", describe_text(event)))

    def tell(self, change: Change) -> None:
        """Change the last line."""
        self._returns += change.state is State.OPEN and self._change.state is not State.OPEN
        self._change = change

    def _state(self) -> Text:
        state = self._change.state
        text = Text.assemble(("● ", _LIGHTS[state]), f"{state}  ", (self._channel, "bold"))
        text.append(f"  {self._messages:,} messages", "dim")
        if self._gaps:
            text.append(f"  {self._gaps:,} gaps", "bold red")
        if self._returns > 1:
            text.append(f"  {self._returns - 1:,} returns", "dim")
        if state is State.WAITING:
            text.append(f"  {visible(self._change.reason)}; again in {self._change.delay or 0:.1f} s", "yellow")
        return text

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()


class Listener:
    """Hears one channel until it is told to stop.

    Args:
        patience: seconds for the first connection.

    Attributes:
        position: of the last message that was shown, or where the channel stood before it; None while it was not live.
    """

    def __init__(
        self, remote: Remote, channel: str, view: View, *, since: str | None, history: int, patience: float
    ) -> None:
        self.position: str | None = None
        self._remote = remote
        self._channel = channel
        self._view = view
        self._since = since
        self._history = history
        self._patience = patience
        self._reason = "no answer"

    async def run(self) -> None:
        """Listen. Returns after SIGTERM and when nobody reads stdout any more.

        Raises:
            Failed: refused, or the service was not reached in time.
        """
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        ended = asyncio.Event()

        def end() -> None:
            if not ended.is_set():
                ended.set()
                task.cancel()

        loop.add_signal_handler(signal.SIGTERM, end)
        if stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode):
            loop.add_reader(sys.stdout, end)  # of a pipe's write end: the other end was closed
        try:
            with self._view:
                await self._listen()
        except asyncio.CancelledError:
            if not ended.is_set():
                raise
        except BrokenPipeError:
            pass
        except tocsin.TocsinError as error:
            raise Failed(*self._remote.judge(error)) from error

    async def _listen(self) -> None:
        remote = self._remote
        try:
            async with asyncio.timeout(self._patience):
                client = await tocsin.connect(
                    remote.socket, token=remote.token, api_key=remote.api_key, on_state=self._tell
                )
        except TimeoutError:
            raise Failed(Exit.UNREACHABLE, f"{remote.http} cannot be reached: {self._reason}") from None
        async with client, client.subscribe(self._channel, since=self._since, history=self._history) as room:
            self.position = room.position
            async for event in room:
                self._view.show(event)
                self.position = room.position

    def _tell(self, change: Change) -> None:
        if change.state is State.WAITING:
            self._reason = change.reason
        self._view.tell(change)


def make_view(channel: str, *, as_json: bool) -> View:
    """A screen on a terminal, lines elsewhere."""
    if as_json:
        return Lines(describe_json)
    if sys.stdout.isatty():
        return Screen(channel)
    return Lines(lambda event: describe_text(event) if isinstance(event, Message) else None)


def describe_json(event: Event) -> str | None:
    """A message or a gap as one line of JSON, with the wire's names."""
    shown: dict[str, Any]
    if isinstance(event, Message):
        binary = isinstance(event.data, bytes)
        data = base64.b64encode(event.data).decode() if isinstance(event.data, bytes) else event.data
        shown = {"type": "message", "channel": event.channel, "id": event.id, "base64" if binary else "data": data}
        shown |= {"from": event.sender, "user": event.user, "at": event.at}
    elif isinstance(event, Gap):
        shown = {"type": "gap", "channel": event.channel, "reason": event.reason, "position": event.position}
    else:
        return None
    return json.dumps(shown, ensure_ascii=False, separators=(",", ":"))


def describe_text(message: Message) -> str:
    """What a message says, on one line: text as it is, JSON as its text, bytes as base64."""
    if isinstance(message.data, str):
        return visible(message.data)
    if isinstance(message.data, bytes):
        return base64.b64encode(message.data).decode()
    return visible(json.dumps(message.data, ensure_ascii=False, separators=(",", ":")))


def visible(text: str) -> str:
    """Text in which nothing moves the cursor."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def complain(sentence: str) -> None:
    """One line on stderr."""
    with suppress(BrokenPipeError):
        print(f"tocsin: {sentence}", file=sys.stderr)  # noqa: T201 - words of the command
