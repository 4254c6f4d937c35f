"""Converting a mixture of experts with the real layer shapes: peak memory and time beside mlx_lm.convert.

    python -m examples.benchmarks.convert_memory --layers 6 --folder /tmp

Writes a random bfloat16 checkpoint with the layers of 35B-A3B (10 GB with 6 layers), converts it three ways, each in
a process of its own with the source's pages dropped from the cache where that is allowed, and removes everything
again. Peak memory is the process's largest resident set, as the system counts it. Random weights: time and memory
mean something here, errors do not.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from examples.benchmarks.measure import print_conditions, print_table
from examples.real_shapes import ORIGINAL, write

SPARE = 1 << 30
STOCK = """
from mlx_lm.convert import convert
convert({source}, {out}, quantize=True, q_bits=4, q_group_size=64)
"""
OURS = """
from pathlib import Path; from mlx_qwen35.convert import Options, convert
convert(Path({source}), Path({out}), Options(4, quality={quality!r}, recipe="uniform", check_drafts=False))
"""
WAYS = {"mlx_lm.convert": (STOCK, ""), "ours, stock": (OURS, "stock"), "ours, fast": (OURS, "fast")}
# The child reports on itself: its parent's count of dead children keeps only the largest of all.
REPORT = """
import resource, sys; used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_maxrss, used.ru_utime + used.ru_stime, file=sys.stderr)
"""


def measured(way: str, source: Path, out: Path) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds, peak resident bytes of one conversion in a process of its own."""
    os.sync()
    started = time.perf_counter()
    code, quality = WAYS[way]
    code = code.format(source=repr(str(source)), out=repr(str(out)), quality=quality) + REPORT
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    wall = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"convert_memory: {done.stderr.strip().splitlines()[-1]}")
    peak, cpu = done.stderr.strip().splitlines()[-1].split()
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return wall, float(cpu), float(peak) * unit


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def forget_pages(folder: Path) -> None:
    """Each way should read the source from the disk, not from what the one before left in memory."""
    if hasattr(os, "posix_fadvise"):
        for file in folder.rglob("*.safetensors"):
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def compare(folder: Path, layers: int, ways: Sequence[str]) -> None:
    source = write("35b-a3b", folder / "source", layers, 4096, ORIGINAL)
    nbytes = size_of(source)
    print(f"source    35B-A3B layer shapes, {layers} layers, {nbytes / 1e9:.1f} GB in bfloat16, to 4 bits\n")
    rows = []
    for way in ways:
        out = folder / "out"
        forget_pages(source)
        wall, cpu, peak = measured(way, source, out)
        rate = nbytes / 1e6 / wall
        rows.append((way, f"{wall:.0f}", f"{cpu:.0f}", f"{rate:.0f}", f"{peak / 1e9:.2f}", f"{size_of(out) / 1e9:.2f}"))
        shutil.rmtree(out)
    print_table(("way", "wall s", "CPU s", "MB/s", "peak RSS GB", "written GB"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6, help="1.65 GB each (6)")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where there is room")
    parser.add_argument("--only", choices=WAYS, help="one way only")
    args = parser.parse_args()
    needed = int(args.layers * 1.7e9 * 1.4) + SPARE
    if shutil.disk_usage(args.folder).free < needed:
        sys.exit(f"convert_memory: {args.folder} needs {needed / 1e9:.0f} GB of free disk. Give another --folder.")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print_conditions("examples.benchmarks.convert_memory")
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="convert_memory-") as folder:
        compare(Path(folder), args.layers, [args.only] if args.only else list(WAYS))


if __name__ == "__main__":
    main()
