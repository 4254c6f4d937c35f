"""An engine over a network, for tests that speak in token ids."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mlx_qwen35.caches.blobs import Layouts
from mlx_qwen35.caches.prefix_store import PrefixStore
from mlx_qwen35.generation.cache_format import CacheFormat, CacheSizes, one_token
from mlx_qwen35.generation.engine import Engine
from mlx_qwen35.generation.mlx_thread import MLXThread
from mlx_qwen35.generation.places import Limits
from mlx_qwen35.generation.request import Ended, Line, Request
from mlx_qwen35.generation.start import make_caches
from mlx_qwen35.models.model import Model


@contextmanager
def engine_over(
    model: Model, store: PrefixStore | None = None, prefix_bytes: int = 1 << 30, **limits: Any
) -> Iterator[Engine]:
    """An engine on a thread of its own, closed at the end."""
    thread, store = MLXThread(), store or PrefixStore(prefix_bytes)

    def make_format(kv_bits: int) -> CacheFormat:
        make = functools.partial(make_caches, model, kv_bits)
        example = one_token(model, make)
        return CacheFormat(make, CacheSizes.of(example), store.root(f"{kv_bits:016x}"), Layouts.of(example))

    try:
        yield Engine(model, thread, make_format, store, Limits(prefix_bytes=prefix_bytes, **limits))
    finally:
        thread.close()


def tokens_of(line: Line) -> list[int]:
    return [item for item in line if isinstance(item, int)]


def answer(engine: Engine, ids: Sequence[int], max_tokens: int, known: int, **options: Any) -> tuple[list[int], Ended]:
    """The tokens of one request, and how it ended."""
    line = engine.submit(Request(list(ids), known, max_tokens, **options))
    tokens = tokens_of(line)
    assert line.ended is not None
    return tokens, line.ended
