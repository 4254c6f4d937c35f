"""Running without Metal (Linux, CI): the same network in float32. Nothing here touches the Metal path.

MLX's CPU backend is fast in float32 with a real BLAS and very slow elsewhere: quantized matmul runs at 2 GFLOP/s in
float32 and below 0.2 in bfloat16, bfloat16 matmul at 3, float32 matmul with OpenBLAS at over 60. So activations are
float32, small models are dequantized once, and larger ones are unpacked for windows of `UNPACK_FROM` rows and more,
where that costs less than the packed matmul. What stays packed is held as it is stored: its scales, widened, would
take another ninth of a 4-bit network, and are widened for each product instead, for 2 % of its time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlx_qwen35.hub.headers import TensorEntry
from mlx_qwen35.hub.memory import loaded_tensors, weights_as_loaded
from mlx_qwen35.metal_kernels.expert_mlp import swiglu
from mlx_qwen35.models.layers import CausalConv, module_at
from mlx_qwen35.models.moe import Experts, QuantizedExpertLinear

UNPACK_FROM = 3  # rows; measured break-even of unpacking + sgemm against quantized matmul
# Multiply-adds of a window's rows with one matrix each; measured break-even of one row at a time, in one operation,
# against one operation for each expert, which reads a matrix once for all of its rows.
ROW_BY_ROW = 4 << 20
DENSE_LIMIT = 4 << 30  # bytes; up to this size in float32, weights are dequantized once

Packed = nn.QuantizedLinear | nn.QuantizedEmbedding | QuantizedExpertLinear


def prepare(model: nn.Module) -> None:
    """Swap modules for ones that compute in float32, in place; weights of small models become dense float32.

    One module at a time, so that what it was and what it becomes are both held for that one only.
    """
    dense = float32_bytes(model) <= DENSE_LIMIT
    swaps: dict[type | tuple[type, ...], Callable[[Any], nn.Module]] = {
        CausalConv: ShiftedConv,
        Experts: partial(GroupedExperts, dense=dense),
        (nn.Linear, nn.QuantizedLinear): partial(Float32Linear, dense=dense),
        (nn.Embedding, nn.QuantizedEmbedding): partial(Float32Embedding, dense=dense),
    }
    modules = model.named_modules()
    for path, make in [(p, make) for p, module in modules for kind, make in swaps.items() if isinstance(module, kind)]:
        made = make(module_at(model, path))
        mx.eval(made.parameters())
        model.update_modules(tree_unflatten([(path, made)]))
    mx.eval(model.parameters())


def float32_bytes(model: nn.Module) -> int:
    """What the network's weights would occupy, dequantized to float32."""
    total = 0
    for _, module in model.named_modules():
        if isinstance(module, Packed):
            total += module.weight.size * 32 // module.bits * 4
        else:
            total += sum(p.size * 4 for p in module.values() if isinstance(p, mx.array))
    return total


