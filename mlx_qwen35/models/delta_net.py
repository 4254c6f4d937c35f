"""Gated DeltaNet: three layers in four. A short convolution, then a recurrent state with the gated delta rule."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from mlx_qwen35.caches.delta_state import DeltaState
from mlx_qwen35.metal_kernels.delta_rows import (
    Columns,
    DeltaMemory,
    DeltaWeights,
    HeldWindow,
    Projected,
    step_rows,
)
from mlx_qwen35.metal_kernels.operations import delta_step, gated_delta
from mlx_qwen35.metal_kernels.rms_norm import rms_norm
from mlx_qwen35.models.config import ModelConfig
from mlx_qwen35.models.joined import project
from mlx_qwen35.models.layers import CausalConv, GatedRMSNorm
from mlx_qwen35.models.windows import DeltaPart, side_by_side


class GatedDeltaNet(nn.Module):
    """Parameters under the names that MLX checkpoints use."""

    JOINED = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        C = config.hidden_size
        self.Hk, self.Hv = config.num_key_heads, config.num_value_heads
        self.Dk, self.Dv = config.key_dim, config.value_dim
        keys, values = self.Hk * self.Dk, self.Hv * self.Dv
        # Of queries, then of keys, once their mean of squares is one. In a tuple, which is no place for parameters.
        self.scales = (mx.array([[1 / self.Dk]] * self.Hk + [[self.Dk**-0.5]] * self.Hk),)
        self.conv1d = CausalConv(2 * keys + values, config.conv_width)
        self.in_proj_qkv = nn.Linear(C, 2 * keys + values, bias=False)
        self.in_proj_z = nn.Linear(C, values, bias=False)
        self.in_proj_b = nn.Linear(C, self.Hv, bias=False)
        self.in_proj_a = nn.Linear(C, self.Hv, bias=False)
        self.A_log = mx.zeros(self.Hv)
        self.dt_bias = mx.zeros(self.Hv)
        self.norm = GatedRMSNorm(self.Dv, config.norm_eps)
        self.out_proj = nn.Linear(values, C, bias=False)

    def __call__(self, x: mx.array, cache: DeltaState | None = None) -> mx.array:
        """x: [B, T, C] -> [B, T, C]; `cache` moves on by T tokens."""
        B, T, C = x.shape
        part = DeltaPart(0, [DeltaState() if cache is None else cache], (T,) * B, (False,))
        return self.packed(x.reshape(1, B * T, C), [part]).reshape(B, T, C)

    def packed(self, x: mx.array, parts: Sequence[DeltaPart]) -> mx.array:
        """Windows of several sequences, whose states move on.   x: [1, N, C] -> the same"""
        projected = self._project(x)
        mixed = [(self._step if part.is_short else self._mix)(_cut(projected, part), part) for part in parts]
        return self.out_proj(side_by_side(mixed).flatten(2))

    def _project(self, x: mx.array) -> Projected:
        """x: [1, N, C]"""
        qkv, z, b, a = project(self, self.JOINED, x)
        return Projected(qkv, z, a, b)

    def _step(self, projected: Projected, part: DeltaPart) -> mx.array:
        """Short windows of any lengths in one operation: [1, N, Hv, Dv]."""
        known = DeltaState.together(part.states)
        if known is None:
            memory, nothing = self._empty(len(part.tokens), projected.qkv.array.dtype), (0,) * len(part.tokens)
            rows = step_rows(part.tokens, nothing, nothing)
        else:
            memory, rows = known[0].memory, step_rows(part.tokens, known[0].held, known[1])
        stepped = delta_step(projected, self._weights(), memory, rows, any(part.drafts))
        DeltaState.move(part.states, stepped.memory, part.tokens, part.drafts)
        return stepped.output[None]

    def _mix(self, projected: Projected, part: DeltaPart) -> mx.array:
        """Long windows of one length, side by side: [B, T, Hv, Dv]."""
        B, T = len(part.tokens), part.tokens[0]
        keys, values = self.Hk * self.Dk, self.Hv * self.Dv
        qkv = projected.qkv.cut(2 * keys + values).reshape(B, T, -1)
        tails, states = self._settled(part, qkv.dtype)
        inputs = mx.concatenate([tails, qkv], axis=1)
        q_and_k, v = mx.split(self.conv1d(inputs), [2 * keys], axis=-1)
        # x / |x| by the fused norm, for queries and keys at once: the mean of squares is their sum / Dk, and so is its
        # epsilon.
        q_and_k = rms_norm(q_and_k.reshape(B, T, 2 * self.Hk, self.Dk), None, 1e-6 / self.Dk)
        q, k = mx.split(q_and_k * self.scales[0], 2, axis=2)
        v = v.reshape(B, T, self.Hv, self.Dv)
        log_decay = _log_decay(projected.a.cut(self.Hv), self.A_log, self.dt_bias).reshape(B, T, -1)
        beta = _rate(projected.b.cut(self.Hv)).reshape(B, T, -1)
        output, after = gated_delta(q, k, v, log_decay, beta, states)
        if any(part.drafts):
            held = HeldWindow(*(x.flatten(0, 1) for x in (k, v, log_decay, beta)))
            memory = DeltaMemory(inputs.flatten(0, 1), states, held)
        else:
            memory = DeltaMemory(mx.contiguous(inputs[:, T:]).flatten(0, 1), after)
            # MLX computes last in a step what nothing waits for, and would hold every layer's whole window until then,
            # for the few rows at its end.
            (output,) = mx.depends([output], [memory.inputs, memory.state])
        DeltaState.move(part.states, memory, part.tokens, part.drafts)
        return self.norm(output, projected.z.cut(values).reshape(B, T, self.Hv, self.Dv))

    def _settled(self, part: DeltaPart, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
        """Tails [B, width - 1, conv_dim] and states [B, Hv, Dv, Dk] before the part's windows."""
        for state in part.states:
            state.settle()
        known = DeltaState.together(part.states)
        B = len(part.tokens)
        memory = known[0].memory if known is not None else self._empty(B, dtype)
        return memory.inputs.reshape(B, -1, memory.inputs.shape[1]), memory.state

    def _empty(self, B: int, dtype: mx.Dtype) -> DeltaMemory:
        """What is remembered before the first token."""
        channels, width, _ = self.conv1d.weight.shape
        state = mx.zeros((B, self.Hv, self.Dv, self.Dk))
        return DeltaMemory(mx.zeros((B * (width - 1), channels), dtype), state)

    def _weights(self) -> DeltaWeights:
        arrays = self.conv1d.weight, self.A_log, self.dt_bias, self.norm.weight
        made = getattr(self, "_made", None)
        # Checked once, not in every step; weights are replaced whole (loading, adapters), never written into.
        if made is None or any(a is not b for a, b in zip(arrays, (made.conv, made.A_log, made.dt_bias, made.norm))):
            made = self._made = DeltaWeights(*arrays, self.norm.eps, self.Hk)
        return made


@functools.partial(mx.compile, shapeless=True)
def _log_decay(a: mx.array, A_log: mx.array, dt_bias: mx.array) -> mx.array:
    """float32, in the shape of a."""
    return -mx.exp(A_log) * nn.softplus(a.astype(mx.float32) + dt_bias)


@functools.partial(mx.compile, shapeless=True)
def _rate(b: mx.array) -> mx.array:
    """beta, float32, in the shape of b."""
    return mx.sigmoid(b.astype(mx.float32))


def _cut(projected: Projected, part: DeltaPart) -> Projected:
    """The part's tokens."""
    if sum(part.tokens) == projected.z.array.shape[0]:
        return projected
    rows = slice(part.start, part.start + sum(part.tokens))
    return Projected(*(Columns(p.array[rows], p.first) for p in vars(projected).values()))
