"""How a program that serves ends: Ctrl-C, and what a service manager sends, let it close what it has open."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ended_in_order() -> Iterator[None]:
    """Around uvicorn, which hands on the signal that ended it: SIGTERM, too, comes as the KeyboardInterrupt that is
    suppressed here, since by default it would end the process before the model has saved what it knows."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's affair
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
