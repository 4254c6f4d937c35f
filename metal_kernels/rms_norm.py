"""Residual add and RMSNorm: what stands between any two parts of a layer, in one launch instead of two.

`add_rms_norm_reference` is the definition; `add_rms_norm` runs anywhere; `add_rms_norm_metal` is the kernel.
C is the model's width. Which of them is used is decided elsewhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlx_qwen35.metal_kernels.source import metal_text

SIMD = 32  # threads of a simdgroup
MOST_THREADS = 1024  # of a threadgroup
SMALLEST = 8  # elements; MLX hands smaller inputs to a kernel in another address space

SOURCE = """
threadgroup float partial[32];
add_rms_norm<T, C, PER>(
    x, residual, weight, eps, sum, normed, partial, threadgroup_position_in_grid.x, thread_position_in_threadgroup.x,
    threads_per_threadgroup.x, thread_index_in_simdgroup, simdgroup_index_in_threadgroup, simdgroups_per_threadgroup);
"""


def rms_norm(x: mx.array, weight: mx.array | None, eps: float) -> mx.array:
    """MLX's fused norm. Off Metal, where it is a dozen operations, the same in four.

    x: [..., C]   weight: [C], None for ones -> [..., C], computed in float32, in the wider dtype of the two
    """
    if mx.metal.is_available():
        return mx.fast.rms_norm(x, weight, eps)
    plain, weighted = _compiled(x.shape[-1])
    return plain(x, _scalar(eps)) if weight is None else weighted(x, weight, _scalar(eps))


@functools.cache  # what is compiled for any shape still has its width written into it, by the mean
def _compiled(C: int) -> tuple[Callable[..., mx.array], Callable[..., mx.array]]:
    def normed(x: mx.array, eps: mx.array) -> mx.array:
        wide = x.astype(mx.float32)
        return wide * mx.rsqrt((wide * wide).sum(-1, keepdims=True) / C + eps)

    plain = mx.compile(lambda x, eps: normed(x, eps).astype(x.dtype), shapeless=True)
    weighted = mx.compile(lambda x, w, eps: (normed(x, eps) * w).astype(mx.result_type(x, w)), shapeless=True)
    return plain, weighted


def add_rms_norm_reference(x: mx.array, residual: mx.array, weight: mx.array, eps: float) -> tuple[mx.array, mx.array]:
    """Add a layer's output to the residual stream and norm the sum: the definition.

    x, residual: [..., C], one dtype   weight: [C], float32, the factor itself (1 + w)
    -> the sum, and the normed sum; both [..., C] in x's dtype. The norm is of the rounded sum, in float32.
    """
    total = x + residual
    wide = total.astype(mx.float32)
    scale = mx.rsqrt(mx.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return total, (wide * scale * weight).astype(x.dtype)


def add_rms_norm(x: mx.array, residual: mx.array, weight: mx.array, eps: float) -> tuple[mx.array, mx.array]:
    """The same with MLX's fused norm: two launches, on any device. Shapes as in `add_rms_norm_reference`."""
    total = x + residual
    return total, rms_norm(total, weight, eps).astype(x.dtype)


def add_rms_norm_metal(x: mx.array, residual: mx.array, weight: mx.array, eps: float) -> tuple[mx.array, mx.array]:
    """The same in one launch, on Metal. Shapes as in `add_rms_norm_reference`; C at least 8."""
    C = x.shape[-1]
    if residual.shape != x.shape or residual.dtype != x.dtype or weight.shape != (C,) or C < SMALLEST:
        raise ValueError(
            f"[add_rms_norm] x {x.shape} {x.dtype}, residual {residual.shape} {residual.dtype} and weight "
            f"{weight.shape} must be [..., C], the same, and [C], with C at least {SMALLEST}"
        )
    per, threads = _split(C)
    total, normed = _kernel()(
        inputs=[x, residual, weight.astype(mx.float32), _scalar(eps)],
        template=[("T", x.dtype), ("C", C), ("PER", per)],
        grid=(threads * (x.size // C), 1, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=[x.shape, x.shape],
        output_dtypes=[x.dtype, x.dtype],
    )
    return total, normed


def _split(C: int) -> tuple[int, int]:
    """Runs of 4 a thread, and threads: the fewest runs that fit a threadgroup, in whole simdgroups."""
    runs = -(-C // 4)
    per = -(-runs // MOST_THREADS)
    threads = -(-runs // (per * SIMD)) * SIMD
    return per, threads


@functools.cache
def _kernel() -> Any:
    return mx.fast.metal_kernel(
        name="add_rms_norm",
        input_names=["x", "residual", "weight", "eps"],
        output_names=["sum", "normed"],
        header=metal_text("rms_norm"),
        source=SOURCE,
    )


@functools.cache
def _scalar(value: float) -> mx.array:
    # Made once: an array a call would cost the host more than the launch.
    return mx.array(value, mx.float32)
