"""Gated full attention: one layer in four. Grouped heads, per-head q/k norm, partial rotary, an output gate."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_qwen35.caches.kv import KVCache
from mlx_qwen35.models.config import ModelConfig
from mlx_qwen35.models.layers import RMSNorm
from mlx_qwen35.models.rotary import Rotary


class Attention(nn.Module):
    """Parameters under the names that MLX checkpoints use."""

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

    def __call__(self, x: mx.array, cache: KVCache | None = None, positions: mx.array | None = None) -> mx.array:
        """x: [B, T, C]   positions: [3, B, T], or None for text that continues the cache -> [B, T, C]"""
        B, T, _ = x.shape
        q_and_gate = self.q_proj(x).reshape(B, T, self.heads, 2, self.head_dim)
        q, gate = q_and_gate[:, :, :, 0], q_and_gate[:, :, :, 1]
        k = self.k_proj(x).reshape(B, T, self.kv_heads, self.head_dim)
        v = self.v_proj(x).reshape(B, T, self.kv_heads, self.head_dim)
        q = self.q_norm(q).swapaxes(1, 2)  # [B, H, T, D]
        k = self.k_norm(k).swapaxes(1, 2)
        v = v.swapaxes(1, 2)
        if positions is None:
            offset = cache.length if cache is not None else 0
            q, k = self.rotary.text(q, offset), self.rotary.text(k, offset)
        else:
            q, k = self.rotary(q, positions), self.rotary(k, positions)
        if cache is not None:
            k, v = cache.extend(k, v)
        attended = mx.fast.scaled_dot_product_attention(
            q, k, v, scale=self.head_dim**-0.5, mask="causal" if T > 1 else None
        )
        gated = attended.swapaxes(1, 2) * mx.sigmoid(gate)  # [B, T, H, D]
        return self.o_proj(gated.reshape(B, T, -1))