class Matrix(nn.Module):
    """A weight matrix, dense or packed, that multiplies float32 rows."""

    def __init__(self, source: nn.Module, dense: bool) -> None:
        super().__init__()
        self._packing: dict[str, Any] = {}
        if isinstance(source, Packed):
            self._packing = {"group_size": source.group_size, "bits": source.bits, "mode": source.mode}
        arrays = {n: a for n, a in source.items() if n in ("weight", "scales", "biases") and a is not None}
        if not self._packing:
            self.weight = arrays["weight"].astype(mx.float32) if dense else arrays["weight"]
        elif dense:
            self.weight = _unpack(arrays, self._packing)
            self._packing = {}
        else:
            for name, array in arrays.items():
                setattr(self, name, array)

    def rows_of(self, index: mx.array | int | None = None) -> mx.array:
        """The (chosen) rows or expert of the matrix, in float32."""
        arrays = {n: a for n, a in self.items() if isinstance(a, mx.array)}
        chosen = arrays if index is None else {n: _pick(a, index) for n, a in arrays.items()}
        return _unpack(chosen, self._packing) if self._packing else chosen["weight"].astype(mx.float32)

    def multiply(self, x: mx.array, expert: int | None = None) -> mx.array:
        """x: [..., in], float32 -> [..., out]; `expert` picks one matrix of a stack."""
        if not self._packing:
            return x @ (self._turned() if expert is None else self.rows_of(expert).T)
        w, scales, biases = self._packed(expert)
        if x.size // x.shape[-1] < UNPACK_FROM:
            return mx.quantized_matmul(x, w, scales, biases, transpose=True, **self._packing)
        if biases is not None and self._packing["bits"] in (2, 4, 8):
            return _multiply_by_planes(x, w, scales, biases, **self._packing)
        return x @ self.rows_of(expert).T

    def gather(self, x: mx.array, experts: mx.array) -> mx.array:
        """One matrix of a dense stack for each of `experts` [N, K]; x: [N, 1 or K, 1, in] -> [N, K, 1, out]"""
        return mx.gather_mm(x, self._turned(), rhs_indices=experts)

    def _turned(self) -> mx.array:
        """The dense matrix, or each of a stack, as products take it: [..., in, out], float32."""
        weight, made = self["weight"], self.get("_made")
        # A view, made once; of another dtype it would be a copy to hold, and is made for each product instead.
        if made is None or made[0] is not weight:
            made = self._made = (weight, weight.swapaxes(-1, -2))
        return made[1].astype(mx.float32)

    @property
    def is_packed(self) -> bool:
        return bool(self._packing)

    def _packed(self, expert: int | None) -> tuple[mx.array, mx.array, mx.array | None]:
        arrays = (self["weight"], self["scales"], self.get("biases"))
        weight, scales, biases = (a if a is None or expert is None else _pick(a, expert) for a in arrays)
        assert weight is not None
        assert scales is not None
        return weight, _widened(scales), None if biases is None else _widened(biases)


class Float32Linear(Matrix):
    def __call__(self, x: mx.array) -> mx.array:
        return self.multiply(x.astype(mx.float32))


class Float32Embedding(Matrix):
    def __call__(self, ids: mx.array) -> mx.array:
        return self.rows_of(ids)

    def as_linear(self, x: mx.array) -> mx.array:
        return self.multiply(x.astype(mx.float32))


class ShiftedConv(nn.Module):
    """`CausalConv` as shifted multiply-adds, four times faster here than mx.conv1d."""

    def __init__(self, source: CausalConv) -> None:
        super().__init__()
        self.weight = source.weight.astype(mx.float32)

    def __call__(self, x: mx.array) -> mx.array:
        width = self.weight.shape[1]
        T = x.shape[1] - width + 1
        terms = [x[:, j : j + T] * self.weight[:, j, 0] for j in range(width)]
        return nn.silu(sum(terms[1:], terms[0]))


