"""Keys and values of one attention layer. Knows nothing of rotary positions: what arrives is stored as it is."""

from __future__ import annotations

import mlx.core as mx

GROWTH = 256  # tokens; capacity grows by this much at least, so that decode seldom copies


class KVCache:
    """Append-only keys and values: `keys` [B, Hk, capacity, D], `values` the same, of which `length` are filled.

    Rows of one cache advance together. Trimming is free: attention commits by length.
    """

    def __init__(self) -> None:
        self.keys: mx.array | None = None
        self.values: mx.array | None = None
        self.length = 0

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
        capacity = -(-end // GROWTH) * GROWTH
        extra = capacity - self.length

        def grown(old: mx.array | None, new: mx.array) -> mx.array:
            room = mx.zeros((B, H, extra, D), new.dtype)
            return room if old is None else mx.concatenate([old[:, :, : self.length], room], axis=2)

        self.keys, self.values = grown(self.keys, keys), grown(self.values, values)

    def trim(self, n: int) -> int:
        """Forget the last `n` tokens; returns how many were forgotten."""
        n = min(n, self.length)
        self.length -= n
        return n

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
