"""Measuring fairly: candidates in turn, medians, CPU seconds beside wall seconds, peak memory over what was there.

MLX's CPU backend runs one stream on one thread, so CPU seconds equal wall seconds on a quiet machine, and stay
meaningful on a busy one.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import mlx.core as mx

from mlx_qwen35 import __version__
from mlx_qwen35.blas import find_openblas


@dataclass(frozen=True)
class Timing:
    """Medians over the repeats; `peak` is the most memory in use during a run, over what was there before."""

    cpu_seconds: float
    wall_seconds: float
    peak_bytes: int


def in_turn(candidates: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Timing]:
    """Run the candidates A B A B ..., each result evaluated, and give each one's medians."""
    runs: dict[str, list[Timing]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, candidate in candidates.items():
            runs[name].append(_run(candidate))
    return {name: _median(timings) for name, timings in runs.items()}


def _run(candidate: Callable[[], Any]) -> Timing:
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    cpu, wall = time.process_time(), time.perf_counter()
    mx.eval(candidate())
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Timing(cpu, wall, mx.get_peak_memory() - before)


def _median(timings: list[Timing]) -> Timing:
    return Timing(
        median(t.cpu_seconds for t in timings),
        median(t.wall_seconds for t in timings),
        max(t.peak_bytes for t in timings),
    )


def print_conditions(command: str) -> None:
    """The machine, the versions and the BLAS that the numbers below belong to, and how to get them again."""
    load = ", ".join(f"{n:.1f}" for n in os.getloadavg())
    names = ("mlx", "mlx-lm")
    versions = ", ".join([f"mlx_qwen35 {__version__}", *(f"{name} {version(name)}" for name in names)])
    preload = os.environ.get("LD_PRELOAD", "")
    blas = Path(preload).name if preload else "MLX's own"
    print(f"machine   {_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}, load {load}")
    print(f"versions  {versions}, Python {platform.python_version()}")
    print(f"backend   {mx.default_device()}, BLAS {blas}")
    environment = ""
    if library := find_openblas():
        environment = f"LD_PRELOAD={library} OPENBLAS_NUM_THREADS=1 "
    print(f"run with  {environment}python -m {command}\n")


def _processor() -> str:
    if platform.system() == "Darwin":
        return str(mx.device_info().get("device_name", "Apple"))
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def print_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        print("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths)), flush=True)
