"""Small networks in float32, loaded once for all tests; treat them as read-only."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np

import mlx_qwen35.demo_checkpoint
from mlx_qwen35.caches.rows import SequenceCache, attention_layers, recurrent_layers
from mlx_qwen35.models.model import Model
from tests.reference import CASES, write_checkpoint
from tests.support.float32 import load_float32

DEMO = "demo"  # the trained one: eight layers, a mixture of experts


@functools.cache
def network(name: str) -> Model:
    """A tiny random network of tests.reference, by name (Dk != Dv, Hv != Hk), or the demo checkpoint."""
    if name == DEMO:
        return load_float32(Path(mlx_qwen35.demo_checkpoint.__path__[0])).model
    with tempfile.TemporaryDirectory() as folder:
        return load_float32(write_checkpoint(name, Path(folder) / name)).model


def known_tokens(name: str) -> int:
    """Ids from here up have no token."""
    return 1000 if name == DEMO else CASES[name].tokens


def random_ids(seed: int, length: int, tokens: int = 120) -> list[int]:
    return np.random.default_rng(seed).integers(0, tokens, length).tolist()


def memory_of(cache: SequenceCache) -> list[mx.array]:
    """All that a sequence's caches hold, in copies: states first, then keys and values."""
    states = [a for layer in recurrent_layers(cache) for a in layer.snapshot()]
    return states + [a for layer in attention_layers(cache) for a in layer.segment(0, layer.length)]


def distance(found: mx.array, expected: mx.array) -> float:
    """The largest difference, relative to the largest expected number."""
    found, expected = found.astype(mx.float32), expected.astype(mx.float32)
    assert found.shape == expected.shape
    return (mx.abs(found - expected).max() / (mx.abs(expected).max() + 1e-30)).item()  # pyright: ignore


def largest_distance(found: Sequence[mx.array], expected: Sequence[mx.array]) -> float:
    assert len(found) == len(expected)
    return max(distance(a, b) for a, b in zip(found, expected))


def same_bytes(found: Sequence[mx.array], expected: Sequence[mx.array]) -> bool:
    assert len(found) == len(expected)
    return all(_raw(a) == _raw(b) for a, b in zip(found, expected))


def _raw(a: mx.array) -> tuple[tuple[int, ...], str, bytes]:
    bits = a.view(mx.uint16) if a.dtype == mx.bfloat16 else a
    return tuple(a.shape), str(a.dtype), np.array(bits).tobytes()
