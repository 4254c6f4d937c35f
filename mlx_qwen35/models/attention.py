"""Gated full attention: one layer in four. Grouped heads, per-head q/k norm, partial rotary, an output gate."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import accumulate

import mlx.core as mx
import mlx.nn as nn

from mlx_qwen35.caches.kv import causal_attention
from mlx_qwen35.caches.rows import AttentionCache
from mlx_qwen35.metal_kernels.attention_prologue import Heads
from mlx_qwen35.metal_kernels.operations import attention_prologue
from mlx_qwen35.models.config import ModelConfig
from mlx_qwen35.models.joined import project
from mlx_qwen35.models.layers import RMSNorm
from mlx_qwen35.models.rotary import Rotary
from mlx_qwen35.models.windows import AttentionPart


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
        B, T, _ = x.shape
        angles = self.rotary.angles_of_rows(B, T, 0 if cache is None else cache.length, positions)
        return self.packed(x, [AttentionPart(B, T, cache)], angles)

    def packed(self, x: mx.array, parts: Sequence[AttentionPart], angles: mx.array) -> mx.array:
        """Windows of several sequences, each of which attends to its own cache.

        x: [1, N, C], or [B, T, C] of one part   angles: of all tokens, [N, dims], see `Rotary.angles` -> as x
        """
        N, H, Hk, D = angles.shape[0], self.heads, self.kv_heads, self.head_dim
        q_and_gate, k, v = project(self, self.JOINED, x)
        queries, keys = attention_prologue(q_and_gate, k, self._heads(), angles)
        values = v.cut(Hk * D).reshape(N, Hk, D)
        attended = [
            _attended(part, *own) for part, *own in zip(parts, *[_by_part(x, parts) for x in (queries, keys, values)])
        ]
        gate = q_and_gate.cut(2 * H * D).reshape(N, H, 2, D)[:, :, 1]
        gated = _gated(attended[0] if len(attended) == 1 else mx.concatenate(attended), gate)
        return self.o_proj(gated.reshape(*x.shape[:2], H * D))

    def _heads(self) -> Heads:
        return Heads(self.heads, self.kv_heads, self.q_norm.weight, self.k_norm.weight, self.q_norm.eps)


def _by_part(x: mx.array, parts: Sequence[AttentionPart]) -> list[mx.array]:
    """x: [N, heads, D] -> for each part [B, heads, T, D]"""
    if all(part.B == part.T == 1 for part in parts):
        return [*mx.split(x[:, :, None], len(parts))]
    ends = list(accumulate(part.B * part.T for part in parts))
    return [y.reshape(p.B, p.T, *y.shape[1:]).swapaxes(1, 2) for p, y in zip(parts, mx.split(x, ends[:-1]))]


def _attended(part: AttentionPart, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    """Queries see the cache, and their window up to themselves.

    q: [B, H, T, D]   k, v: [B, Hk, T, D] -> [B T, H, D]
    """
    B, H, T, D = q.shape
    attend = causal_attention if part.cache is None else part.cache.attend
    seen = attend(q, k, v, D**-0.5)
    return (seen if T == 1 else seen.swapaxes(1, 2)).reshape(B * T, H, D)


@functools.partial(mx.compile, shapeless=True)
def _gated(attended: mx.array, gate: mx.array) -> mx.array:
    """attended * sigmoid(gate), rounded once; compiled, it is one launch that reads the gate where it lies."""
    return (attended.astype(mx.float32) * mx.sigmoid(gate.astype(mx.float32))).astype(attended.dtype)
