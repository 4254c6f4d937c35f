"""The mixture-of-experts feed-forward: a router, the experts it chooses, and a shared expert with its own gate."""

from __future__ import annotations

import logging
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_qwen35.metal_kernels.expert_mlp import MOST_TOKENS, swiglu
from mlx_qwen35.metal_kernels.expert_weights import ExpertWeights, Matrices, packed, plain
from mlx_qwen35.metal_kernels.operations import expert_mlp, route
from mlx_qwen35.metal_kernels.router import SMALLEST
from mlx_qwen35.models.config import ExpertsConfig
from mlx_qwen35.models.joined import project, stored
from mlx_qwen35.models.layers import MLP

_LOG = logging.getLogger(__name__)
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
        """x: [..., C]   chosen: [..., K] -> [..., K, C]"""
        K = chosen.shape[-1]
        flat = chosen.flatten()
        in_order = flat.size >= SORT_FROM
        if in_order:
            # Neighbouring pairs then read the same expert's weights.
            order = mx.argsort(flat)
            rows, experts = x.reshape(-1, 1, x.shape[-1])[order // K], flat[order]
        else:
            rows, experts = x.reshape(-1, 1, 1, x.shape[-1]), chosen.reshape(-1, K)
        hidden = swiglu(self.gate_proj(rows, experts, in_order), self.up_proj(rows, experts, in_order))
        output = self.down_proj(hidden, experts, in_order)
        if in_order:
            output = output[mx.argsort(order)]
        return output.reshape(*chosen.shape, -1)


STORED = (ExpertLinear, QuantizedExpertLinear, nn.Linear, nn.QuantizedLinear)  # and so kernels read them


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
        rows, K = x.reshape(-1, x.shape[-1]), self.chosen
        chosen, weights = route(self._logits(rows), self.count, K)
        if rows.shape[0] <= MOST_TOKENS and (experts := self._kernel_weights()):
            return expert_mlp(rows, chosen, weights, experts).reshape(x.shape)
        weights = weights.astype(x.dtype)[..., None]
        routed = (self.switch_mlp(rows, chosen[:, :K]) * weights[:, :K]).sum(axis=-2)
        return (routed + weights[:, K] * self.shared_expert(rows)).reshape(x.shape)

    def _logits(self, rows: mx.array) -> mx.array:
        """Of the experts, then of the shared one's gate, then of nothing: [N, W], at least eight."""
        router, shared = project(self, self.JOINED, rows)
        if router.array is shared.array and (router.first, shared.first) == (0, self.count):
            return router.array
        rest = mx.zeros((len(rows), max(0, SMALLEST - self.count - 1)), rows.dtype)
        return mx.concatenate([router.cut(self.count), shared.cut(1), rest], axis=-1)

    def _kernel_weights(self) -> ExpertWeights | None:
        """The experts as kernels take them, made on the first call; None where they are stored as no kernel reads."""
        # In a tuple, which is no place for parameters. Asked for every token, so what was made is only looked over.
        arrays, made = self.get("_held", ((), None))
        if not arrays or any(owner.get(name) is not array for owner, name, array in arrays):
            made = _expert_weights(self.switch_mlp, self.shared_expert, self.chosen)
            self._held = (_arrays(self), made)
        return made


def _arrays(layer: SparseMoE) -> list[tuple[nn.Module, str, Any]]:
    """Those of all experts: the module, the name, and what stands there until it is replaced."""
    modules = [*layer.switch_mlp.modules(), *layer.shared_expert.modules()]
    return [(m, name, array) for m in modules for name, array in m.items() if isinstance(array, mx.array)]


def _expert_weights(routed: nn.Module, shared: MLP, chosen: int) -> ExpertWeights | None:
    if type(routed) is not Experts:
        return None
    sources: list[tuple[nn.Module, int, int]] = [(routed[name], 0, 0) for name in ("gate_proj", "up_proj", "down_proj")]
    for name, rows in (("gate_proj", shared.width), ("up_proj", shared.width), ("down_proj", 0)):
        matrix, first = stored(shared, name)
        sources.append((matrix, rows, first))
    if any(type(source) not in STORED for source, *_ in sources):
        return None
    try:
        return ExpertWeights(*[_matrices(*source) for source in sources], chosen=chosen)
    except ValueError as error:
        _LOG.debug("no kernel for a layer's experts: %s", error)
        return None


def _matrices(source: Any, rows: int, first: int) -> Matrices:
    """rows: how many of the stored ones are meant, from `first` on; 0 for all"""
    if "scales" not in source:
        return plain(source.weight, rows, first)
    biases = source.get("biases")
    return packed(source.weight, source.scales, biases, source.group_size, source.bits, source.mode, rows, first)
