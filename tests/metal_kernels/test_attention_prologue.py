"""Attention's prologue: the fused form and the kernel against the definition, over the family's heads."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen35.metal_kernels.attention_prologue import (
    Heads,
    attention_prologue,
    attention_prologue_metal,
    attention_prologue_reference,
)
from mlx_qwen35.metal_kernels.delta_rows import Columns
from tests.metal_emulator import SCHEDULES, Session

ROUNDING = {mx.float32: 0.0, mx.float16: 2.0**-11, mx.bfloat16: 2.0**-8}
DTYPES = tuple(ROUNDING)


@dataclass(frozen=True)
class Shape:
    """H query heads, Hk of keys, D wide, of which `dims` are rotated."""

    H: int
    Hk: int
    D: int
    dims: int


FAMILY = tuple(Shape(*heads, 256, 64) for heads in ((8, 2), (16, 2), (16, 4), (24, 4), (32, 2)))  # of 0.8B to 397B-A17B
SMALL = Shape(3, 1, 40, 10)  # pairs and the rest fill no simdgroup
Arguments = tuple[Columns, Columns, Heads, mx.array]
Result = tuple[mx.array, mx.array]


def example(shape: Shape, N: int, dtype: mx.Dtype = mx.float32, scale: float = 1.0) -> Arguments:
    """Projections of their own, the first token's so small that epsilon counts. scale: YaRN's, of cosines and sines"""
    mx.random.seed(N + shape.H)
    size = mx.where(mx.arange(N)[:, None] == 0, 1e-3, 3.0)
    q = (size * mx.random.normal((N, 2 * shape.H * shape.D))).astype(dtype)
    k = (size * mx.random.normal((N, shape.Hk * shape.D))).astype(dtype)
    q_norm, k_norm = (1 + 0.5 * mx.random.normal((shape.D,)) for _ in range(2))
    phases = mx.random.uniform(0, 2 * math.pi, (N, shape.dims // 2))
    angles = scale * mx.concatenate([mx.cos(phases), mx.sin(phases)], axis=-1)
    return Columns(q), Columns(k), Heads(shape.H, shape.Hk, q_norm, k_norm, 1e-6), angles


def check(got: Result, arguments: Arguments) -> None:
    """Within one rounding of the definition computed in float32."""
    q, k, heads, angles = arguments
    wide_q, wide_k = (Columns(x.array.astype(mx.float32), x.first) for x in (q, k))
    definition = attention_prologue_reference(wide_q, wide_k, heads, angles)
    for name, x, wanted in zip(("queries", "keys"), got, definition):
        assert x.dtype == q.array.dtype, name
        a, b = (np.array(y.astype(mx.float32), np.float64) for y in (x, wanted))
        assert a.shape == b.shape, name
        # Sums in another order come on top, and where a rotation cancels they are not small beside its result.
        assert np.all(np.abs(a - b) <= ROUNDING[x.dtype] * np.abs(b) + 2e-6 * np.abs(b).max()), name


@pytest.mark.parametrize("shape", [FAMILY[3], SMALL])
def test_definition_against_float64(shape: Shape) -> None:
    """Head by head, pair by pair, as the model's papers have it."""
    q, k, heads, angles = arguments = example(shape, 3)
    half, D = shape.dims // 2, shape.D
    for found, columns, weight, pitch in zip(
        attention_prologue_reference(*arguments), (q, k), (heads.q_norm, heads.k_norm), (2 * D, D)
    ):
        for n in range(3):
            for head in range(found.shape[1]):
                x = np.array(columns.array, np.float64)[n, head * pitch : head * pitch + D]
                x = x / np.sqrt((x**2).mean() + 1e-6) * np.array(weight, np.float64)
                for j in range(half):
                    c, s = (float(angles[n, i].item()) for i in (j, half + j))  # pyright: ignore[reportArgumentType]
                    x[j], x[half + j] = x[j] * c - x[half + j] * s, x[half + j] * c + x[j] * s
                assert np.abs(np.array(found[n, head]) - x).max() < 1e-6 * np.abs(x).max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [FAMILY[3], SMALL, Shape(2, 2, 32, 32)])
