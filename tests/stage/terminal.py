"""The command line as a process that a test talks to while it runs."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.stage.service import until

ROOT = Path(__file__).parents[2]
_END = b"\0end of the command\0"
"""Written into its terminal after its last word: of a terminal that is closed the last bytes may be lost."""
_MOVES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def environment(**settings: str) -> dict[str, str]:
    """This process's environment with these TOCSIN_* variables (without the prefix, in lower case) and no others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TOCSIN_")}
    return kept | {f"TOCSIN_{name.upper()}": value for name, value in settings.items()}


class Command:
    """`tocsin ...`, its input and its output. Used as a context manager; ended by whatever means.

    Args:
        terminal: whether its stdout and stderr are a terminal, of 100 columns.
    """

    def __init__(self, *arguments: str, terminal: bool = False, **settings: str) -> None:
        self._arguments = arguments
        self._settings = settings
        self._terminal = terminal
        self._read: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self._readers: list[threading.Thread] = []
        self._inner = -1
        self.process: subprocess.Popen[bytes]

    @property
    def stdout(self) -> str:
        """What it has said so far; of a terminal without colours and movements."""
        return _MOVES.sub("", self._read["stdout"].decode(errors="replace"))

    @property
    def stderr(self) -> str:
        """Likewise."""
        return self._read["stderr"].decode(errors="replace")

    def lines(self, count: int, seconds: float = 20) -> list[str]:
        """Wait for so many lines of stdout."""
        until(lambda: self.stdout.count("\n") >= count, seconds, f"{count} lines of {self._arguments}")
        return self.stdout.splitlines()

    def wait_for(self, words: str, seconds: float = 20) -> None:
        """Wait until it has said this, on stdout or stderr."""
        until(lambda: words in self.stdout + self.stderr, seconds, f"{words!r} from {self._arguments}")

    def write(self, text: str) -> None:
        """Into its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def end(self, number: int | None = None, seconds: float = 20) -> int:
        """Close its input or send a signal, and wait for its exit status."""
        if number is not None:
            self.process.send_signal(number)
        elif self.process.stdin is not None:
            self.process.stdin.close()
        status = self.process.wait(seconds)
        self._read_all(seconds)
        return status

    def _read_all(self, seconds: float) -> None:
        if self._inner >= 0:
            os.write(self._inner, _END)
        for reader in self._readers:
            reader.join(seconds)
        if self._inner >= 0:
            os.close(self._inner)
            self._inner = -1

    def __enter__(self) -> Self:
        outer, inner = pty.openpty() if self._terminal else (-1, subprocess.PIPE)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app.cli", *self._arguments],
            env=environment(**self._settings) | ({"TERM": "xterm", "COLUMNS": "100"} if self._terminal else {}),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=inner,
            stderr=inner,
        )
        if self._terminal:
            self._inner = inner
            self._follow("stdout", outer)
        else:
            assert self.process.stdout is not None
            assert self.process.stderr is not None
            self._follow("stdout", self.process.stdout.fileno())
            self._follow("stderr", self.process.stderr.fileno())
        return self

    def _follow(self, name: str, descriptor: int) -> None:
        def read() -> None:
            told = self._read[name]
            while data := os.read(descriptor, 65_536):
                told.extend(data)
                if told.endswith(_END):
                    del told[-len(_END) :]
                    os.close(descriptor)
                    return

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        self._readers.append(reader)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(self.stdout, self.stderr)
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        self._read_all(10)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
