"""A few downloads at a time, and stopping them all. Knows nothing of what is downloaded."""

import queue
import threading
from collections.abc import Callable, Iterable

from mlx_qwen35.hub.cache import RemoteFile

WORKERS = 4


class Stopped(Exception):
    """Another file failed, or the person pressed Ctrl-C: end quietly, the part file stays."""


def pausing(stop: threading.Event) -> Callable[[float], None]:
    """A sleep that raises Stopped as soon as `stop` is set."""

    def pause(seconds: float) -> None:
        if stop.wait(seconds):
            raise Stopped

    return pause


def in_parallel(files: Iterable[RemoteFile], action: Callable[[RemoteFile], None], stop: threading.Event) -> None:
    """Run `action` on each file, a few at a time; the first error, or Ctrl-C, stops the others."""
    waiting: queue.SimpleQueue[RemoteFile] = queue.SimpleQueue()
    for file in files:
        waiting.put(file)
    errors: list[BaseException] = []

    def work() -> None:
        while not stop.is_set():
            try:
                action(waiting.get_nowait())
            except queue.Empty:
                return
            except BaseException as error:
                errors.append(error)
                stop.set()

    # Daemons, so that a second Ctrl-C need not wait for a stalled connection; part files survive that too.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(WORKERS)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(0.1)
    except BaseException:
        stop.set()
        for thread in threads:
            thread.join(2)
        raise
    if errors:
        raise errors[0]
