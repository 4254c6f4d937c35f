"""Windows of several sequences in one step, laid side by side along the time axis: no padding anywhere.

Norms, projections and experts see one long row of tokens. Attention sees each window beside its sequence's cache.
DeltaNet layers see short windows together, whatever their lengths, and long ones in groups too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_qwen35.caches.delta_state import DeltaState
from mlx_qwen35.caches.draft_memory import DraftKV, LastHidden
from mlx_qwen35.caches.kv import own_copy
from mlx_qwen35.caches.rows import AttentionCache, SequenceCache
from mlx_qwen35.metal_kernels.delta_rows import MOST_TOKENS
from mlx_qwen35.models.rotary import text_positions

MOST_ALONG = 32  # times a window's own hidden states that it keeps alive, of its neighbours in the step


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

    @staticmethod
    def of_embeddings(embeddings: mx.array, kv: Any) -> Window:
        """[T, C], for a network of one attention layer: MTP."""
        return Window(mx.zeros(0, mx.int32), [kv], embeddings=embeddings)

    @property
    def tokens(self) -> int:
        return self.ids.shape[0] if self.embeddings is None else self.embeddings.shape[0]


@dataclass(frozen=True)
class AttentionPart:
    """What an attention layer sees of a window: B rows of T tokens, and the cache they share, None to remember nothing.

    B is 1 but where mlx-lm's tools run several texts of one length.
    """

    B: int
    T: int
    cache: AttentionCache | None


def attention_parts(windows: Sequence[Window], layer: int) -> list[AttentionPart]:
    """The windows as attention layer number `layer` sees them, in their order."""
    caches: list[Any] = [window.cache[layer] for window in windows]
    return [AttentionPart(1, window.tokens, cache) for window, cache in zip(windows, caches)]


def positions_of(windows: Sequence[Window]) -> np.ndarray:
    """The (t, h, w) position of each token of a step: [3, N]"""
    known = [
        text_positions(w.cache[0].length, w.tokens) if w.positions is None else np.array(w.positions) for w in windows
    ]
    return np.concatenate(known, axis=1)


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


def see(windows: Sequence[Window], hidden: mx.array, embeddings: Sequence[mx.array]) -> None:
    """Let those caches that remember for the MTP layer see the step.   hidden: [N, C]   embeddings: [T, C] each"""
    remembering = [[layer for layer in window.cache if isinstance(layer, DraftKV)] for window in windows]
    if not any(remembering):
        return
    ends = list(accumulate(window.tokens for window in windows))
    for window, layers, own, rows in zip(windows, remembering, mx.split(hidden, ends[:-1]), embeddings):
        if layers and window.tokens * MOST_ALONG < ends[-1]:
            own = own_copy(own)  # what waits would keep a long neighbour's numbers alive, step after step
            mx.async_eval(own)
        for layer in layers:
            layer.see(own, rows, window.draft)


def commit(cache: SequenceCache, window: int, kept: int) -> None:
    """Of a draft window of `window` tokens the first `kept` stay; the rest never happened."""
    for layer in cache:
        if isinstance(layer, (DeltaState, DraftKV)):
            layer.commit(kept)
        elif not isinstance(layer, LastHidden):
            layer.trim(window - kept)
