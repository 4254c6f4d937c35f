"""An answer's events, pulled on a thread of their own, so that a front end can paint and obey between two slow ones.

Whoever makes the events may ask the person something in between: whether a tool may run.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

TICK_SECONDS = 1 / 15
_END = object()


class EventPump:
    """The events of an answer, or None where none came for a fifteenth of a second.

    What makes them may `ask` in between: the question comes among the events, and `reply` answers it. `stop` may be
    called from a signal handler; what the generator then still does, it does alone.
    """

    def __init__(self, start: Callable[[], Iterator[Any]]) -> None:
        self._start = start
        self._replies: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="answer", daemon=True)

    @property
    def stopped(self) -> bool:
        return self._stopped

    def stop(self) -> None:
        """End the answer after its next event; iteration ends at once."""
        self._stopped = True
        self._replies.put(None)

    def ask(self, question: Any) -> Any:
        """From the thread that makes events: what `reply` is given; None when the answer was stopped."""
        self._items.put(question)
        return None if self._stopped else self._replies.get()

    def reply(self, value: Any) -> None:
        """Answer what was asked last."""
        self._replies.put(value)

    def join(self, seconds: float) -> None:
        """Wait for the work to have ended."""
        self._thread.join(seconds)

    def __iter__(self) -> Iterator[Any]:
        self._thread.start()
        while not self._stopped:
            try:
                item = self._items.get(timeout=TICK_SECONDS)
            except queue.Empty:
                yield None
                continue
            if item is _END:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def _run(self) -> None:
        events = iter(())
        try:
            events = self._start()
            for event in events:
                self._items.put(event)
                if self._stopped:
                    break
        except BaseException as error:
            self._items.put(error)
        finally:
            if close := getattr(events, "close", None):
                close()
            self._items.put(_END)
