"""Keys and values that are attended to one query at a time, so that a token's sums never depend on its window.

Windows come padded to a fixed number of rows (models/exact.py); `real` says how many of them are tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from mlx_qwen35.caches.kv import KVCache, causal_attention
from mlx_qwen35.caches.quantized_kv import QuantizedKVCache


class ExactKV(KVCache):
    """`KVCache`, query by query."""

    real = 0  # tokens of the next window; what follows them is padding and is not kept

    def attend(self, q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
        n = self.real
        keys, values = self.extend(k[:, :, :n], v[:, :, :n])
        start = self.length - n + 1
        return _each(
            q, n, lambda t, one: causal_attention(one, keys[:, :, : start + t], values[:, :, : start + t], scale)
        )


class ExactQuantizedKV(QuantizedKVCache):
    """`QuantizedKVCache`, query by query."""

    real = 0

    def attend(self, q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
        n = self.real
        self.append(k[:, :, :n], v[:, :, :n])
        start = self.length - n + 1

        def one(t: int, query: mx.array) -> mx.array:
            self.length = start + t
            return self.attend_held(query, k.shape[1], scale)

        return _each(q, n, one)


def _each(q: mx.array, real: int, attend: Callable[[int, mx.array], mx.array]) -> mx.array:
    """q: [B, H, T, D] -> the same, zeros after the first `real`"""
    made = [attend(t, q[:, :, t : t + 1]) for t in range(real)]
    return mx.concatenate([*made, mx.zeros_like(q[:, :, real:])], axis=2)
