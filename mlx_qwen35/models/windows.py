"""Windows of several sequences in one step, laid side by side along the time axis: no padding anywhere.

Norms, projections and experts see one long row of tokens. Mixers see groups: neighbouring windows of equal length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import mlx.core as mx

from mlx_qwen35.caches.delta_state import DeltaState
from mlx_qwen35.caches.rows import DeltaRows, KVRows, SequenceCache


@dataclass
class Window:
    """New tokens of one sequence, after the `length` its caches hold.

    ids: [T], int32   draft: how much of it stays is said after the step, by `commit`
    embeddings: [T, C] in place of ids   positions: [3, T], None for text that continues the caches
    """

    ids: mx.array
    cache: SequenceCache
    draft: bool = False
    embeddings: mx.array | None = None
    positions: mx.array | None = None

    @property
    def tokens(self) -> int:
        return self.ids.shape[0] if self.embeddings is None else self.embeddings.shape[0]


@dataclass(frozen=True)
class Part:
    """What one layer sees of a group: where it lies among the step's tokens, and its memory."""

    start: int
    B: int
    T: int
    cache: Any  # AttentionCache in attention layers; DeltaState or DeltaRows in the others
    draft: bool = False
    positions: mx.array | None = None  # [3, B, T]

    def cut(self, x: mx.array) -> mx.array:
        """[1, N, ...] -> this group's tokens, [B, T, ...]"""
        return x[:, self.start : self.start + self.B * self.T].reshape(self.B, self.T, *x.shape[2:])


class Group:
    """Neighbouring windows of equal length and kind."""

    def __init__(self, start: int, windows: Sequence[Window]) -> None:
        self.start, self.windows = start, windows
        self.offsets = mx.array([_length(window.cache) for window in windows])
        first = windows[0]
        self.T, self.draft = first.tokens, first.draft
        self.positions = None if first.positions is None else mx.stack([_of(w.positions) for w in windows], axis=1)

    def part(self, layer: int) -> Part:
        """This group as layer number `layer` sees it. To be made when the layer runs: stacking reads the states."""
        rows: list[Any] = [window.cache[layer] for window in self.windows]
        cache = rows[0]
        if len(rows) > 1:
            cache = DeltaRows(rows) if isinstance(cache, DeltaState) else KVRows(rows, self.offsets)
        return Part(self.start, len(rows), self.T, cache, self.draft, self.positions)


def grouped(windows: Sequence[Window]) -> list[Group]:
    """Windows in their order, neighbours of equal length and kind together."""
    groups, start = [], 0
    for _, run in groupby(windows, lambda w: (w.tokens, w.draft, w.positions is None)):
        members = list(run)
        groups.append(Group(start, members))
        start += sum(window.tokens for window in members)
    return groups


def side_by_side(mixed: Sequence[mx.array]) -> mx.array:
    """Groups' results [B, T, ...] in one row: [1, N, ...]"""
    flat = [x.reshape(1, -1, *x.shape[2:]) for x in mixed]
    return flat[0] if len(flat) == 1 else mx.concatenate(flat, axis=1)


def commit(cache: SequenceCache, window: int, kept: int) -> None:
    """Of a draft window of `window` tokens the first `kept` stay; the rest never happened."""
    for layer in cache:
        if isinstance(layer, DeltaState):
            layer.commit(kept)
        else:
            layer.trim(window - kept)


def _length(cache: SequenceCache) -> int:
    return cache[0].length


def _of(positions: mx.array | None) -> mx.array:
    assert positions is not None
    return positions
