"""Waiting for what another thread or process brings about."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 60.0  # seconds; reached only when something is broken


def wait_for(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Until it is true. Raises AssertionError when it does not come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"it did not come true within {seconds:g} s"
        time.sleep(0.005)
