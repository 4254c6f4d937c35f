"""What the caches of attention layers offer, in whatever format, and one sequence's caches layer by layer.

Each sequence keeps cache objects of its own, so sequences join and leave freely, and formats may differ in one step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import mlx.core as mx

from mlx_qwen35.caches.delta_state import DeltaState
from mlx_qwen35.caches.kv import Segment


class AttentionCache(Protocol):
    """What every format of keys and values offers: `kv.KVCache` and the quantized ones."""

    length: int

    def attend(self, q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array: ...


class SequenceKV(AttentionCache, Protocol):
    """The same, for the memory of one sequence."""

    def trim(self, n: int) -> int: ...
    def segment(self, start: int, end: int) -> Segment: ...
    def load(self, segments: Sequence[Segment]) -> None: ...
    @property
    def state(self) -> list[mx.array]: ...
    @property
    def nbytes(self) -> int: ...


LayerCache = SequenceKV | DeltaState
SequenceCache = list[LayerCache]  # one sequence's memory, layer by layer


def attention_layers(cache: SequenceCache) -> list[SequenceKV]:
    return [layer for layer in cache if not isinstance(layer, DeltaState)]


def recurrent_layers(cache: SequenceCache) -> list[DeltaState]:
    return [layer for layer in cache if isinstance(layer, DeltaState)]
