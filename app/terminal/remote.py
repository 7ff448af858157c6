"""A service somewhere, as a command uses it; and how a command fails."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from app.exits import Exit
from tocsin.errors import TRANSIENT, TocsinError

_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
_HTTP = {"ws": "http", "wss": "https"}


class Failed(Exception):
    """The command ends here; the message is one sentence for the operator."""

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Remote:
    """Where, and as whom.

    Attributes:
        socket: the WebSocket address: `ws://host:port/ws`.
        http: the address of the service: `http://host:port`.
    """

    socket: str
    http: str
    token: str | None = None
    api_key: str | None = None

    @classmethod
    def read(cls, url: str, *, token: str | None = None, api_key_file: Path | None = None) -> Remote:
        """From what an operator gives: an address of http, https, ws or wss, with or without `/ws` at its end.

        Raises:
            Failed: this is no address, or no key.
        """
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError:
            raise Failed(Exit.USAGE, "--url: this is no address; allowed is http://host:port or https://host") from None
        if parts.scheme not in _SCHEMES or not parts.hostname:
            raise Failed(Exit.USAGE, f"--url: {url} is no address; allowed is http://host:port or https://host")
        scheme, path = _SCHEMES[parts.scheme], parts.path.rstrip("/").removesuffix("/ws")
        return cls(
            urlunsplit((scheme, parts.netloc, f"{path}/ws", "", "")),
            urlunsplit((_HTTP[scheme], parts.netloc, path, "", "")),
            _header(token or None, "token"),
            _header(_read_api_key(api_key_file), "API key"),
        )

    def judge(self, error: TocsinError) -> tuple[Exit, str]:
        """How a command ends after this error, and what it says."""
        if getattr(error, "sent", True) is False:
            return Exit.UNREACHABLE, f"{self.http} cannot be reached: {error.message}"
        again = error.code in TRANSIENT or isinstance(error, TimeoutError)
        return (Exit.UNREACHABLE if again else Exit.REFUSED), f"{error.message} ({error.code})"


def _read_api_key(path: Path | None) -> str | None:
    if path is None:
        return os.environ.get("TOCSIN_API_KEY") or None
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise Failed(Exit.USAGE, f"cannot read the API key from {path}: {reason}") from error


def _header(value: str | None, name: str) -> str | None:
    if value is not None and not (value.isascii() and value.isprintable()):
        raise Failed(Exit.USAGE, f"the {name} has characters that no header may carry")
    return value
