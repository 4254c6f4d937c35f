"""The memory plan against what MLX really used: weights, a prompt of a whole context, and some decoded tokens.

    python -m examples.benchmarks.plan_memory [--shapes 0.8b:4 4b:4 35b-a3b:4] [--contexts 1024 4096 16384]

Random weights of real layer shapes (size:layers), loaded and run as `chat` does it, nothing remembered beside the one
text. Contexts beyond `--whole` tokens (1,024) are not computed from their beginning, which takes a CPU long: caches are
filled with zeros, and the last window and the answer run. Each run is a process of its own, since MLX's peak is of a
process. The plan is the one that refuses a model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import mlx.core as mx

from examples import real_shapes
from examples.benchmarks.measure import print_conditions, print_table
from mlx_qwen35.caches.rows import attention_layers
from mlx_qwen35.generation import pacing
from mlx_qwen35.generation.mlx_thread import MLXThread
from mlx_qwen35.generation.request import Request
from mlx_qwen35.generation.start import make_caches, start_engine
from mlx_qwen35.hub.text_sizes import prefill_window
from mlx_qwen35.models.fit import plan_folder
from mlx_qwen35.models.weights import load_model
from mlx_qwen35.models.windows import Window
from mlx_qwen35.options import PLAIN, CacheOptions

VOCAB = 4096
ANSWER = 8  # tokens, which the context has room for


def used(folder: Path, context: int) -> int:
    """MLX's peak in bytes: load, prefill, decode, all by the engine. To be called once in a process."""
    pacing.ALONE_SECONDS = 1e9  # windows as large as memory allows, as a fast machine takes them; the plan counts those
    thread = MLXThread()
    loaded = thread.call(lambda: load_model(folder))
    options = CacheOptions(prefix_bytes=0, disk=None)
    engine = thread.call(lambda: start_engine(loaded.model, thread, folder, 8 << 30, options, print))
    list(engine.submit(Request([1, 2, 3], VOCAB, 1)))  # windows are small until the first one was timed
    ids = [i * 7919 % VOCAB for i in range(context - ANSWER)]
    assert sum(isinstance(item, int) for item in engine.submit(Request(ids, VOCAB, ANSWER))) == ANSWER
    peak = mx.get_peak_memory()
    engine.close()
    thread.close()
    return peak


def used_at_the_end(folder: Path, context: int) -> int:
    """The same of a text's last window and its answer, after caches of zeros."""
    model = load_model(folder).model
    window = prefill_window(model.config.num_heads, context)
    known, cache = context - ANSWER - window, make_caches(model, PLAIN)
    for layer in attention_layers(cache):
        shape = (1, model.config.num_kv_heads, known, model.config.head_dim)
        layer.load([(mx.zeros(shape, model.embed(mx.zeros(1, mx.int32)).dtype),) * 2])
        mx.eval(layer.state)
    for tokens in [window] + [1] * ANSWER:
        logits = model.logits(model.step([Window(mx.arange(tokens) % VOCAB, cache)])[-1:])
        mx.eval(logits, [layer.state for layer in cache])
    return mx.get_peak_memory()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["0.8b:4", "4b:4", "35b-a3b:4"], metavar="SIZE:LAYERS")
    parser.add_argument("--contexts", nargs="+", type=int, default=[1024, 4096, 16_384], metavar="TOKENS")
    parser.add_argument("--whole", type=int, default=1024, metavar="TOKENS", help="computed from the beginning (1024)")
    parser.add_argument("--folder", type=Path, help="measure this one, print bytes, and leave")
    args = parser.parse_args()
    if args.folder:
        context = args.contexts[0]
        print(json.dumps((used if context <= args.whole else used_at_the_end)(args.folder, context)))
        return
    print_conditions("examples.benchmarks.plan_memory")
    rows = []
    for shape in args.shapes:
        size, _, layers = shape.partition(":")
        with tempfile.TemporaryDirectory() as temporary:
            folder = real_shapes.write(size, Path(temporary) / size, int(layers), VOCAB, real_shapes.FOUR_BIT)
            for context in args.contexts:
                rows.append(_row(shape, folder, context, args.whole))
                print(*rows[-1], file=sys.stderr, flush=True)
    print_table(("shape", "context", "plan, MB", "peak, MB", "plan / peak"), rows)


def _row(shape: str, folder: Path, context: int, whole: int) -> tuple[str, ...]:
    command = [sys.executable, "-m", "examples.benchmarks.plan_memory", "--whole", str(whole)]
    done = subprocess.run(
        [*command, "--folder", str(folder), "--contexts", str(context)], check=True, capture_output=True, text=True
    )
    planned, peak = plan_folder(folder, context, shape).total, json.loads(done.stdout)
    return shape, f"{context:,}", f"{planned / 1e6:,.0f}", f"{peak / 1e6:,.0f}", f"{planned / peak:.3f}"


if __name__ == "__main__":
    main()
