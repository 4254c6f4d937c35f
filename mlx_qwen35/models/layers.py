"""Small layers that several parts of the network share."""

from __future__ import annotations

import functools
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_qwen35.metal_kernels.expert_mlp import swiglu
from mlx_qwen35.metal_kernels.operations import add_rms_norm
from mlx_qwen35.metal_kernels.rms_norm import rms_norm
from mlx_qwen35.models.joined import project


class RMSNorm(nn.Module):
    """Root-mean-square norm. `weight` is the factor itself, float32.

    Checkpoints store the zero-centred offset w; loading makes 1 + w of it and keeps it in float32,
    because rounding 1 + w to bfloat16 moves the logits.
    """

    def __init__(self, dims: int, eps: float) -> None:
        super().__init__()
        self.weight = mx.ones(dims)
        self.eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        """x: [..., dims] -> the same shape and dtype; computed in float32."""
        return rms_norm(x, self.weight, self.eps).astype(x.dtype)

    def of_sum(self, x: mx.array, added: mx.array | None) -> tuple[mx.array, mx.array]:
        """x + added, and its norm.   x, added: [..., dims], one dtype; None adds nothing -> the same shape and dtype"""
        if added is None:
            return x, self(x)
        return add_rms_norm(x, added, self.weight, self.eps)


class GatedRMSNorm(RMSNorm):
    """The DeltaNet's output norm: norm first, then the gate. Its stored weight is not zero-centred."""

    def __call__(self, x: mx.array, gate: mx.array) -> mx.array:  # pyright: ignore[reportIncompatibleMethodOverride]
        """x: [..., dims], float32   gate: [..., dims] -> [..., dims] in the gate's dtype"""
        return _gated(rms_norm(x, self.weight, self.eps), gate)


@functools.partial(mx.compile, shapeless=True)
def _gated(normed: mx.array, gate: mx.array) -> mx.array:
    return (normed * nn.silu(gate.astype(mx.float32))).astype(gate.dtype)


@functools.partial(mx.compile, shapeless=True)
def _wide_silu(x: mx.array) -> mx.array:
    return nn.silu(x.astype(mx.float32))


class CausalConv(nn.Module):
    """Depthwise causal convolution over time, followed by SiLU. No bias, no padding: the tail comes from the cache."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = mx.zeros((channels, width, 1))

    def __call__(self, x: mx.array) -> mx.array:
        """x: [B, width - 1 + T, channels], tail first -> [B, T, channels], float32"""
        return _wide_silu(mx.conv1d(x, self.weight, groups=self.weight.shape[0]))


class MLP(nn.Module):
    """The dense feed-forward: down(silu(gate x) * up x)."""

    JOINED = ("gate_proj", "up_proj")

    def __init__(self, dims: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.gate_proj = nn.Linear(dims, width, bias=False)
        self.up_proj = nn.Linear(dims, width, bias=False)
        self.down_proj = nn.Linear(width, dims, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        """x: [..., C] -> [..., C]"""
        gate, up = (c.cut(self.width) for c in project(self, self.JOINED, x))
        return self.down_proj(swiglu(gate, up)).reshape(x.shape)


def module_at(root: nn.Module, path: str) -> nn.Module:
    """The part of a network at a path of names and numbers, such as `language_model.model.layers.0`."""
    part: Any = root
    for name in path.split("."):
        part = part[int(name)] if isinstance(part, list) else part[name]
    return part
