"""Residual add + RMSNorm: the fused op and the kernel against the definition, over the family's widths."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen35.metal_kernels.rms_norm import add_rms_norm, add_rms_norm_metal, add_rms_norm_reference
from tests.metal_emulator import SCHEDULES, Session

EPS = 1e-6
WIDTHS = (1024, 2048, 2560, 3072, 4096, 5120)  # hidden_size of 0.8B, 2B and 35B, 4B, 122B, 9B and 397B, 27B
ROUNDING = {mx.float32: 0.0, mx.float16: 2.0**-11, mx.bfloat16: 2.0**-8}
DTYPES = tuple(ROUNDING)


def inputs(shape: tuple[int, ...], dtype: mx.Dtype) -> tuple[mx.array, mx.array, mx.array]:
    mx.random.seed(shape[-1])
    x, residual = (mx.random.normal(shape).astype(dtype) for _ in range(2))
    return x, residual * 3, 1 + 0.5 * mx.random.normal((shape[-1],))


def check(got: tuple[mx.array, mx.array], x: mx.array, residual: mx.array, weight: mx.array) -> None:
    """The sum to the bit; the norm within one rounding of the definition computed in float32 from that sum."""
    total, normed = got
    assert total.dtype == normed.dtype == x.dtype
    assert mx.array_equal(total, x + residual)
    wide = total.astype(mx.float32)
    _, wanted = add_rms_norm_reference(wide, mx.zeros_like(wide), weight, EPS)
    a, b = (np.array(y.astype(mx.float32), np.float64) for y in (normed, wanted))
    # float32 sums in another order, on top of the one rounding of the output.
    assert np.all(
        np.abs(a - b) <= ROUNDING[x.dtype] * np.abs(b) + 1e-5 * np.abs(b).max() * (x.dtype == mx.float32) + 1e-6
    )


def test_definition_against_float64() -> None:
    x, residual, weight = inputs((3, 40), mx.float32)
    _, normed = add_rms_norm_reference(x, residual, weight, EPS)
    total = np.array(x, np.float64) + np.array(residual, np.float64)
    wanted = total / np.sqrt((total**2).mean(-1, keepdims=True) + EPS) * np.array(weight, np.float64)
    assert np.abs(np.array(normed) - wanted).max() < 1e-6 * np.abs(wanted).max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fused_op_equals_the_definition(dtype: mx.Dtype) -> None:
    x, residual, weight = inputs((2, 3, 1024), dtype)
    check(add_rms_norm(x, residual, weight, EPS), x, residual, weight)


@pytest.mark.metal
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernel_equals_the_definition_at_the_familys_widths(metal: Session | None, dtype: mx.Dtype, width: int) -> None:
    x, residual, weight = inputs((2, 3, width), dtype)
    check(add_rms_norm_metal(x, residual, weight, EPS), x, residual, weight)
    if metal:
        assert metal.total_launches() == 1
        assert metal.last.warnings == ()
        # Each byte once: two inputs, two outputs, and the weight once a row.
        assert metal.last.counters.device_bytes <= 4 * x.nbytes + 6 * weight.nbytes + 6 * 64
        assert metal.last.counters.threadgroup_barriers == 6


@pytest.mark.metal
@pytest.mark.parametrize("metal", SCHEDULES, indirect=True)
@pytest.mark.parametrize("width", [8, 9, 31, 100, 4097, 8191])
def test_kernel_at_widths_that_fill_no_simdgroup(metal: Session | None, width: int) -> None:
    x, residual, weight = inputs((3, width), mx.float32)
    check(add_rms_norm_metal(x, residual, weight, EPS), x, residual, weight)


@pytest.mark.metal
def test_strided_rows_cost_a_copy_and_are_right(metal: Session | None) -> None:
    x, residual, weight = inputs((4, 128), mx.float32)
    every_other = (x[::2], residual[::2])
    check(add_rms_norm_metal(*every_other, weight, EPS), *every_other, weight)
    if metal:
        assert metal.last.copied == ("x", "residual")
    tail = (x[2:], residual[2:])
    check(add_rms_norm_metal(*tail, weight, EPS), *tail, weight)
    if metal:
        assert metal.last.copied == ()


def test_arguments_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"residual \(2, 8\)"):
        add_rms_norm_metal(mx.zeros((1, 8)), mx.zeros((2, 8)), mx.ones(8), EPS)
    with pytest.raises(ValueError, match="at least 8"):
        add_rms_norm_metal(mx.zeros((1, 4)), mx.zeros((1, 4)), mx.ones(4), EPS)
