"""How large a model loads and answers here: random weights of real layer shapes, under a guard of the machine's memory.

    python -m examples.benchmarks.big_model [--size 35b-a3b] [--layers 24] [--folder DIR] [--keep-free 1.5]

Ours, then stock mlx-lm from the same files, each in a process of its own: the most memory resident, and seconds to
load and for a token, by the clock and of CPU time. Files are read from disk, not from the page cache. When less than
`--keep-free` GB of the machine's memory is available the process is killed, and the line says how far it got. The peer
computes in the dtype of the checkpoint (`--float32`: as ours does off Metal; its scales then take more room).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import psutil

from examples import real_shapes
from examples.benchmarks.measure import print_conditions, print_table
from mlx_qwen35.hub.family import FAMILY

PROMPT = 4  # tokens
WATCH_SECONDS = 0.02
CACHE_BYTES = 1 << 30


def ours(folder: Path, tokens: int) -> Iterator[str]:
    """Names what has happened: programs are imported, the model is loaded, a token came."""
    from mlx_qwen35.generation.mlx_thread import MLXThread
    from mlx_qwen35.generation.request import Request
    from mlx_qwen35.generation.start import start_engine
    from mlx_qwen35.models.weights import load_model
    from mlx_qwen35.options import CacheOptions

    yield "ready"
    thread = MLXThread()
    loaded = thread.call(lambda: load_model(folder))
    yield "loaded"
    options = CacheOptions(prefix_bytes=0, disk=None)
    engine = thread.call(lambda: start_engine(loaded.model, thread, folder, CACHE_BYTES, options, print))
    for item in engine.submit(Request(list(range(PROMPT)), loaded.config.vocab_size, tokens)):
        if isinstance(item, int):
            yield "token"
    engine.close()
    thread.close()


def stock(folder: Path, tokens: int, float32: bool) -> Iterator[str]:
    import mlx.core as mx
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load_model

    from mlx_qwen35.benching.contenders import widen

    yield "ready"
    model, _ = load_model(folder, strict=True)
    if float32:
        widen(model, mx.float32)
    yield "loaded"
    for _ in generate_step(mx.arange(PROMPT), model, max_tokens=tokens):
        yield "token"


def child(contender: str, folder: Path, tokens: int, float32: bool) -> None:
    """One contender; a line of JSON for everything that happens, with the seconds since it was ready, by the clock and
    of CPU time.
    """
    if sys.platform == "linux":
        Path("/proc/self/oom_score_adj").write_text("1000")  # should the guard be too late, nobody else is killed
    run = ours(folder, tokens) if contender == "ours" else stock(folder, tokens, float32)
    next(run)
    clock, cpu = time.perf_counter(), time.process_time()
    for event in run:
        at = (time.perf_counter() - clock, time.process_time() - cpu)
        print(json.dumps({"event": event, "at": at}), flush=True)


@dataclass
class Course:
    """What became of one process. loaded: seconds, by the clock and of CPU time, if it came so far
    tokens: when each came, in the same   peak: bytes resident
    least: bytes of the machine's memory that were available   killed: by the guard
    """

    loaded: tuple[float, float] | None = None
    tokens: list[tuple[float, float]] = field(default_factory=list)
    peak: int = 0
    least: int = 1 << 62
    killed: bool = False
    status: int = 0


def guarded(command: list[str], keep_free: float) -> Course:
    """Run a child, and end it before the machine runs out of memory."""
    course = Course()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    seen = psutil.Process(process.pid)

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            told: dict[str, Any] = json.loads(line)
            if told["event"] == "loaded":
                course.loaded = tuple(told["at"])
            else:
                course.tokens.append(tuple(told["at"]))

    reader = Thread(target=read)
    reader.start()
    while process.poll() is None:
        available = psutil.virtual_memory().available
        course.least = min(course.least, available)
        if available < keep_free and not course.killed:
            process.kill()
            course.killed = True
        try:
            course.peak = max(course.peak, seen.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(WATCH_SECONDS)
    course.status = process.wait()
    reader.join()
    return course


def row(name: str, course: Course, wanted: int) -> tuple[str, ...]:
    came, loaded = course.tokens, course.loaded
    ended = "done" if len(came) == wanted else "killed by the guard" if course.killed else f"status {course.status}"
    return (
        name,
        f"{loaded[0]:.1f} ({loaded[1]:.1f})" if loaded else "-",
        f"{course.peak / 1e9:.2f}",
        f"{course.least / 1e9:.2f}",
        " ".join(_spent(loaded, came[0], 1, "{:.1f}")) if came and loaded else "-",
        " ".join(_spent(came[0], came[-1], len(came) - 1, "{:.2f}")) if len(came) > 1 else "-",
        f"{len(came)} of {wanted} tokens, {ended}",
    )


def _spent(start: tuple[float, float], end: tuple[float, float], count: int, form: str) -> tuple[str, str]:
    """Seconds by the clock, and of CPU time in brackets, for one of `count`."""
    clock, cpu = ((b - a) / count for a, b in zip(start, end))
    return form.format(clock), f"({form.format(cpu)})"


def _forget(folder: Path) -> None:
    """The page cache lets the files go, where the system can be asked to."""
    for path in folder.glob("*.safetensors") if hasattr(os, "posix_fadvise") else ():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=FAMILY, default="35b-a3b", help="which size's shapes (default 35b-a3b)")
    parser.add_argument("--layers", type=int, default=24, help="(default 24)")
    parser.add_argument("--tokens", type=int, default=32, help="of our answer (default 32)")
    parser.add_argument("--peer-tokens", type=int, default=3, help="of stock's; 0 leaves it out (default 3)")
    parser.add_argument("--float32", action="store_true", help="stock with activations in float32")
    parser.add_argument("--keep-free", type=float, default=1.5, metavar="GB", help="of memory (default 1.5)")
    parser.add_argument("--folder", type=Path, help="keep the checkpoint here and use it again")
    parser.add_argument("--child", choices=("ours", "mlx-lm"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.folder, args.tokens, args.float32)
        return
    print_conditions("examples.benchmarks.big_model")
    temporary = None if args.folder else Path(tempfile.mkdtemp(prefix="big-model-"))
    folder = args.folder or Path(temporary or "") / "model"
    try:
        if not (folder / "config.json").exists():
            real_shapes.write(args.size, folder, args.layers, None, real_shapes.FOUR_BIT)
        _compare(args, folder)
    finally:
        if temporary:
            shutil.rmtree(temporary)


def _compare(args: argparse.Namespace, folder: Path) -> None:
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    print(f"{args.size}, {args.layers} layers, 4 bits: {size / 1e9:.2f} GB", flush=True)
    rows = []
    for name, tokens in (("ours", args.tokens), ("mlx-lm", args.peer_tokens)):
        if tokens:
            _forget(folder)
            command = [sys.executable, "-m", "examples.benchmarks.big_model", "--child", name]
            command += ["--folder", str(folder), "--tokens", str(tokens), *(["--float32"] if args.float32 else [])]
            course = guarded(command, args.keep_free * 1e9)
            rows.append(row(name, course, tokens))
    print_table(("seconds (of CPU)", "load", "peak, GB", "left, GB", "first token", "a token", "how far"), rows)


if __name__ == "__main__":
    main()