class GroupedExperts(nn.Module):
    """`Experts` one expert at a time, each for all of its tokens, so that its weights are unpacked once a window."""

    def __init__(self, source: Experts, dense: bool) -> None:
        super().__init__()
        self.gate_proj = Matrix(source.gate_proj, dense)
        self.up_proj = Matrix(source.up_proj, dense)
        self.down_proj = Matrix(source.down_proj, dense)
        self.fixed_rows = 0  # of every product, padded; 0 for as many as there are. See exact.py

    def __call__(self, x: mx.array, chosen: mx.array) -> mx.array:
        """x: [..., C]   chosen: [..., K] -> [..., K, C]"""
        K = chosen.shape[-1]
        if self._are_few(x.size // x.shape[-1], K):
            return self._gathered(x, chosen)
        flat = chosen.flatten()
        order = mx.argsort(flat)
        rows = x.reshape(-1, x.shape[-1])[order // K]
        outputs, start = [], 0
        for expert, count in _runs(flat[order].tolist()):  # pyright: ignore[reportArgumentType]
            outputs.append(self._expert(rows[start : start + count], expert))
            start += count
        return mx.concatenate(outputs)[mx.argsort(order)].reshape(*chosen.shape, -1)

    def _are_few(self, tokens: int, K: int) -> bool:
        if self.gate_proj.is_packed:
            return False
        weight = self.gate_proj.weight
        _, inner, outer = weight.shape
        return not self.fixed_rows and weight.dtype == mx.float32 and tokens * K * inner * outer <= ROW_BY_ROW

    def _gathered(self, x: mx.array, chosen: mx.array) -> mx.array:
        """Few tokens seldom share an expert, so little is gained by looking at who chose which, and that waits.
        Packed experts are looked at all the same: gathered, the scales of all of them would be widened for every token.
        """
        rows, experts = x.reshape(-1, 1, 1, x.shape[-1]), chosen.reshape(-1, chosen.shape[-1])
        hidden = swiglu(self.gate_proj.gather(rows, experts), self.up_proj.gather(rows, experts))
        return self.down_proj.gather(hidden, experts).reshape(*chosen.shape, -1)

    def _expert(self, rows: mx.array, expert: int) -> mx.array:
        if (more := self.fixed_rows - rows.shape[0]) > 0:
            padded = mx.concatenate([rows, mx.zeros((more, rows.shape[1]), rows.dtype)])
            return self._expert(padded, expert)[: rows.shape[0]]
        hidden = swiglu(self.gate_proj.multiply(rows, expert), self.up_proj.multiply(rows, expert))
        return self.down_proj.multiply(hidden, expert)


def _runs(ordered: list[int]) -> list[tuple[int, int]]:
    """[0, 0, 2, 2, 2] -> [(0, 2), (2, 3)]"""
    runs: list[tuple[int, int]] = []
    for value in ordered:
        if runs and runs[-1][0] == value:
            runs[-1] = (value, runs[-1][1] + 1)
        else:
            runs.append((value, 1))
    return runs


def _pick(stack: mx.array, index: mx.array | int) -> mx.array:
    """stack[index], without the copy that MLX makes for a single integer."""
    return stack[index : index + 1].squeeze(0) if isinstance(index, int) else stack[index]


def _unpack(arrays: dict[str, mx.array], packing: dict[str, Any]) -> mx.array:
    scales, biases = _widened(arrays["scales"]), arrays.get("biases")
    return mx.dequantize(arrays["weight"], scales, None if biases is None else _widened(biases), **packing).astype(
        mx.float32
    )


def _widened(scales: mx.array) -> mx.array:
    """Those of the affine mode are numbers; those of the others are codes, and stay."""
    return scales if scales.dtype == mx.uint8 else scales.astype(mx.float32)


def _multiply_by_planes(
    x: mx.array, packed: mx.array, scales: mx.array, biases: mx.array, bits: int, group_size: int, mode: str
) -> mx.array:
    """x @ W.T for affine W of 2, 4 or 8 bits: [..., in] -> [..., out], float32. mx.dequantize takes four times longer.

    A plane is every second (fourth) column of W: what lies at one place of each byte, so that cheap operations on
    bytes unpack it, and the columns of x are taken apart the same way instead of putting those of W together.
    """
    outputs, groups = scales.shape
    in_byte, middle = 8 // bits, 1 << (bits - 1)
    codes = packed.view(mx.uint8)  # the first weight is in the lowest bits of the first byte
    # Codes count from their middle, which keeps the sums small; the biases make up for it, once a group.
    sums = x.reshape(*x.shape[:-1], groups, group_size).sum(-1)
    result = sums @ (biases + middle * scales).T
    for place in range(in_byte):
        code = (codes >> (place * bits)) & ((1 << bits) - 1) if in_byte > 1 else codes
        signed = (code - middle).view(mx.int8)  # wraps below zero, as a signed byte does
        plane = signed.astype(mx.float32).reshape(outputs, groups, -1) * scales[..., None]
        result = result + x[..., place::in_byte] @ plane.reshape(outputs, -1).T
    return result


def planned_bytes(tensors: Mapping[str, TensorEntry]) -> int:
    """What a checkpoint's weights will occupy here, from its headers, for the memory plan."""
    # U32 holds packed weights; at the usual 4 bits, eight in each. Scales are gone where they are unpacked.
    rest = loaded_tensors({name: t for name, t in tensors.items() if not name.endswith((".scales", ".biases"))})
    float32 = sum(t.elements * 4 * (8 if t.dtype == "U32" else 1) for t in rest)
    return float32 if float32 <= DENSE_LIMIT else weights_as_loaded(tensors)
