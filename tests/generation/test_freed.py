"""What was freed goes back to the system."""

from __future__ import annotations

import platform
from pathlib import Path

import psutil
import pytest

from mlx_qwen35.generation import engine as engine_module
from mlx_qwen35.generation.freed import give_back
from mlx_qwen35.generation.request import Request
from tests.reference import CASES, write_checkpoint
from tests.support.engines import answer, engine_over, tokens_of
from tests.support.float32 import load_float32
from tests.support.waiting import wait_for

BLOCK, BLOCKS = 64 << 10, 2_000  # smaller than what glibc gives back by itself
KNOWN = CASES["moe"].tokens


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what this gives back")
def test_pages_of_the_heap_that_nothing_is_left_on_go_back() -> None:
    blocks = [b"x" * BLOCK for _ in range(BLOCKS)]
    last = blocks[-1]  # holds the heap's end up, as any array does that outlives those beside it
    del blocks
    held = psutil.Process().memory_info().rss
    give_back()
    assert held - psutil.Process().memory_info().rss > 0.8 * BLOCK * BLOCKS
    assert last


def test_memory_goes_back_when_nobody_is_served_and_not_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint("moe", tmp_path / "tiny")
    given: list[int] = []
    with engine_over(load_float32(tmp_path / "tiny").model) as engine:
        monkeypatch.setattr(engine_module, "give_back", lambda: given.append(engine.stats().rows))
        long = engine.submit(Request([1, 2, 3], KNOWN, 300))  # pauses long before its end, since nobody reads
        answer(engine, [4, 5], 3, KNOWN)
        assert given == []
        tokens_of(long)
        wait_for(lambda: given)
    assert set(given) == {0}
