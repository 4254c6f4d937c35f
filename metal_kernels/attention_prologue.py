"""Attention between its projections and its cache: norm of queries and keys, then partial rotation, in one launch.

`attention_prologue_reference` is the definition; `attention_prologue` runs anywhere; `attention_prologue_metal` is the
kernel. Knows nothing of positions: angles come as cosines and sines, made once a step. Which of them is used is decided
elsewhere.

Letters: N tokens of all sequences of a step, side by side; H heads, Hk of keys, D wide. Results are [N, H, D]: then the
tokens of one sequence lie together, and attention takes them, heads and tokens swapped, without a copy.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlx_qwen35.metal_kernels.delta_rows import Columns
from mlx_qwen35.metal_kernels.rms_norm import rms_norm
from mlx_qwen35.metal_kernels.selection import seeded, shapes_of
from mlx_qwen35.metal_kernels.source import metal_text

SIMD = 32  # threads of a simdgroup
SIMDGROUPS = 4  # of a threadgroup, each with a head: a token has few, a prompt many
SMALLEST = 8  # elements; MLX hands smaller inputs to a kernel in another address space

SOURCE = """
const uint head = thread_position_in_grid.y, n = thread_position_in_grid.z;
const bool is_query = head < H;
const device T* x = is_query
    ? q + size_t(n) * q_shape[1] + Q_FIRST + head * 2 * D  // the gate lies behind each head's query
    : k + size_t(n) * k_shape[1] + K_FIRST + (head - H) * D;
device T* out = is_query ? queries + (size_t(n) * H + head) * D : keys + (size_t(n) * HK + head - H) * D;
norm_and_rotate<T, D, DIMS>(
    x, is_query ? q_weight : k_weight, eps, angles + size_t(n) * DIMS, out, thread_position_in_grid.x);
"""


@dataclass(frozen=True)
class Heads:
    """How many, and their norms.   q_norm, k_norm: [D], float32, the factors themselves (1 + w)"""

    H: int
    Hk: int
    q_norm: mx.array
    k_norm: mx.array
    eps: float

    @property
    def D(self) -> int:
        return self.q_norm.shape[0]


def attention_prologue_reference(q: Columns, k: Columns, heads: Heads, angles: mx.array) -> tuple[mx.array, mx.array]:
    """Queries and keys as attention takes them: the definition, in float32, rounded once.

    q: per head D columns of query, then D of gate   k: Hk D columns   both of one dtype
    angles: [N, dims], float32: dims / 2 cosines, then sines; dims, the rotated part of a head, is at most D
    -> queries [N, H, D], keys [N, Hk, D], in q's dtype
    """

    def prepared(x: mx.array, weight: mx.array) -> mx.array:
        wide = x.astype(mx.float32)
        scale = mx.rsqrt(mx.mean(wide * wide, axis=-1, keepdims=True) + heads.eps)
        return _rotated(wide * scale * weight, angles).astype(x.dtype)

    return prepared(_queries(q, heads), heads.q_norm), prepared(_keys(k, heads), heads.k_norm)


def attention_prologue(q: Columns, k: Columns, heads: Heads, angles: mx.array) -> tuple[mx.array, mx.array]:
    """The same with MLX's fused norm, on any device. Shapes as in `attention_prologue_reference`."""
    queries = rms_norm(_queries(q, heads), heads.q_norm, heads.eps)
    keys = rms_norm(_keys(k, heads), heads.k_norm, heads.eps)
    # Rotated together: at one token, the host's time for each of these operations is what they cost.
    rotated = _rotated(mx.concatenate([queries, keys], axis=1), angles).astype(q.array.dtype)
    return rotated[:, : heads.H], rotated[:, heads.H :]


def _queries(q: Columns, heads: Heads) -> mx.array:
    return q.cut(2 * heads.H * heads.D).reshape(-1, heads.H, 2, heads.D)[:, :, 0]


def _keys(k: Columns, heads: Heads) -> mx.array:
    return k.cut(heads.Hk * heads.D).reshape(-1, heads.Hk, heads.D)


