"""Compiled kernels are kept, under a key of all that makes them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from tests.metal_emulator import Options, toolchain
from tests.metal_emulator.compile import Unit, prune
from tests.metal_emulator.kernel import Kernel, Out

TEXT = "[[kernel]] void add(device float* o [[buffer(0)]], uint i [[thread_position_in_grid]]) { o[i] = i + 1.5f; }"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(toolchain, "cache_folder", lambda: tmp_path)
    return tmp_path


def test_the_second_build_is_read_from_disk(folder: Path) -> None:
    first, second = Kernel(Unit(TEXT, "add")), Kernel(Unit(TEXT, "add"))
    assert first.compile_seconds > 0
    assert second.compile_seconds == 0
    done = second.run({0: Out((4,), np.float32)}, (4, 1, 1), (4, 1, 1))
    assert done.outputs[0].tolist() == [1.5, 2.5, 3.5, 4.5]


def test_another_text_or_another_way_of_compiling_is_another_entry(folder: Path) -> None:
    Kernel(Unit(TEXT, "add"))
    assert Kernel(Unit(TEXT.replace("1.5f", "2.5f"), "add")).compile_seconds > 0
    assert Kernel(Unit(TEXT, "add"), Options(check=False)).compile_seconds > 0
    assert Kernel(Unit(TEXT, "add"), Options(schedule="random")).compile_seconds == 0


def test_what_was_not_used_for_long_is_forgotten(folder: Path) -> None:
    Kernel(Unit(TEXT, "add"))
    (kept,) = folder.glob("add-*.so")
    prune()
    assert kept.exists()
    long_ago = time.time() - 40 * 86400
    os.utime(kept, (long_ago, long_ago))
    prune()
    assert not list(folder.glob("add-*"))