def test_fused_form_equals_the_definition(shape: Shape, dtype: mx.Dtype) -> None:
    arguments = example(shape, 5, dtype)
    check(attention_prologue(*arguments), arguments)


@pytest.mark.metal
@pytest.mark.parametrize("shape", FAMILY)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernel_equals_the_definition_at_the_familys_heads(
    metal: Session | None, dtype: mx.Dtype, shape: Shape
) -> None:
    arguments = example(shape, 2, dtype)
    got = attention_prologue_metal(*arguments)
    check(got, arguments)
    if metal:
        assert metal.total_launches() == 1
        assert metal.last.warnings == ()
        # Queries (half of q's columns) and keys in and out, each byte once; norms and angles once a threadgroup.
        moved = 2 * sum(x.nbytes for x in got)
        groups = 2 * -(-(shape.H + shape.Hk) // 4)
        assert metal.last.counters.device_bytes <= moved + groups * (2 * 4 * shape.D + 4 * shape.dims + 4 * 64)


@pytest.mark.metal
@pytest.mark.parametrize("metal", SCHEDULES, indirect=True)
@pytest.mark.parametrize("N", [1, 7, 8, 9, 64])
def test_kernel_for_windows_of_any_length(metal: Session | None, N: int) -> None:
    arguments = example(SMALL, N)
    check(attention_prologue_metal(*arguments), arguments)


@pytest.mark.metal
@pytest.mark.parametrize("metal", SCHEDULES, indirect=True)
@pytest.mark.parametrize(
    "shape", [Shape(1, 1, 8, 8), Shape(2, 1, 31, 8), Shape(4, 2, 64, 16), Shape(2, 2, 64, 64), Shape(1, 1, 300, 130)]
)
def test_kernel_at_widths_that_fill_no_simdgroup(metal: Session | None, shape: Shape) -> None:
    arguments = example(shape, 2, scale=0.1 * math.log(4) + 1)
    check(attention_prologue_metal(*arguments), arguments)


@pytest.mark.metal
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_columns_of_one_wider_array_are_read_where_they_lie(metal: Session | None, dtype: mx.Dtype) -> None:
    """q | k | v of one product, behind other columns; and rows of a larger array."""
    shape = Shape(4, 2, 64, 16)
    q, k, heads, angles = example(shape, 9, dtype)
    others = mx.full((9, 21), math.nan, dtype)
    joined = mx.concatenate([others, q.array, others, k.array, others], axis=1)
    q, k = Columns(joined, 21), Columns(joined, 42 + q.array.shape[1])
    check(attention_prologue_metal(q, k, heads, angles), (q, k, heads, angles))
    rows = slice(3, 8)
    cut = Columns(joined[rows], q.first), Columns(joined[rows], k.first), heads, angles[rows]
    check(attention_prologue_metal(*cut), cut)
    check(attention_prologue(*cut), cut)
    if metal:
        assert metal.total_launches() == 2


def test_arguments_that_do_not_fit_are_named() -> None:
    q, k, heads, angles = example(SMALL, 2)
    with pytest.raises(ValueError, match=r"k is \(2, 40\) .* from column 1 on .* 40 columns"):
        attention_prologue_metal(q, Columns(k.array, 1), heads, angles)
    with pytest.raises(ValueError, match=r"q is \(2, 240\) .* 3 rows"):
        attention_prologue_metal(q, k, heads, mx.zeros((3, 10)))
    with pytest.raises(ValueError, match="dims even and 8 to 40"):
        attention_prologue_metal(q, k, heads, angles[:, :6])
    with pytest.raises(ValueError, match=r"k_norm is \(39,\)"):
        attention_prologue_metal(q, k, replace(heads, k_norm=mx.ones(39)), angles)
