"""Gated full attention: one layer in four. Grouped heads, per-head q/k norm, partial rotary, an output gate."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from mlx_qwen35.caches.kv import causal_attention
from mlx_qwen35.caches.rows import AttentionCache
from mlx_qwen35.models.config import ModelConfig
from mlx_qwen35.models.joined import project
from mlx_qwen35.models.layers import RMSNorm
from mlx_qwen35.models.rotary import Rotary
from mlx_qwen35.models.windows import Part, side_by_side


class Attention(nn.Module):
    """Parameters under the names that MLX checkpoints use."""

    JOINED = ("q_proj", "k_proj", "v_proj")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        C, D = config.hidden_size, config.head_dim
        self.heads, self.kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, D
        self.q_proj = nn.Linear(C, 2 * self.heads * D, bias=False)  # per head: D of query, then D of gate
        self.k_proj = nn.Linear(C, self.kv_heads * D, bias=False)
        self.v_proj = nn.Linear(C, self.kv_heads * D, bias=False)
        self.o_proj = nn.Linear(self.heads * D, C, bias=False)
        self.q_norm = RMSNorm(D, config.norm_eps)
        self.k_norm = RMSNorm(D, config.norm_eps)
        self.rotary = Rotary(config.rotary)

    def __call__(self, x: mx.array, cache: AttentionCache | None = None, positions: mx.array | None = None) -> mx.array:
        """x: [B, T, C]   positions: [3, B, T], or None for text that continues the cache -> [B, T, C]"""
        return self._output(self._mix(self._project(x), cache, positions))

    def packed(self, x: mx.array, parts: Sequence[Part]) -> mx.array:
        """Windows of several sequences.   x: [1, N, C] -> the same"""
        projected = self._project(x)
        mixed = [self._mix([part.cut(p) for p in projected], part.cache, part.positions) for part in parts]
        return self._output(side_by_side(mixed))

    def _project(self, x: mx.array) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        """Queries and their gate [B, T, H, D], keys and values [B, T, Hk, D]; q and k normed."""
        (B, T, _), D = x.shape, self.head_dim
        heads = (2 * self.heads, self.kv_heads, self.kv_heads)
        columns = project(self, self.JOINED, x)
        q_and_gate, k, v = (c.cut(H * D).reshape(B, T, H, D) for c, H in zip(columns, heads))
        q, gate = q_and_gate[:, :, ::2], q_and_gate[:, :, 1::2]
        return self.q_norm(q), gate, self.k_norm(k), v

    def _mix(self, projected: Sequence[mx.array], cache: AttentionCache | None, positions: mx.array | None) -> mx.array:
        """Attention over the cache and the window, gated: [B, T, H, D].   projected: what `_project` gives"""
        q, gate, k, v = projected
        q, k, v = q.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2)  # [B, H, T, D]
        if positions is None:
            offset = cache.offset if cache is not None else 0
            q, k = self.rotary.text(q, offset), self.rotary.text(k, offset)
        else:
            q, k = self.rotary(q, positions), self.rotary(k, positions)
        scale = self.head_dim**-0.5
        attended = cache.attend(q, k, v, scale) if cache is not None else causal_attention(q, k, v, scale)
        return attended.swapaxes(1, 2) * mx.sigmoid(gate)

    def _output(self, gated: mx.array) -> mx.array:
        return self.o_proj(gated.reshape(*gated.shape[:2], -1))
