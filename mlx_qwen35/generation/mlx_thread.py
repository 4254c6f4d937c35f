"""The one thread that owns MLX: arrays belong to the thread that made them, so all work on them happens here."""

from __future__ import annotations

import atexit
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
_END = object()
WAITING = 64  # items a slow reader may leave waiting before the work pauses
FAREWELL_SECONDS = 60  # for the step that runs when the program ends


class Abandoned(Exception):
    """Nobody waits for the running job any more."""


class MLXThread:
    """Runs jobs one after another, in the order they came."""

    def __init__(self) -> None:
        self._jobs: queue.Queue[Callable[[], object]] = queue.Queue()
        self._put: Callable[[Any], bool] = lambda item: False  # of the running job
        self._closing = threading.Event()
        threading.Thread(target=self._run, name="mlx", daemon=True).start()
        # A thread that is inside MLX, or leaves it, while the interpreter ends brings the process down (SIGABRT).
        atexit.register(self.close)

    def _run(self) -> None:
        while True:
            self._jobs.get()()

    def close(self) -> None:
        """Give up the running job and those that wait; return when the thread is at rest.

        The thread itself stays, since MLX's thread-local objects take the interpreter's lock when they are destroyed.
        """
        self._closing.set()
        at_rest, for_ever = threading.Event(), threading.Lock()
        for_ever.acquire()
        self._jobs.put(lambda: (at_rest.set(), for_ever.acquire()))
        if at_rest.wait(FAREWELL_SECONDS):
            time.sleep(0.02)  # from the event to the lock is a step that nothing else can tell of
        atexit.unregister(self.close)

    def emit(self, item: Any) -> None:
        """Hand out `item` now, ahead of what the running job's iterator gives next. Only for that job to call.

        Raises Abandoned when the job was given up, so that long work between two items can end.
        """
        if not self._put((item, None)):
            raise Abandoned

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
            while not (abandoned.is_set() or self._closing.is_set()):
                try:
                    items.put(item, timeout=0.1)
                    return True
                except queue.Full:
                    continue
            return False

        def job() -> None:
            self._put = put
            try:
                # A request that was given up while it waited must not start.
                if not (abandoned.is_set() or self._closing.is_set()) and all(put((item, None)) for item in make()):
                    put((_END, None))
            except Abandoned:
                return
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
