"""Gated DeltaNet: three layers in four. A short convolution, then a recurrent state with the gated delta rule."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from mlx_qwen35.caches.delta_state import DeltaState, DraftWindow
from mlx_qwen35.caches.rows import DeltaRows
from mlx_qwen35.metal_kernels.operations import gated_delta
from mlx_qwen35.models.config import ModelConfig
from mlx_qwen35.models.joined import project
from mlx_qwen35.models.layers import CausalConv, GatedRMSNorm
from mlx_qwen35.models.windows import Part, side_by_side

Memory = DeltaState | DeltaRows


class GatedDeltaNet(nn.Module):
    """Parameters under the names that MLX checkpoints use."""

    JOINED = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        C = config.hidden_size
        self.Hk, self.Hv = config.num_key_heads, config.num_value_heads
        self.Dk, self.Dv = config.key_dim, config.value_dim
        keys, values = self.Hk * self.Dk, self.Hv * self.Dv
        self.splits = [keys, 2 * keys]  # of q | k | v
        self.conv1d = CausalConv(2 * keys + values, config.conv_width)
        self.in_proj_qkv = nn.Linear(C, 2 * keys + values, bias=False)
        self.in_proj_z = nn.Linear(C, values, bias=False)
        self.in_proj_b = nn.Linear(C, self.Hv, bias=False)
        self.in_proj_a = nn.Linear(C, self.Hv, bias=False)
        self.A_log = mx.zeros(self.Hv)
        self.dt_bias = mx.zeros(self.Hv)
        self.norm = GatedRMSNorm(self.Dv, config.norm_eps)
        self.out_proj = nn.Linear(values, C, bias=False)

    def __call__(self, x: mx.array, cache: Memory | None = None) -> mx.array:
        """x: [B, T, C] -> [B, T, C]; `cache` moves on by T tokens."""
        return self._output(self._mix(self._project(x), cache, draft=False))

    def packed(self, x: mx.array, parts: Sequence[Part]) -> mx.array:
        """Windows of several sequences.   x: [1, N, C] -> the same"""
        projected = self._project(x)
        mixed = [self._mix([part.cut(p) for p in projected], part.cache, part.draft) for part in parts]
        return self._output(side_by_side(mixed))

    def _project(self, x: mx.array) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        """The convolution's inputs [B, T, conv_dim], the gate z [B, T, Hv, Dv], log decay and beta [B, T, Hv]."""
        widths = (self.conv1d.weight.shape[0], self.Hv * self.Dv, self.Hv, self.Hv)
        columns = project(self, self.JOINED, x)
        qkv, z, b, a = (c.cut(width).reshape(*x.shape[:2], width) for c, width in zip(columns, widths))
        beta = mx.sigmoid(b.astype(mx.float32))
        a = a.astype(mx.float32)
        log_decay = -mx.exp(self.A_log.astype(mx.float32)) * nn.softplus(a + self.dt_bias)
        return qkv, z.reshape(*x.shape[:2], self.Hv, self.Dv), log_decay, beta

    def _mix(self, projected: Sequence[mx.array], cache: Memory | None, draft: bool) -> mx.array:
        """Convolution, delta rule, gated norm: [B, T, Hv, Dv]. A draft is held by the cache, any other window stays."""
        qkv, z, log_decay, beta = projected
        B, T, _ = qkv.shape
        tail_and_qkv = mx.concatenate([self._tail(qkv, cache), qkv], axis=1)
        mixed = self.conv1d(tail_and_qkv).astype(mx.float32)
        q, k, v = mx.split(mixed, self.splits, axis=-1)
        q = _l2_norm(q.reshape(B, T, self.Hk, self.Dk)) * self.Dk**-0.5
        k = _l2_norm(k.reshape(B, T, self.Hk, self.Dk))
        v = v.reshape(B, T, self.Hv, self.Dv)
        output, delta = gated_delta(q, k, v, log_decay, beta, cache.delta if cache is not None else None)
        if cache is not None and draft:
            cache.hold(DraftWindow(tail_and_qkv, k, v, log_decay, beta))
        elif cache is not None:
            cache.advance(mx.contiguous(tail_and_qkv[:, T:]), delta, T)
        return self.norm(output, z)

    def _output(self, normed: mx.array) -> mx.array:
        return self.out_proj(normed.reshape(*normed.shape[:2], -1))

    def _tail(self, qkv: mx.array, cache: Memory | None) -> mx.array:
        """The raw inputs just before this window: [B, width - 1, conv_dim], zeros at the start of a text."""
        if cache is not None and cache.conv_tail is not None:
            return cache.conv_tail
        B, _, channels = qkv.shape
        return mx.zeros((B, self.conv1d.weight.shape[1] - 1, channels), qkv.dtype)


def _l2_norm(x: mx.array) -> mx.array:
    """x / |x| over the last axis. The epsilon is added to the sum of squares, not to their mean."""
    return x * mx.rsqrt((x * x).sum(-1, keepdims=True) + 1e-6)
