"""What is published, heard live: one supervised connection with all subscriptions of this worker.

A subscription is asked for again after every loss, and is in force only when Redis has confirmed the newest request for
it: confirmations come in the order of the requests, so they are counted. What a replaced connection said is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio.connection import AbstractConnection

from app.brokers import Listener
from app.brokers.envelope import read_message
from app.brokers.link import Link, Refusal
from app.brokers.scripts import pack

CHANNELS = 1024
"""Channels in one SUBSCRIBE at most."""
PROBE = b"\0probe "
"""Begins our own probes on the control channel; nothing told to workers begins with a zero byte."""


class Reader:
    """The subscriptions of one worker.

    Args:
        make: makes an unconnected connection.
        deadline: seconds for the next confirmation; a missed one drops the connection.
        listener: told what is heard.
        prefix: of Pub/Sub channels, with the colon.
        control: Pub/Sub channels that are always subscribed; what they bring is `told`.
        on_probe: called with the nonce of each probe that has come round.
    """

    def __init__(
        self,
        make: Callable[[], AbstractConnection],
        deadline: float,
        listener: Listener,
        *,
        prefix: str,
        control: Sequence[str],
        on_probe: Callable[[bytes], None],
    ) -> None:
        self.messages = 0
        self.resubscribed = 0
        self.errors = 0
        self._listener = listener
        self._prefix = prefix
        self._deadline = deadline
        self._control = frozenset(channel.encode() for channel in control)
        self._on_probe = on_probe
        self._names: dict[bytes, str] = {}
        self._due: dict[bytes, bool] = {}
        self._asked: dict[bytes, int] = {}
        self._scheduled = False
        self._confirmations = 0
        self.link = Link("reader", make, deadline, on_up=self._on_up, on_burst=self._on_burst, on_down=self._on_down)

    @property
    def ready(self) -> bool:
        """Whether the control channels are heard: messages can come through."""
        return self.link.up and not any(channel in self._asked for channel in self._control)

    @property
    def channels(self) -> int:
        """How many channels are subscribed or being subscribed, without the control channels."""
        return len(self._names)

    @property
    def progress(self) -> int:
        """Grows with everything that is heard."""
        return self.messages + self._confirmations

    def subscribe(self, channel: str) -> None:
        """Hear a channel; `Listener.confirmed` says from when. On a known one it is a new generation."""
        name = f"{self._prefix}{{{channel}}}".encode()
        self._names[name] = channel
        self._want(name, True)

    def unsubscribe(self, channel: str) -> None:
        """Stop hearing a channel, now."""
        name = f"{self._prefix}{{{channel}}}".encode()
        if self._names.pop(name, None) is not None:
            self._want(name, False)

    def _want(self, name: bytes, wanted: bool) -> None:
        self._due.pop(name, None)
        self._due[name] = wanted
        if not self._scheduled and self.link.up:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Ask for what has become due in this turn."""
        self._scheduled = False
        if not self.link.up:
            return
        due, self._due = self._due, {}
        self._ask([name for name, wanted in due.items() if wanted])
        self._send(b"UNSUBSCRIBE", [name for name, wanted in due.items() if not wanted])

    def _ask(self, names: Sequence[bytes]) -> None:
        if not names:
            return
        asked = self._asked
        for name in names:
            asked[name] = asked.get(name, 0) + 1
        self._send(b"SUBSCRIBE", names)
        asyncio.get_running_loop().call_later(
            self._deadline, self._check_progress, self.link.connections, self._confirmations
        )

    def _send(self, command: bytes, names: Sequence[bytes]) -> None:
        for at in range(0, len(names), CHANNELS):
            self.link.send(pack((command, *names[at : at + CHANNELS])))

    def _check_progress(self, connection: int, confirmations: int) -> None:
        """The deadline of a SUBSCRIBE: some confirmation must have come since."""
        if self._asked and connection == self.link.connections and confirmations == self._confirmations:
            self.errors += 1
            self.link.drop("no confirmation in time")

    def _on_up(self) -> None:
        self._due.clear()
        self._asked.clear()
        if self.link.connections > 1:
            self.resubscribed += len(self._names)
        self._ask([*self._control, *self._names])

    def _on_burst(self, replies: list[Any]) -> None:
        names, listener, link = self._names, self._listener, self.link
        for reply in replies:
            if isinstance(reply, Refusal):
                self.errors += 1
                link.drop(f"a subscription was refused: {reply.code}")
            elif reply[0] == b"message":
                _, name, data = reply
                channel = names.get(name)
                if channel is not None:
                    self.messages += 1
                    try:
                        item = read_message(data)
                    except ValueError:
                        self.errors += 1
                        continue
                    listener.received(channel, item)
                elif name in self._control:
                    self._on_control(data)
            elif reply[0] == b"subscribe":
                self._on_confirmation(reply[1])
            if not link.up:
                return
        listener.drained()

    def _on_control(self, data: bytes) -> None:
        if data.startswith(PROBE):
            self._on_probe(data[len(PROBE) :])
        else:
            self._listener.told(data)

    def _on_confirmation(self, name: bytes) -> None:
        self._confirmations += 1
        left = self._asked[name] - 1
        if left:
            self._asked[name] = left
            return
        del self._asked[name]
        channel = self._names.get(name)
        if channel is not None and name not in self._due:
            self._listener.confirmed(channel)

    def _on_down(self) -> None:
        if not self.link.closing:
            self._listener.lost()
