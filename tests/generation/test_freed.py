"""What was freed goes back to the system."""

from __future__ import annotations

import platform

import psutil
import pytest

from mlx_qwen35.generation.freed import give_back

BLOCK, BLOCKS = 64 << 10, 2_000  # smaller than what glibc gives back by itself


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what this gives back")
def test_pages_of_the_heap_that_nothing_is_left_on_go_back() -> None:
    blocks = [b"x" * BLOCK for _ in range(BLOCKS)]
    last = blocks[-1]  # holds the heap's end up, as any array does that outlives those beside it
    del blocks
    held = psutil.Process().memory_info().rss
    give_back()
    assert held - psutil.Process().memory_info().rss > 0.8 * BLOCK * BLOCKS
    assert last
