"""A program on a pseudo-terminal, and what its user sees: keys in, a screen out.

The screen is pyte's, an independent terminal emulator, so that a test reads lines and not escape sequences.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO

import pyte

PATIENCE = 60.0  # seconds; reached only when something hangs


class PseudoTerminal:
    """Runs a command of `python -m mlx_qwen35` on a terminal of `columns` x `rows`."""

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        columns: int = 80,
        rows: int = 24,
        stdout: IO[bytes] | None = None,
        stdin: IO[bytes] | None = None,
    ) -> None:
        """stdout, stdin: files in place of the terminal."""
        self.screen = pyte.HistoryScreen(columns, rows, history=20_000)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = bytearray()
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlx_qwen35", *arguments],
            stdin=slave if stdin is None else stdin,
            stdout=slave if stdout is None else stdout,
            stderr=slave,
            # Without an answer to its question where the cursor is, prompt_toolkit would wait and warn.
            env={"TERM": "xterm-256color", **environment, "PROMPT_TOOLKIT_NO_CPR": "1"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(2, termios.TIOCSCTTY, 0),
        )
        os.close(slave)

    def __enter__(self) -> PseudoTerminal:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    def send(self, keys: str) -> None:
        """Type, as fast as the program reads."""
        data = keys.encode()
        while data:
            # Read meanwhile, or both sides could wait for the other's full buffer.
            self._read(0)
            if select.select([], [self._master], [], 0.1)[1]:
                data = data[os.write(self._master, data[:1024]) :]

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.send("\x03")

    @property
    def echoes(self) -> bool:
        """Whether the terminal shows what is typed, as it does for a shell."""
        return bool(termios.tcgetattr(self._master)[3] & termios.ECHO)

    @property
    def text(self) -> str:
        """Everything on the screen and scrolled off it, without trailing spaces."""
        above = ["".join(line[x].data for x in range(self.screen.columns)) for line in self.screen.history.top]
        return "\n".join(line.rstrip() for line in [*above, *self.screen.display])

    def wait_for(self, what: str | Callable[[str], bool], seconds: float = PATIENCE) -> str:
        """Read until the text appears (or a function of all text says so); return all text."""
        found = what if callable(what) else lambda text: what in text
        end = time.monotonic() + seconds
        while not found(self.text):
            if time.monotonic() > end or (not self._read(0.1) and self.process.poll() is not None):
                if found(self.text):
                    break
                raise AssertionError(f"waited for {what!r}; the screen shows:\n{self.text.strip()}")
        return self.text

    def wait_for_prompt(self) -> str:
        """Until the last line with anything on it is the prompt."""
        return self.wait_for(lambda text: text.rstrip().endswith("\n>"))

    def finish(self) -> int:
        """Wait for the program to end; its exit status."""
        end = time.monotonic() + PATIENCE
        while self.process.poll() is None and time.monotonic() < end:
            self._read(0.1)
        self._read(0)
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            raise AssertionError(f"still running; the screen shows:\n{self.text.strip()}")
        return self.process.returncode

    def _read(self, seconds: float) -> bool:
        got = False
        while select.select([self._master], [], [], 0 if got else seconds)[0]:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # Linux's way to say that the other side is closed
                return got
            if not data:
                return got
            got = True
            self.raw += data
            self._stream.feed(data)
        return got
