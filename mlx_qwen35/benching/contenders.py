"""What is timed: our engine, stock mlx-lm on the same checkpoint, or any OpenAI-compatible server. One interface.

Prompts are made up, their tokens drawn from the whole vocabulary, so that nothing is known of them and no draft pays.
"""

from __future__ import annotations

import importlib
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx

from mlx_qwen35.errors import UserError
from mlx_qwen35.generation.engine import Engine
from mlx_qwen35.generation.mlx_thread import MLXThread
from mlx_qwen35.generation.request import Request
from mlx_qwen35.generation.start import start_engine
from mlx_qwen35.hub.headers import TensorEntry
from mlx_qwen35.hub.memory import weights_as_loaded
from mlx_qwen35.models.model import Model
from mlx_qwen35.models.weights import load_model
from mlx_qwen35.options import GIB, CacheOptions

Moment = tuple[float, float]  # by the clock; CPU seconds of this process, where it is the one that computes


@dataclass(frozen=True)
class Run:
    """One round. first: seconds to the first token   rest: seconds from it to the last, of all sequences
    tokens: that came in `rest`   first_cpu, rest_cpu: CPU seconds in the same times, 0 where another process computes
    """

    first: float
    rest: float
    tokens: int
    first_cpu: float = 0.0
    rest_cpu: float = 0.0


class Contender(Protocol):
    """batches: whether it answers several prompts at once"""

    @property
    def name(self) -> str: ...
    @property
    def batches(self) -> bool: ...

    def run(self, prompts: Sequence[Sequence[int]], tokens: int) -> Run:
        """Answer all prompts at once, `tokens` each."""
        ...


def made_up(count: int, length: int, known: int, seed: int) -> list[list[int]]:
    """Prompts that share no beginning."""
    generator = random.Random(seed)
    return [[generator.randrange(known) for _ in range(length)] for _ in range(count)]


@dataclass(frozen=True)
class Ours:
    """Our engine. draft: as in `options.CacheOptions`   remembers: leaves a checkpoint at a prompt's end"""

    engine: Engine
    known: int
    name: str = "mlx_qwen35"
    draft: str | int = "off"
    batches: bool = True
    remembers: bool = False

    def run(self, prompts: Sequence[Sequence[int]], tokens: int) -> Run:
        times: list[list[Moment]] = [[] for _ in prompts]
        start = now()
        lines = [self.engine.submit(self._request(ids, tokens)) for ids in prompts]

        def read(place: int) -> None:
            for item in lines[place]:
                if isinstance(item, int):
                    times[place].append(now())

        readers = [threading.Thread(target=read, args=[place]) for place in range(len(prompts))]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        return timed(start, times)

    def _request(self, ids: Sequence[int], tokens: int) -> Request:
        checkpoints = (len(ids) - 1,) if self.remembers else ()
        return Request(ids, self.known, tokens, checkpoints=checkpoints, draft=self.draft)


def now() -> Moment:
    return time.perf_counter(), time.process_time()


def timed(start: Moment, times: Sequence[Sequence[Moment]]) -> Run:
    """From when all answers had begun until the first of them ended: only then all were being decoded."""
    begun, ended = max(t[0] for t in times), min(t[-1] for t in times)
    tokens = sum(begun < at <= ended for row in times for at in row)
    return Run(begun[0] - start[0], ended[0] - begun[0], tokens, begun[1] - start[1], ended[1] - begun[1])


@dataclass(frozen=True)
class Network:
    """Ours, loaded once for all engines of a bench. known: rows of its vocabulary   seconds: that loading took"""

    folder: Path
    thread: MLXThread
    model: Model
    known: int
    seconds: float

    @contextmanager
    def engine(self, prefix_bytes: int = 0) -> Iterator[Engine]:
        """A running engine. prefix_bytes: for prompts that are asked again"""
        options, warned = CacheOptions(prefix_bytes=prefix_bytes, disk=None), []
        engine = self.thread.call(
            lambda: start_engine(self.model, self.thread, self.folder, 8 * GIB, options, warned.append)
        )
        try:
            yield engine
        finally:
            engine.close()


@contextmanager
def our_network(folder: Path) -> Iterator[Network]:
    thread = MLXThread()
    try:
        start = time.perf_counter()
        loaded = thread.call(lambda: load_model(folder))
        yield Network(folder, thread, loaded.model, loaded.config.vocab_size, time.perf_counter() - start)
    finally:
        thread.close()


class Stock:
    """mlx-lm's own network and loop. dtype: of activations; None leaves them as the checkpoint has them"""

    batches = False  # in one process; its server has them: --vs URL

    def __init__(self, folder: Path, dtype: mx.Dtype | None = None) -> None:
        self.name = "mlx-lm" if dtype is None else f"mlx-lm {str(dtype).rpartition('.')[2]}"
        load = importlib.import_module("mlx_lm.utils").load_model
        self._step = importlib.import_module("mlx_lm.generate").generate_step
        self._model, _ = load(folder, strict=True)
        if dtype is not None:
            widen(self._model, dtype)

    def run(self, prompts: Sequence[Sequence[int]], tokens: int) -> Run:
        start, times = now(), []
        try:
            for _ in self._step(mx.array(list(prompts[0])), self._model, max_tokens=tokens):
                times.append(now())
        except RuntimeError as error:  # MLX's CPU backend has no gathered products but in float32
            raise UserError(f"mlx-lm cannot run this checkpoint here ({error}); with --float32 it may.") from None
        return timed(start, [times])


def stock_bytes(tensors: Mapping[str, TensorEntry], dtype: mx.Dtype | None) -> int:
    """What stock's own copy of a checkpoint takes beside ours: all but the MTP layer, as `Stock` holds it."""
    stored = weights_as_loaded(tensors, mtp=False)
    if dtype is None or dtype != mx.float32:  # MLX compares a dtype with nothing but dtypes
        return stored
    narrow = {name: entry for name, entry in tensors.items() if entry.dtype in ("BF16", "F16")}
    return stored + weights_as_loaded(narrow, mtp=False)


def widen(model: Any, dtype: mx.Dtype) -> None:
    """Activations, scales and biases of a network of mlx-lm in another floating type, in place."""
    from mlx.utils import tree_map

    narrow = (mx.bfloat16, mx.float16)
    model.update(tree_map(lambda a: a.astype(dtype) if a.dtype in narrow else a, model.parameters()))
    mx.eval(model.parameters())
