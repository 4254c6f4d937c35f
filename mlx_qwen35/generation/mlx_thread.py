"""The one thread that owns MLX: arrays belong to the thread that made them, so all work on them happens here."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
_END = object()
WAITING = 64  # items a slow reader may leave waiting before the work pauses


class MLXThread:
    """Runs jobs one after another, in the order they came."""

    def __init__(self) -> None:
        self._jobs: queue.Queue[Callable[[], None]] = queue.Queue()
        threading.Thread(target=self._run, name="mlx", daemon=True).start()

    def _run(self) -> None:
        while True:
            self._jobs.get()()

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` on the thread and return what it returns, or raise what it raises."""
        return next(self.stream(lambda: iter([function()])))

    def stream(self, make: Callable[[], Iterator[T]]) -> Generator[T, None, None]:
        """Run the iterator that `make` gives on the thread; yield its items here.

        Closing this generator stops the work at its next item.
        """
        items: queue.Queue[Any] = queue.Queue(WAITING)
        abandoned = threading.Event()

        def put(item: Any) -> bool:
            while not abandoned.is_set():
                try:
                    items.put(item, timeout=0.1)
                    return True
                except queue.Full:
                    continue
            return False

        def job() -> None:
            try:
                # A request that was given up while it waited must not start.
                if not abandoned.is_set() and all(put((item, None)) for item in make()):
                    put((_END, None))
            except BaseException as error:
                put((_END, error))

        self._jobs.put(job)
        try:
            while True:
                item, error = items.get()
                if error is not None:
                    raise error
                if item is _END:
                    return
                yield item
        finally:
            abandoned.set()
