"""The machine and the programs a checkpoint meets here. Asks; sets nothing."""

from __future__ import annotations

import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mlx.core as mx

from mlx_qwen35 import __version__
from mlx_qwen35.blas import advice
from mlx_qwen35.doctor.findings import Wrong
from mlx_qwen35.hub.cache import cache_folder, prefix_folder
from mlx_qwen35.hub.machine import GIB
from mlx_qwen35.models.fit import machine
from mlx_qwen35.planning.chips import label, this_chip

OLDEST_MLX = (0, 32)
LEAST_DISK = 2 * GIB  # of a folder that is written to


def hardware() -> str:
    """Chip, cores, memory and the part of it that a model may use."""
    import psutil

    chip, here = this_chip(), machine()
    name = f"Apple {label(chip)}" if chip else platform.processor() or platform.machine()
    limit = f"{here.budget / GIB:.1f} GiB for a model ({here.note})"
    return f"{name}, {psutil.cpu_count()} cores, {here.total / GIB:.1f} GiB of memory, {limit}"


def software() -> str:
    """Versions. Wrong where MLX is older than what this was written for."""
    found = {name: _version(name) for name in ("mlx", "mlx-lm", "tokenizers", "llguidance")}
    system = f"{platform.system()} {platform.release()}"
    if sys.platform == "darwin":
        system = f"macOS {platform.mac_ver()[0]}"
    names = ", ".join(f"{name} {number}" for name, number in found.items())
    told = f"mlx-qwen35 {__version__}, {names}, Python {platform.python_version()}, {system}"
    if tuple(int(part) for part in found["mlx"].split(".")[:2]) < OLDEST_MLX:
        raise Wrong(f"MLX {found['mlx']} is older than {'.'.join(map(str, OLDEST_MLX))}: pip install -U mlx. {told}")
    return told


def backend() -> str:
    """Where MLX computes."""
    if mx.metal.is_available():
        info = mx.device_info()
        return f"Metal on {info.get('device_name', 'the GPU')}"
    hint = advice()
    return f"no Metal: float32 on the CPU{f'; {hint}' if hint else ''}"


def disk() -> str:
    """Room for downloads and for remembered prefixes."""
    rooms = {what: _free(folder) for what, folder in (("downloads", cache_folder()), ("prefixes", prefix_folder()))}
    told = ", ".join(f"{free / GIB:.0f} GiB free for {what}" for what, free in rooms.items())
    if min(rooms.values()) < LEAST_DISK:
        raise Wrong(f"The disk is nearly full: {told}.")
    return told


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _free(folder: Path) -> int:
    """Of the disk that holds it, or will."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
