"""The one thread that owns MLX: arrays belong to the thread that made them, so all work on them happens here."""

from __future__ import annotations

import atexit
import queue
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from mlx_qwen35.errors import BusyError

T = TypeVar("T")
FAREWELL_SECONDS = 60  # for the step that runs when the program ends


class MLXThread:
    """Runs jobs one after another, in the order they came."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._closing, self._at_rest = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._ident = 0
        started = threading.Event()
        threading.Thread(target=self._run, args=[started], name="mlx", daemon=True).start()
        started.wait()
        # A thread that is inside MLX, or leaves it, while the interpreter ends brings the process down (SIGABRT).
        atexit.register(self.close)

    def _run(self, started: threading.Event) -> None:
        self._ident = threading.get_ident()
        started.set()
        while True:
            try:
                self._jobs.get()()
            except BaseException:  # a defect; without the thread nobody would ever be answered again
                traceback.print_exc()

    @property
    def closing(self) -> bool:
        """Whether jobs that run should end."""
        return self._closing.is_set()

    def post(self, job: Callable[[], object]) -> bool:
        """Run `job`, which should not raise, after all that came before; False, and it never runs, once closed."""
        with self._lock:
            if not self.closing:
                self._jobs.put(job)
            return not self.closing

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` on the thread and return what it returns, or raise what it raises.

        Raises BusyError when the thread was closed.
        """
        if threading.get_ident() == self._ident:
            return function()
        results: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

        def job() -> None:
            try:
                results.put((function(), None))
            except BaseException as error:
                results.put((None, error))

        if not self.post(job):
            raise BusyError("The model was closed.")
        result, error = results.get()
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """Take no more jobs, let those in line end, and return when the thread is at rest.

        The thread itself stays, since MLX's thread-local objects take the interpreter's lock when they are destroyed.
        """
        for_ever = threading.Lock()
        for_ever.acquire()
        with self._lock:
            self._closing.set()
            self._jobs.put(lambda: (self._at_rest.set(), for_ever.acquire()))
        if self._at_rest.wait(FAREWELL_SECONDS):
            time.sleep(0.02)  # from the event to the lock is a step that nothing else can tell of
        atexit.unregister(self.close)
