"""Finds clang and the cache folder, and says in one line why kernels cannot be emulated here."""

from __future__ import annotations

import functools
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.metal_emulator.errors import CompileError

# "C++ for OpenCL" gained what the shim needs (bfloat, if constexpr in kernels) by 19; newest first would change with
# the machine, so the version Debian 12 carries comes first.
VERSIONS = (19, 20, 21, 22, 23)
OLDEST = VERSIONS[0]


@functools.cache
def clang() -> Path | None:
    """The compiler: MLX_QWEN35_CLANG, or the first new enough one on the path that is not Apple's."""
    named = os.environ.get("MLX_QWEN35_CLANG")
    for name in [named] if named else [*(f"clang-{v}" for v in VERSIONS), "clang"]:
        found = shutil.which(name)
        if found and _version(found) >= OLDEST:
            return Path(found)
    return None


def _version(path: str) -> int:
    said = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"clang version (\d+)", said)
    # Apple counts its clang otherwise, and leaves OpenCL out.
    return int(found.group(1)) if found and "Apple" not in said else 0


@functools.cache
def clang_says() -> str:
    """Which compiler it is, for the key of the cache."""
    path = clang()
    assert path is not None
    return subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout


@functools.cache
def why_not() -> str | None:
    """Why nothing can be emulated on this machine, or None."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "the emulator runs on Linux on x86-64 only"
    if clang() is None:
        return f"no clang {OLDEST} or newer (apt-get install clang-{OLDEST}, or name one in MLX_QWEN35_CLANG)"
    if shutil.which("addr2line") is None:
        return "no addr2line (apt-get install binutils)"
    return None


@functools.cache
def cache_folder() -> Path:
    """Where compiled kernels are kept between runs. Safe to delete."""
    named = os.environ.get("MLX_QWEN35_EMULATOR_CACHE")
    users = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(named) if named else users / "mlx-qwen35-tests" / "metal-emulator"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.cache
def machine_flag() -> str:
    """The instruction set: v3 has the fused multiply-add and half conversions; without it they are slow, and right."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    return "-march=x86-64-v3" if {"avx2", "fma", "f16c", "bmi2"} <= flags else "-march=x86-64-v2"


def run(command: Sequence[str | Path]) -> tuple[str, str]:
    """Its stdout and stderr; raises CompileError with what it said."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CompileError(done.stderr[:8000])
    return done.stdout, done.stderr
