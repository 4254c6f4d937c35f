"""What drafts and the exact mode do on the demo's evaluation prompts: tokens a step, and CPU seconds.

    python -m examples.benchmarks.drafts [--count 8] [--rows 1] [--modes off,auto,1,2,3,4,exact]

The same prompts in turn with each mode, greedy, through the engine. CPU seconds of drawing answers and reading prompts.
"""

from __future__ import annotations

import argparse
import functools
import time
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

import mlx_qwen35.demo_checkpoint
from examples.demo_model.encoding import encode
from examples.demo_model.mixture import EVALUATIONS, evaluation_set
from mlx_qwen35.generation.mlx_thread import MLXThread
from mlx_qwen35.generation.request import Line, Request
from mlx_qwen35.generation.start import start_engine
from mlx_qwen35.models.weights import load_model
from mlx_qwen35.options import GIB, CacheOptions, Draft

FOLDER = Path(mlx_qwen35.demo_checkpoint.__path__[0])
STOPS, KNOWN, LONGEST = frozenset([991, 993]), 1000, 160


@dataclass(frozen=True)
class Run:
    """Of one mode over all prompts."""

    tokens: int
    steps: int
    drafted: int
    accepted: int
    cpu_seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=8, help="prompts per skill")
    parser.add_argument("--rows", type=int, default=1, help="answered at the same time")
    parser.add_argument("--modes", default="off,auto,1,2,3,4,exact")
    arguments = parser.parse_args()
    mx.set_default_device(mx.cpu)
    prompts = [encode(s).prompt for name in EVALUATIONS for s in evaluation_set(name, arguments.count)]
    print(f"{len(prompts)} prompts, {arguments.rows} at a time")
    for mode in arguments.modes.split(","):
        run = _run(prompts, mode, arguments.rows)
        print(
            f"{mode:6} {run.tokens:6,} tokens, {run.tokens / run.steps:.2f} a step; "
            f"{run.accepted:,} of {run.drafted:,} drafts stayed; {run.cpu_seconds:.1f} CPU seconds",
            flush=True,
        )


def _run(prompts: list[list[int]], mode: str, rows: int) -> Run:
    """mode: a value of `draft`, or "exact", which is without drafts"""
    draft: Draft = "off" if mode == "exact" else int(mode) if mode.isdecimal() else mode
    options = CacheOptions(prefix_bytes=0, max_sequences=rows, draft=draft, exact=mode == "exact")
    thread = MLXThread()
    model = thread.call(lambda: load_model(FOLDER).model)
    engine = thread.call(functools.partial(start_engine, model, thread, FOLDER, GIB, options, print))
    started, lines, tokens = time.process_time(), [], 0
    for first in range(0, len(prompts), rows):
        asked = [engine.submit(Request(ids, KNOWN, LONGEST, stop_ids=STOPS)) for ids in prompts[first : first + rows]]
        tokens += sum(isinstance(item, int) for line in asked for item in line)
        lines += asked
    seconds = time.process_time() - started
    engine.close()
    thread.close()
    return Run(tokens, *_sums(lines), seconds)


def _sums(lines: list[Line]) -> tuple[int, int, int]:
    found = [line.decoded for line in lines]
    return sum(d.steps for d in found), sum(d.drafted for d in found), sum(d.accepted for d in found)


if __name__ == "__main__":
    main()