def _rotated(x: mx.array, angles: mx.array) -> mx.array:
    """x: [N, H, D] -> the same; of each head, pairs (j, j + dims / 2) turn."""
    dims = angles.shape[1]
    first, second, rest = mx.split(x, [dims // 2, dims], axis=-1)
    cos, sin = mx.split(angles[:, None], 2, axis=-1)
    return mx.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def attention_prologue_metal(q: Columns, k: Columns, heads: Heads, angles: mx.array) -> tuple[mx.array, mx.array]:
    """The same in one launch, on Metal, a simdgroup a head. Shapes as in `attention_prologue_reference`.

    Raises ValueError for arguments that do not fit each other, or fewer than 8 dims.
    """
    _check(q, k, heads, angles)
    (N, dims), dtype, H, Hk, D = angles.shape, q.array.dtype, heads.H, heads.Hk, heads.D
    queries, keys = _kernel()(
        inputs=[q.array, k.array, heads.q_norm, heads.k_norm, _scalar(heads.eps), angles],
        template=[
            *[("T", dtype), ("H", H), ("HK", Hk), ("D", D), ("DIMS", dims)],
            *[("Q_FIRST", q.first), ("K_FIRST", k.first)],
        ],
        grid=(SIMD, H + Hk, N),
        threadgroup=(SIMD, SIMDGROUPS, 1),
        output_shapes=[(N, H, D), (N, Hk, D)],
        output_dtypes=[dtype, dtype],
    )
    return queries, keys


def fits(q: Columns, k: Columns, heads: Heads, angles: mx.array) -> bool:
    """Whether the kernel takes such heads at all."""
    return SMALLEST <= angles.shape[1] <= heads.D and q.array.dtype == k.array.dtype


def example(q: Columns, k: Columns, heads: Heads, angles: mx.array) -> tuple[Any, ...]:
    """Seeded projections; norms and angles as they are."""
    (q_array, k_array) = seeded(q.array, k.array)
    return Columns(q_array, q.first), Columns(k_array, k.first), heads, angles


def shape_class(q: Columns, k: Columns, heads: Heads, angles: mx.array) -> str:
    return f"{heads.H}/{heads.Hk}x{heads.D} {shapes_of(q.array, k.array, angles)}"


def _check(q: Columns, k: Columns, heads: Heads, angles: mx.array) -> None:
    """The kernel trusts every shape: what does not fit is named here."""
    D, dtype = heads.D, q.array.dtype
    if angles.ndim != 2 or angles.dtype != mx.float32 or not SMALLEST <= angles.shape[1] <= D or angles.shape[1] % 2:
        raise ValueError(
            f"[attention_prologue] angles are {angles.shape} {angles.dtype} but must be [N, dims] float32, "
            f"dims even and {SMALLEST} to {D}"
        )
    for name, part, width in (("q", q, 2 * heads.H * D), ("k", k, heads.Hk * D)):
        x = part.array
        if x.ndim != 2 or x.shape[0] != angles.shape[0] or x.shape[1] < part.first + width or x.dtype != dtype:
            raise ValueError(
                f"[attention_prologue] {name} is {x.shape} {x.dtype} from column {part.first} on but must be "
                f"{dtype}, with {angles.shape[0]} rows and {width} columns from there"
            )
    for name, weight in (("q_norm", heads.q_norm), ("k_norm", heads.k_norm)):
        if weight.shape != (D,) or weight.dtype != mx.float32:
            raise ValueError(f"[attention_prologue] {name} is {weight.shape} {weight.dtype} but must be {(D,)} float32")


@functools.cache
def _kernel() -> Any:
    return mx.fast.metal_kernel(
        name="attention_prologue",
        input_names=["q", "k", "q_weight", "k_weight", "eps", "angles"],
        output_names=["queries", "keys"],
        header=metal_text("attention_prologue"),
        source=SOURCE,
    )


@functools.cache
def _scalar(value: float) -> mx.array:
    # Made once: an array a call would cost the host more than the launch.
    return mx.array(value, mx.float32)
