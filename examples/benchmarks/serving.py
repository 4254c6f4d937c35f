"""Serving several requests at once: total speed, gaps beside a long prefill, and memory over a long run.

    python -m examples.benchmarks.serving streams     total tokens/s of 8 concurrent streams against one, interleaved
    python -m examples.benchmarks.serving gap         longest gap of a stream while 16,000 tokens prefill beside it
    python -m examples.benchmarks.serving growth      resident memory over 2,000 mixed requests
    python -m examples.benchmarks.serving disk        bytes on disk after a conversation of 100,000 tokens

A busy machine moves absolute numbers; ratios and medians of interleaved rounds are what counts.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median

import mlx.core as mx
import psutil

from mlx_qwen35.caches.kv import KVCache
from mlx_qwen35.caches.prefix_store import PrefixStore
from mlx_qwen35.caches.rows import attention_layers, recurrent_layers
from mlx_qwen35.generation.cache_format import CacheFormat
from mlx_qwen35.generation.engine import Engine
from mlx_qwen35.generation.mlx_thread import MLXThread
from mlx_qwen35.generation.request import Line, Request
from mlx_qwen35.generation.start import start_engine
from mlx_qwen35.hub.names import DEMO, resolve
from mlx_qwen35.models.weights import load_model
from mlx_qwen35.options import GREEDY, PLAIN, CacheOptions, Sampling
from tests.reference import write_checkpoint

MIB = 1 << 20
CHATTING = Sampling(temperature=0.7, top_p=0.8, top_k=20)


@contextmanager
def engine_of(folder: Path, prefix_bytes: int = 64 * MIB, disk: Path | None = None) -> Iterator[Engine]:
    """An engine as `Runtime.load` starts it."""
    thread = MLXThread()
    loaded = thread.call(lambda: load_model(folder))
    options = CacheOptions(prefix_bytes=prefix_bytes, disk=disk)
    engine = thread.call(lambda: start_engine(loaded.model, thread, folder, 2 << 30, options, print))
    try:
        yield engine
    finally:
        engine.close()
        thread.close()


@contextmanager
def networks() -> Iterator[dict[str, Path]]:
    """The demo checkpoint, and a tiny random dense one."""
    demo = resolve(DEMO).path
    assert demo is not None
    with tempfile.TemporaryDirectory() as scratch:
        yield {"demo": demo, "tiny dense": write_checkpoint("dense", Path(scratch) / "dense")}


def read_all(line: Line) -> list[float]:
    """When each token came."""
    return [time.perf_counter() for item in line if isinstance(item, int)]


def at_once(engine: Engine, count: int, tokens: int, sampling: Sampling) -> float:
    """Total tokens/s of `count` requests that start together, from the first token of the last to the end."""
    lines = [engine.submit(Request([5, 6, 7, 8 + i], 100, tokens, sampling, seed=i)) for i in range(count)]
    times: list[list[float]] = [[] for _ in lines]
    readers = [threading.Thread(target=lambda i=i: times[i].extend(read_all(lines[i]))) for i in range(count)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    start, end = max(t[0] for t in times), min(t[-1] for t in times)
    return sum(sum(start < at <= end for at in t) for t in times) / (end - start)


def streams(rounds: int, tokens: int = 200) -> None:
    """Eight streams against one, A B A B."""
    with networks() as folders:
        for name, folder in folders.items():
            with engine_of(folder) as engine:
                for kind, sampling in (("greedy", GREEDY), ("sampled", CHATTING)):
                    at_once(engine, 8, 20, sampling)
                    pairs = [[at_once(engine, n, tokens, sampling) for n in (1, 8)] for _ in range(rounds)]
                    one, eight = (median(speeds) for speeds in zip(*pairs))
                    ratio = median(b / a for a, b in pairs)
                    print(f"{name}, {kind}: one {one:.0f} tokens/s, eight {eight:.0f} in all, ratio {ratio:.1f}")


def gap(rounds: int, long: int = 16_000) -> None:
    """A stream's gaps, alone and beside a long prefill."""
    with networks() as folders, engine_of(folders["demo"], 512 * MIB) as engine:
        for round_number in range(rounds):
            stream = engine.submit(Request([5, 6, 7], 900, 100_000))
            times = read_in_background(stream)
            wait(lambda times=times: len(times) > 200)
            usual = median(gaps(times[50:200]))
            generator = random.Random(round_number)
            begun = len(times)
            prompt = [generator.randrange(900) for _ in range(long)]
            started = time.perf_counter()
            for _ in engine.submit(Request(prompt, 900, 1)):
                pass
            seconds = time.perf_counter() - started
            stream.cancel()
            beside = gaps(times[begun - 1 :])
            bar = 3 * usual + 0.150
            print(
                f"usual gap {usual * 1e3:.1f} ms; beside {long:,} tokens of prefill ({seconds:.1f} s): "
                f"median {median(beside) * 1e3:.0f} ms, longest {max(beside) * 1e3:.0f} ms; bar {bar * 1e3:.0f} ms"
            )


