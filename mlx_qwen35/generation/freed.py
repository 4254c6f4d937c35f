"""Memory that was freed goes back to the system when nothing is computed."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable

import mlx.core as mx


def give_back() -> None:
    """MLX's freed buffers, and on Linux pages of the heap that nothing is left on."""
    mx.clear_cache()
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], object] | None:
    """glibc's, which other systems and C libraries have not."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim.argtypes = [ctypes.c_size_t]
    return trim
