"""A token's numbers to the last bit, whatever is computed beside it: other rows, drafts, windows of any length.

A matrix product rounds by the number of rows it has at once, attention by the queries, the delta rule by the tokens.
So here every product has `ROWS` rows, of one sequence and padded; every query attends alone; the delta rule goes token
by token, in its definition. Then a text has the same numbers however it was cut, batched, drafted or restored.

What it costs: prompts are read eight tokens at a time, and sequences do not share their steps. A mode for those who
compare runs. Shown on a CPU with OpenBLAS, whose products round each row alike wherever it stands among eight
(tests/generation/test_exact.py); for other devices the test is to be run there.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_qwen35.caches.exact_kv import ExactKV, ExactQuantizedKV
from mlx_qwen35.metal_kernels.operations import override, using
from mlx_qwen35.metal_kernels.override import REFERENCE
from mlx_qwen35.metal_kernels.selection import Selection
from mlx_qwen35.models.model import Model
from mlx_qwen35.models.off_metal import GroupedExperts
from mlx_qwen35.models.windows import Window, commit

ROWS = 8  # of every product; no window of a DeltaNet step may have more


class ExactModel(Model):
    """The network of another model, whose modules it shares and prepares for this mode; caches as in `exact_kv`."""

    def __init__(self, model: Model) -> None:
        nn.Module.__init__(self)
        self.config = model.config
        self.language_model = model.language_model
        if self.config.mtp_layers:
            self.mtp = model.mtp
        for module in self.modules():
            if isinstance(module, GroupedExperts):
                module.fixed_rows = ROWS
        self._definitions = Selection(override(REFERENCE))

    def arithmetic(self) -> AbstractContextManager[Any]:
        return using(self._definitions)

    def step(self, windows: Sequence[Window]) -> mx.array:
        """As `Model.step`, window after window, in pieces of `ROWS` tokens."""
        return mx.concatenate([piece for window in windows for piece in self._pieces(window)])

    def _pieces(self, window: Window) -> list[mx.array]:
        if window.tokens <= ROWS:
            return [self._padded(window)]
        assert not window.draft
        pieces = []
        for start in range(0, window.tokens, ROWS):
            part = slice(start, start + ROWS)
            embeddings = None if window.embeddings is None else window.embeddings[part]
            positions = None if window.positions is None else window.positions[:, part]
            pieces.append(self._padded(Window(window.ids[part], window.cache, False, embeddings, positions)))
        return pieces

    def _padded(self, window: Window) -> mx.array:
        """A window of up to `ROWS` tokens. What is added to it is a draft of which nothing stays."""
        tokens = window.tokens
        more = ROWS - tokens
        rows = self.embed(window.ids) if window.embeddings is None else window.embeddings
        rows = mx.concatenate([rows, mx.zeros((more, rows.shape[1]), rows.dtype)])
        positions = window.positions
        if positions is not None:
            positions = mx.concatenate([positions, mx.zeros((3, more), positions.dtype)], axis=1)
        for layer in window.cache:
            if isinstance(layer, (ExactKV, ExactQuantizedKV)):
                layer.real = tokens
        with self.arithmetic():
            hidden = super().step([Window(window.ids, window.cache, True, rows, positions)])
        if not window.draft:
            commit(window.cache, tokens, tokens)
        return hidden[:tokens]

    def logits(self, hidden: mx.array) -> mx.array:
        """As `Model.logits`, `ROWS` at a time.   hidden: [n, C] -> [n, V]"""
        n = hidden.shape[0]
        padded = mx.concatenate([hidden, mx.zeros((-n % ROWS, hidden.shape[1]), hidden.dtype)])
        parts = [super(ExactModel, self).logits(padded[i : i + ROWS]) for i in range(0, padded.shape[0], ROWS)]
        return mx.concatenate(parts)[:n]