def growth(requests: int, every: int = 100) -> None:
    """Resident memory while requests of all sizes come and go, some cancelled."""
    process, generator = psutil.Process(), random.Random(0)
    with networks() as folders, engine_of(folders["tiny dense"], 8 * MIB) as engine:
        sizes: list[float] = []
        for i in range(0, requests, 4):
            lines = [engine.submit(mixed(generator)) for _ in range(4)]
            for line in lines:
                if generator.random() < 0.2:
                    next(iter(line), None)
                    line.cancel()
                for _ in line:
                    pass
            if (i + 4) % every == 0:
                sizes.append(process.memory_info().rss / MIB)
                active = mx.get_active_memory() / MIB
                print(f"after {i + 4:5,} requests: {sizes[-1]:8.1f} MiB resident, {active:.1f} in MLX", flush=True)
        late = sizes[3:]
        print(
            f"growth after the first {3 * every}: {(late[-1] - late[0]) / (len(late) - 1):.2f} MiB a {every} requests"
        )


def disk(tokens: int = 100_000, turn: int = 1000) -> None:
    """A conversation that grows by a thousand tokens a turn, each turn's end a checkpoint; then what is on disk.

    The caches are filled with noise: computing 100,000 tokens would take an hour here and change no byte count.
    """
    with networks() as folders, tempfile.TemporaryDirectory() as scratch:
        with engine_of(folders["demo"], disk=Path(scratch)) as engine:
            sizes = engine.sizes(PLAIN)
            engine.with_prefixes(PLAIN, lambda store, form: grow(store, form, tokens, turn))
        files = [f for f in Path(scratch).rglob("*.safetensors") if f.is_file()]
        checkpoints = sum(f.name.endswith("checkpoint.safetensors") for f in files)
        wanted, found = tokens * sizes.token + checkpoints * sizes.state, sum(f.stat().st_size for f in files)
        print(
            f"{tokens:,} tokens of {sizes.token} bytes and {checkpoints} checkpoints of {sizes.state} bytes: "
            f"{found / MIB:.1f} MiB on disk, {found / wanted:.3f} times what they are"
        )


def grow(store: PrefixStore, form: CacheFormat, tokens: int, turn: int) -> None:
    """The conversation, as a sequence would leave it behind."""
    cache, node = form.make(), form.root
    store.pin(node)
    for start in range(0, tokens, turn):
        for layer, arrays in zip(attention_layers(cache), form.layouts.segment):
            assert isinstance(layer, KVCache)
            layer.extend(*(mx.random.normal((*shape[:2], turn, shape[3])) for _, shape in arrays))
        for layer, ((_, tail), (_, state)) in zip(recurrent_layers(cache), form.layouts.checkpoint):
            layer.advance(mx.random.normal(tail), mx.random.normal(state), turn)
        node = store.add(node, [(start + i) % 900 for i in range(turn)], cache)
        store.save_one()
    store.unpin(node)


def mixed(generator: random.Random) -> Request:
    """Short and long, new and continuing an earlier one, greedy and sampled."""
    topic = generator.randrange(30)
    prompt = [(topic * 31 + i * 7) % 100 for i in range(generator.choice([5, 40, 200, 700]))]
    prompt += [generator.randrange(100) for _ in range(generator.choice([1, 30]))]
    sampling = generator.choice([GREEDY, CHATTING, Sampling(temperature=1.0, presence_penalty=1.0)])
    boundary = [len(prompt) // 2] if len(prompt) > 10 else []
    return Request(prompt, 100, generator.choice([1, 8, 30]), sampling, checkpoints=boundary)


def read_in_background(line: Line) -> list[float]:
    times: list[float] = []

    def read() -> None:
        for item in line:
            if isinstance(item, int):
                times.append(time.perf_counter())

    threading.Thread(target=read, daemon=True).start()
    return times


def gaps(times: list[float]) -> list[float]:
    return [b - a for a, b in pairwise(times)]


def wait(condition) -> None:
    while not condition():
        time.sleep(0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["streams", "gap", "growth", "disk"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000)
    args = parser.parse_args()
    if args.what == "growth":
        growth(args.requests)
    elif args.what == "disk":
        disk()
    else:
        {"streams": streams, "gap": gap}[args.what](args.rounds)


if __name__ == "__main__":
    main()
