"""Apple's chips as a roofline needs them, and which one this is. Published numbers; nothing is measured."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """Of the variant with `cores` GPU cores.

    gigabytes: memory bandwidth, 1e9 bytes a second, as Apple gives it   teraflops: float32, cores x 256 x clock, about
    matrix: 1e12 FLOP a second of matrix products in 16 bits. On M1 to M4 those run at the float32 rate; on M5 on the
    neural accelerators (M5: measured by an MLX contributor; larger ones: estimates)   memories: GiB on sale
    """

    name: str
    cores: int
    gigabytes: float
    teraflops: float
    matrix: float
    memories: tuple[int, ...]


def _chip(name: str, cores: int, gigabytes: float, tera: float, memories: tuple[int, ...], matrix: float = 0) -> Chip:
    return Chip(name, cores, gigabytes, tera, matrix or tera, memories)


CHIPS = (
    _chip("M1", 8, 68, 2.6, (8, 16)),
    _chip("M1 Pro", 16, 205, 5.3, (16, 32)),
    _chip("M1 Max", 32, 410, 10.6, (32, 64)),
    _chip("M1 Ultra", 64, 819, 21, (64, 128)),
    _chip("M2", 10, 102, 3.6, (8, 16, 24)),
    _chip("M2 Pro", 19, 205, 6.8, (16, 32)),
    _chip("M2 Max", 38, 410, 13.6, (32, 64, 96)),
    _chip("M2 Ultra", 76, 819, 27, (64, 128, 192)),
    _chip("M3", 10, 102, 3.6, (8, 16, 24)),
    _chip("M3 Pro", 18, 154, 6.4, (18, 36)),
    _chip("M3 Max", 30, 307, 10.5, (36, 96)),
    _chip("M3 Max", 40, 410, 14, (48, 64, 128)),
    _chip("M3 Ultra", 80, 819, 28, (96, 256, 512)),
    _chip("M4", 10, 120, 4.3, (16, 24, 32)),
    _chip("M4 Pro", 20, 273, 9, (24, 48, 64)),
    _chip("M4 Max", 32, 410, 15, (36,)),
    _chip("M4 Max", 40, 546, 18, (48, 64, 128)),
    _chip("M5", 10, 154, 4, (16, 24, 32), matrix=15.4),
    _chip("M5 Pro", 20, 307, 8, (24, 48, 64), matrix=31),
    _chip("M5 Max", 32, 460, 14, (36,), matrix=50),
    _chip("M5 Max", 40, 614, 17, (48, 64, 128), matrix=60),
)


def label(chip: Chip) -> str:
    """As tables name it: variants of one name apart by their cores."""
    twins = sum(other.name == chip.name for other in CHIPS)
    return f"{chip.name}, {chip.cores} cores" if twins > 1 else chip.name


def find(name: str, cores: int | None = None) -> Chip | None:
    """The chip of this name ("Apple M4 Max", "m4 max"), the variant nearest to so many GPU cores, else the largest."""
    wanted = name.lower().removeprefix("apple ").strip()
    variants = [chip for chip in CHIPS if chip.name.lower() == wanted]
    if cores:
        variants.sort(key=lambda chip: abs(chip.cores - cores), reverse=True)
    return variants[-1] if variants else None


@functools.cache
def this_chip() -> Chip | None:
    """Of the machine this runs on; None where it is not Apple's, or newer than the table."""
    if sys.platform != "darwin":
        return None
    brand = _answer(["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"])
    return find(brand, _gpu_cores()) if brand else None


def _gpu_cores() -> int | None:
    told = _answer(["/usr/sbin/system_profiler", "-json", "SPDisplaysDataType"])
    try:
        return int(json.loads(told)["SPDisplaysDataType"][0]["sppci_cores"])
    except (ValueError, KeyError, IndexError, TypeError):  # no answer, or another layout of it
        return None


def _answer(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
