"""Keys and values of one attention layer. Knows nothing of rotary positions: what arrives is stored as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import mlx.core as mx

GROWTH = 256  # tokens; capacity grows by this much at least, so that decode seldom copies

Segment = tuple[mx.array, ...]  # one layer's memory of a span of tokens; the token axis is 2 in each array


class AttentionCache(Protocol):
    """What every format of keys and values offers: `KVCache` and the quantized ones."""

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


def own_copy(x: mx.array) -> mx.array:
    """The same values in memory of their own: a slice would keep the whole buffer it was cut from alive."""
    return x * mx.ones((), x.dtype)


class KVCache:
    """Append-only keys and values: `keys` [B, Hk, capacity, D], `values` the same, of which `length` are filled.

    Rows of one cache advance together. Trimming is free: attention commits by length.
    """

    def __init__(self) -> None:
        self.keys: mx.array | None = None
        self.values: mx.array | None = None
        self.length = 0

    def attend(self, q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
        """Append a window, then let its queries see everything up to themselves.

        q: [B, H, T, D]   k, v: [B, Hk, T, D], query head h reads key head h // (H / Hk) -> [B, H, T, D]
        """
        keys, values = self.extend(k, v)
        return causal_attention(q, keys, values, scale)

    def extend(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append a window; return all filled keys and values.

        keys: [B, Hk, T, D]   values: [B, Hk, T, D]   ->   [B, Hk, length + T, D] each
        """
        end = self.length + keys.shape[2]
        if self.keys is None or self.values is None or end > self.keys.shape[2]:
            self._grow(keys, values, end)
        assert self.keys is not None
        assert self.values is not None
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def _grow(self, keys: mx.array, values: mx.array, end: int) -> None:
        B, H, _, D = keys.shape
        # More than the window takes: one that filled the buffer whole would become it, and MLX would keep alive all of
        # what the window is a view of.
        extra = (end // GROWTH + 1) * GROWTH - self.length

        def grown(old: mx.array | None, new: mx.array) -> mx.array:
            room = mx.zeros((B, H, extra, D), new.dtype)
            return room if old is None else mx.concatenate([old[:, :, : self.length], room], axis=2)

        self.keys, self.values = grown(self.keys, keys), grown(self.values, values)

    def trim(self, n: int) -> int:
        """Forget the last `n` tokens; returns how many were forgotten."""
        n = min(n, self.length)
        self.length -= n
        return n

    def segment(self, start: int, end: int) -> Segment:
        """Copies of what is held of tokens [start, end)."""
        assert self.keys is not None
        assert self.values is not None
        return own_copy(self.keys[:, :, start:end]), own_copy(self.values[:, :, start:end])

    def load(self, segments: Sequence[Segment]) -> None:
        """Hold exactly these segments, one after another."""
        if not segments:
            self.keys = self.values = None
            self.length = 0
            return
        self.length = sum(segment[0].shape[2] for segment in segments)
        self.keys, self.values = (joined_with_room(arrays, self.length) for arrays in zip(*segments))

    # mlx-lm's cache protocol: what its generate loop asks of a cache.

    @property
    def offset(self) -> int:
        return self.length

    @property
    def state(self) -> list[mx.array]:
        """The filled arrays, for `mx.eval`."""
        if self.keys is None or self.values is None:
            return []
        return [self.keys[:, :, : self.length], self.values[:, :, : self.length]]

    @property
    def nbytes(self) -> int:
        return 0 if self.keys is None or self.values is None else self.keys.nbytes + self.values.nbytes

    def is_trimmable(self) -> bool:
        return True

    def empty(self) -> bool:
        return self.length == 0


def causal_attention(q: mx.array, keys: mx.array, values: mx.array, scale: float) -> mx.array:
    """The last T positions of a text attend to all of it.   q: [B, H, T, D]   keys, values: [B, Hk, L, D]"""
    if q.shape[2] == 1 and not mx.metal.is_available():
        return _attention_of_one(q, keys, values, scale)
    mask = "causal" if q.shape[2] > 1 else None
    return mx.fast.scaled_dot_product_attention(q, keys, values, scale=scale, mask=mask)


def _attention_of_one(q: mx.array, keys: mx.array, values: mx.array, scale: float) -> mx.array:
    """The last position's; off Metal, where MLX has no kernel for it, this is half of the operations.

    Queries that share a key head are the rows of one product.   Shapes as in `causal_attention`, T = 1
    """
    B, H, _, D = q.shape
    scores = (q * scale).reshape(B, keys.shape[1], -1, D) @ keys.swapaxes(2, 3)
    return (mx.softmax(scores, axis=-1, precise=True) @ values).reshape(B, H, 1, D)


def joined_with_room(arrays: Sequence[mx.array], length: int) -> mx.array:
    """Spans joined along the token axis, in a fresh buffer with room for the next tokens."""
    B, H, _, D = arrays[0].shape
    room = mx.zeros((B, H, -length % GROWTH or GROWTH, D), arrays[0].dtype)
    return mx.concatenate([*arrays, room], axis=2)
