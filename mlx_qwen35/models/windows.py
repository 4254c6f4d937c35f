"""Windows of several sequences in one step, laid side by side along the time axis: no padding anywhere.

Norms, projections and experts see one long row of tokens. Attention sees groups: neighbouring windows of equal length.
DeltaNet layers see short windows together, whatever their lengths, and long ones in groups too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import mlx.core as mx

from mlx_qwen35.caches.delta_state import DeltaState
from mlx_qwen35.caches.rows import KVRows, SequenceCache
from mlx_qwen35.metal_kernels.delta_rows import MOST_TOKENS


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
    cache: Any  # an AttentionCache
    positions: mx.array | None = None  # [3, B, T]

    def cut(self, x: mx.array) -> mx.array:
        """[1, N, ...] -> this group's tokens, [B, T, ...]"""
        return x[:, self.start : self.start + self.B * self.T].reshape(self.B, self.T, *x.shape[2:])


@dataclass(frozen=True)
class DeltaPart:
    """What one DeltaNet layer sees of neighbouring windows: where they begin among the step's tokens, the rows' states,
    tokens of each row (long windows are of one length), and which states are to hold theirs as drafts.
    """

    start: int
    states: Sequence[DeltaState]
    tokens: tuple[int, ...]
    drafts: tuple[bool, ...]

    @property
    def is_short(self) -> bool:
        return max(self.tokens) <= MOST_TOKENS


class DeltaGroup:
    """Neighbouring windows that DeltaNet layers take together."""

    def __init__(self, start: int, windows: Sequence[Window]) -> None:
        self.start, self.windows = start, windows
        self.tokens, self.drafts = tuple(w.tokens for w in windows), tuple(w.draft for w in windows)

    def part(self, layer: int) -> DeltaPart:
        """This group as layer number `layer` sees it."""
        states: Any = [window.cache[layer] for window in self.windows]
        return DeltaPart(self.start, states, self.tokens, self.drafts)


class Group:
    """Neighbouring windows of equal length and kind."""

    def __init__(self, start: int, windows: Sequence[Window]) -> None:
        self.start, self.windows = start, windows
        self.offsets = mx.array([_length(window.cache) for window in windows])
        first = windows[0]
        self.T = first.tokens
        self.positions = None if first.positions is None else mx.stack([_of(w.positions) for w in windows], axis=1)

    def part(self, layer: int) -> Part:
        """This group as layer number `layer` sees it. To be made when the layer runs: stacking reads the states."""
        rows: list[Any] = [window.cache[layer] for window in self.windows]
        cache = rows[0]
        if len(rows) > 1:
            cache = KVRows(rows, self.offsets)
        return Part(self.start, len(rows), self.T, cache, self.positions)


def grouped(windows: Sequence[Window]) -> list[Group]:
    """Windows in their order, neighbours of equal length and kind together."""
    groups, start = [], 0
    for _, run in groupby(windows, lambda w: (w.tokens, w.positions is None)):
        members = list(run)
        groups.append(Group(start, members))
        start += sum(window.tokens for window in members)
    return groups


def delta_grouped(windows: Sequence[Window]) -> list[DeltaGroup]:
    """Windows in their order, neighbours that DeltaNet layers take together: short ones, and long ones of one kind."""
    groups, start = [], 0
    for _, run in groupby(windows, lambda w: None if w.tokens <= MOST_TOKENS else (w.tokens, w.draft)):
        members = list(run)
        groups.append(DeltaGroup(start, members))
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
