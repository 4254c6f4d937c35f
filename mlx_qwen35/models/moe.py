"""The mixture-of-experts feed-forward: a router, the experts it chooses, and a shared expert with its own gate."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_qwen35.models.config import ExpertsConfig
from mlx_qwen35.models.joined import project
from mlx_qwen35.models.layers import MLP

SORT_FROM = 64  # pairs of token and expert from which sorting by expert pays, as in mlx-lm


class ExpertLinear(nn.Module):
    """One linear map per expert: `weight` [E, out, in]."""

    def __init__(self, experts: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = mx.zeros((experts, outputs, inputs))

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool) -> mx.array:
        """x: [.., 1, in]   indices: [..] which expert -> [.., 1, out]"""
        return mx.gather_mm(x, self.weight.swapaxes(-1, -2), rhs_indices=indices, sorted_indices=sorted_indices)

    def to_quantized(self, group_size: int, bits: int, mode: str = "affine", **_: Any) -> QuantizedExpertLinear:
        return QuantizedExpertLinear(self, group_size, bits, mode)


class QuantizedExpertLinear(nn.Module):
    """`ExpertLinear` with packed weights."""

    def __init__(self, plain: ExpertLinear, group_size: int, bits: int, mode: str) -> None:
        super().__init__()
        self.group_size, self.bits, self.mode = group_size, bits, mode
        self.weight, self.scales, *biases = mx.quantize(plain.weight, group_size, bits, mode=mode)
        self.biases = biases[0] if biases else None
        self.freeze()

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool) -> mx.array:
        return mx.gather_qmm(
            x,
            self.weight,
            self.scales,
            self.biases,
            rhs_indices=indices,
            transpose=True,
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
            sorted_indices=sorted_indices,
        )


class Experts(nn.Module):
    """All routed experts of a layer, stacked: down_e(silu(gate_e x) * up_e x)."""

    def __init__(self, dims: int, config: ExpertsConfig) -> None:
        super().__init__()
        self.gate_proj = ExpertLinear(config.count, dims, config.width)
        self.up_proj = ExpertLinear(config.count, dims, config.width)
        self.down_proj = ExpertLinear(config.count, config.width, dims)

    def __call__(self, x: mx.array, chosen: mx.array) -> mx.array:
        """x: [B, T, C]   chosen: [B, T, K] -> [B, T, K, C]"""
        K = chosen.shape[-1]
        flat = chosen.flatten()
        in_order = flat.size >= SORT_FROM
        if in_order:
            # Neighbouring pairs then read the same expert's weights.
            order = mx.argsort(flat)
            rows, experts = x.reshape(-1, 1, x.shape[-1])[order // K], flat[order]
        else:
            rows, experts = x.reshape(-1, 1, 1, x.shape[-1]), chosen.reshape(-1, K)
        hidden = nn.silu(self.gate_proj(rows, experts, in_order)) * self.up_proj(rows, experts, in_order)
        output = self.down_proj(hidden, experts, in_order)
        if in_order:
            output = output[mx.argsort(order)]
        return output.reshape(*chosen.shape, -1)


class SparseMoE(nn.Module):
    """Parameters under the names that MLX checkpoints use; `gate` is the router."""

    JOINED = ("gate", "shared_expert_gate")

    def __init__(self, dims: int, config: ExpertsConfig) -> None:
        super().__init__()
        self.count, self.chosen = config.count, config.chosen
        self.gate = nn.Linear(dims, config.count, bias=False)
        self.switch_mlp = Experts(dims, config)
        self.shared_expert = MLP(dims, config.shared_width)
        self.shared_expert_gate = nn.Linear(dims, 1, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        """x: [B, T, C] -> [B, T, C]"""
        router, shared = project(self, self.JOINED, x)
        chosen, weights = self.route(router.cut(self.count).reshape(*x.shape[:-1], self.count))
        routed = (self.switch_mlp(x, chosen) * weights[..., None]).sum(axis=-2)
        gate = mx.sigmoid(shared.cut(1)).reshape(*x.shape[:-1], 1)
        return routed + gate * self.shared_expert(x)

    def route(self, logits: mx.array) -> tuple[mx.array, mx.array]:
        """logits: [B, T, E] -> the chosen experts [B, T, K] and their weights, which sum to one, in the same dtype."""
        probabilities = mx.softmax(logits.astype(mx.float32), axis=-1)
        chosen = mx.stop_gradient(mx.argpartition(-probabilities, self.chosen - 1, axis=-1)[..., : self.chosen])
        weights = mx.take_along_axis(probabilities, chosen, axis=-1)
        return chosen, (weights / weights.sum(-1, keepdims=True)).astype(logits.dtype)
