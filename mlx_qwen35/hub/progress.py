"""How a download is shown: counted bytes to a callback, by default a bar on stderr."""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

GB = 1e9


@dataclass(frozen=True)
class Progress:
    """Bytes done of a total, and bytes a second over the last seconds."""

    name: str
    done: int
    total: int
    rate: float


ProgressCallback = Callable[[Progress], None]


class Meter:
    """Counts bytes from several threads; calls back at most ten times a second, and once at the end."""

    def __init__(self, name: str, total: int, callback: ProgressCallback) -> None:
        self.name, self.total, self.done = name, total, 0
        self._callback = callback
        self._lock = threading.Lock()
        self._told = 0.0
        self._arrivals: deque[tuple[float, int]] = deque()

    def found(self, count: int) -> None:
        """Bytes that were here before: done, but they say nothing about the rate."""
        self._add(count, arrived=0)

    def advance(self, count: int) -> None:
        self._add(count, arrived=max(0, count))

    def _add(self, count: int, arrived: int) -> None:
        now = time.monotonic()
        with self._lock:
            self.done += count
            self._arrivals.append((now, arrived))
            while self._arrivals[0][0] < now - 5:
                self._arrivals.popleft()
            if now - self._told < 0.1 and self.done != self.total:
                return
            self._told = now
            seconds = max(now - self._arrivals[0][0], 0.1)
            rate = sum(size for _, size in self._arrivals) / seconds
            self._callback(Progress(self.name, self.done, self.total, rate))


class Bar:
    """The default: a bar on a terminal, else a line for every tenth; on stderr, so that stdout stays clean."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._tenths = 0
        self._closed = False

    def note(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def __call__(self, progress: Progress) -> None:
        if self._closed:
            return  # a worker that has not yet noticed the end
        if not sys.stderr.isatty():
            tenths = 10 * progress.done // max(1, progress.total)
            if tenths > self._tenths:
                self._tenths = tenths
                self.note(f"{progress.name}: {gigabytes(progress.done)} of {gigabytes(progress.total)}")
            return
        if self._bar is None:
            self._bar = _rich_bar()
            self._task = self._bar.add_task(progress.name, total=progress.total)
            self._bar.start()
        self._bar.update(self._task, completed=progress.done, total=progress.total)

    def close(self) -> None:
        self._closed = True
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def gigabytes(size: float) -> str:
    """A size as people read it: 9.3 GB, 12 MB."""
    return f"{size / GB:.1f} GB" if size >= 0.95 * GB else f"{size / 1e6:.1f} MB"


def _rich_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress("{task.description}", *columns, console=Console(stderr=True))
