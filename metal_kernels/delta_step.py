"""A Gated DeltaNet layer between its projections, for windows of up to 8 tokens: decode, and verification of drafts.

`delta_step_reference` is the definition; `delta_step` is the kernel: one launch, or two where several threadgroups
share a value head. A draft window leaves S as it was before it, and what replays it beside S; the next step begins with
those of its tokens that came to stay. So S is read once and written once a step, however long the window is.
Knows nothing of caches; which implementation is used is decided elsewhere. Letters and shapes: delta_rows.py.
"""

from __future__ import annotations

import functools
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_qwen35.metal_kernels.delta_rows import (
    MOST_TOKENS,
    Columns,
    DeltaMemory,
    DeltaWeights,
    HeldWindow,
    Projected,
    Stepped,
    StepRows,
)
from mlx_qwen35.metal_kernels.delta_rule import gated_delta_stepwise
from mlx_qwen35.metal_kernels.source import metal_text

SIMD = 32  # threads of a simdgroup
MOST_THREADS = 1024  # of a threadgroup
SMALLEST = 8  # elements; MLX hands smaller inputs to a kernel in another address space


def delta_step_reference(
    projected: Projected, weights: DeltaWeights, memory: DeltaMemory, rows: StepRows, draft: bool
) -> Stepped:
    """The definition, row by row: convolution, SiLU, norms, gates, delta rule and gated norm in float32, rounded once.

    draft: hold the windows until the next step says how much of them stays; otherwise all of it does.
    -> the output in z's dtype, and what the rows remember after the step
    """
    mixed = [_row(projected, weights, memory, rows, i, draft) for i in range(len(rows.tokens))]
    return Stepped(*[mx.concatenate(list(arrays)) for arrays in zip(*mixed)])


def _row(
    projected: Projected, weights: DeltaWeights, memory: DeltaMemory, rows: StepRows, i: int, draft: bool
) -> tuple[mx.array, ...]:
    """Of one row: output, inputs, state [1, Hv, Dv, Dk], and of a draft k, v, log decay and beta."""
    Hk, Hv, Dk, Dv, W = weights.Hk, weights.Hv, weights.Dk, weights.Dv, weights.W
    state, start, T = memory.state[i : i + 1], rows.starts[i], rows.tokens[i]
    if memory.window is not None and rows.kept[i]:
        kept = slice(rows.held_starts[i], rows.held_starts[i] + rows.kept[i])
        w = memory.window
        k, v, log_decay, beta = (x[kept][None] for x in (w.k, w.v, w.log_decay, w.beta))
        state = gated_delta_stepwise(k, k, v, log_decay, beta, state)[1]

    tail_start = rows.held_starts[i] + i * (W - 1) + rows.kept[i]
    window = slice(start, start + T)
    raw = mx.concatenate([memory.inputs[tail_start : tail_start + W - 1], projected.qkv.cut(weights.conv_dim)[window]])
    wide, taps = raw.astype(mx.float32), weights.conv.astype(mx.float32)
    mixed = nn.silu(sum(wide[w : w + T] * taps[:, w, 0] for w in range(W)))  # [T, conv_dim]
    q, k, v = mx.split(mixed, [Hk * Dk, 2 * Hk * Dk], axis=-1)
    q, k = _l2_norm(q.reshape(1, T, Hk, Dk)) * Dk**-0.5, _l2_norm(k.reshape(1, T, Hk, Dk))
    v = v.reshape(1, T, Hv, Dv)
    a, b, z = (
        x.astype(mx.float32)[window] for x in (projected.a.cut(Hv), projected.b.cut(Hv), projected.z.cut(Hv * Dv))
    )
    log_decay = (-mx.exp(weights.A_log) * nn.softplus(a + weights.dt_bias))[None]
    beta = mx.sigmoid(b)[None]
    y, after = gated_delta_stepwise(q, k, v, log_decay, beta, state)

    normed = y[0] * mx.rsqrt(mx.mean(y[0] * y[0], axis=-1, keepdims=True) + weights.eps) * weights.norm
    output = (normed * nn.silu(z.reshape(T, Hv, Dv))).astype(projected.z.array.dtype)
    if draft:
        return output, raw, state, k[0], v[0], log_decay[0], beta[0]
    return output, raw[T:], after


def _l2_norm(x: mx.array) -> mx.array:
    return x * mx.rsqrt((x * x).sum(-1, keepdims=True) + 1e-6)


def delta_step(
    projected: Projected, weights: DeltaWeights, memory: DeltaMemory, rows: StepRows, draft: bool, splits: int = 1
) -> Stepped:
    """The same on Metal. Shapes as in `delta_step_reference`; Dk a multiple of 4, Dv / splits at most 256.

    splits: threadgroups a value head. With 1 the gated norm is in the same launch; with more, which large chips need
    when there are few heads, it is a second one.
    """
    _check(projected, weights, memory, rows, splits)
    Hk, Hv, Dk, Dv, W = weights.Hk, weights.Hv, weights.Dk, weights.Dv, weights.W
    B, N, dtype = len(rows.tokens), sum(rows.tokens), projected.z.array.dtype
    P, held = (N, [(N, Hk, Dk), (N, Hv, Dv), (N, Hv), (N, Hv)]) if draft else (0, [])
    parts = [projected.qkv, projected.z, projected.a, projected.b]
    columns = _columns(tuple((p.array.shape[1], p.first) for p in parts))
    # Where nothing is held nothing is replayed: S stands in for what is not read.
    w = memory.window or HeldWindow(*[memory.state] * 4)
    threads = -(-(Dv // splits * 4) // SIMD) * SIMD
    # A draft that replays nothing leaves S where it is.
    stores = not draft or any(rows.kept)
    y, inputs, *rest = _kernel(draft, stores, splits == 1)(
        inputs=[_padded(p.array) for p in parts]
        + [columns, rows.table, weights.conv, *(_padded(x) for x in (weights.A_log, weights.dt_bias, weights.norm))]
        + [_scalar(weights.eps), memory.inputs, memory.state]
        + [_padded(x) for x in (w.k, w.v, w.log_decay, w.beta)],
        template=[
            *[("DRAFT", draft), ("HK", Hk), ("HV", Hv), ("DK", Dk), ("DV", Dv), ("WIDTH", W)],
            *[("TOKENS", _room(max(rows.tokens))), ("SPLITS", splits)],
        ],
        grid=(threads, Hv * splits, B),
        threadgroup=(threads, 1, 1),
        output_shapes=[(N, Hv, Dv), (B * (W - 1) + P, weights.conv_dim), *held, *[memory.state.shape] * stores],
        output_dtypes=[dtype if splits == 1 else mx.float32, dtype, *[mx.float32] * (len(held) + stores)],
    )
    if splits > 1:
        y = _gated_norm(y, projected.z, weights)
    state = rest[-1] if stores else memory.state
    return Stepped(y, inputs, state, *rest[: len(held)])


def _gated_norm(y: mx.array, z: Columns, weights: DeltaWeights) -> mx.array:
    """The norm of a head's whole output, where no threadgroup has all of it. y: [N, Hv, Dv] -> the same in z's dtype"""
    N, Hv, Dv = y.shape
    columns = _columns(((z.array.shape[1], z.first),) * 4)
    return _norm_kernel()(
        inputs=[_padded(y), _padded(z.array), columns, _padded(weights.norm), _scalar(weights.eps)],
        template=[("T", z.array.dtype), ("HV", Hv), ("DV", Dv)],
        grid=(SIMD, Hv, N),
        threadgroup=(SIMD, 1, 1),
        output_shapes=[y.shape],
        output_dtypes=[z.array.dtype],
    )[0]


def fits(splits: int, _: Projected, weights: DeltaWeights, *__: Any) -> bool:
    """Whether the kernel takes a layer of this shape at all, with `splits` threadgroups a value head."""
    Dk, Dv = weights.Dk, weights.Dv
    return Dk % 4 == 0 and Dv % splits == 0 and Dv // splits * 4 <= MOST_THREADS


def _check(projected: Projected, weights: DeltaWeights, memory: DeltaMemory, rows: StepRows, splits: int) -> None:
    """The kernel trusts every shape: what does not fit is named here."""
    w, N, P = weights, sum(rows.tokens), sum(rows.held)
    B, Hv, Dv, Dk, dtype = len(rows.tokens), w.Hv, w.Dv, w.Dk, projected.z.array.dtype
    if not fits(splits, projected, weights):
        raise ValueError(
            f"[delta_step] Dk = {Dk} must be a multiple of 4, and Dv = {Dv} of the {splits} splits, "
            f"with at most {MOST_THREADS // 4} rows of S each"
        )
    if P and memory.window is None:
        raise ValueError(f"[delta_step] the rows hold windows of {rows.held} tokens, but the memory holds none")
    for name, width in (("qkv", w.conv_dim), ("z", Hv * Dv), ("a", Hv), ("b", Hv)):
        part: Columns = getattr(projected, name)
        _check_array(name, part.array, (N, max(part.array.shape[-1], part.first + width)), dtype)
    _check_array("state", memory.state, (B, Hv, Dv, Dk), mx.float32)
    _check_array("inputs", memory.inputs, (B * (w.W - 1) + P, w.conv_dim), dtype)
    if memory.window is not None:
        for name, shape in (("k", (P, w.Hk, Dk)), ("v", (P, Hv, Dv)), ("log_decay", (P, Hv)), ("beta", (P, Hv))):
            _check_array(f"held {name}", getattr(memory.window, name), shape, mx.float32)


def _check_array(name: str, array: mx.array, shape: tuple[int, ...], dtype: mx.Dtype) -> None:
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(f"[delta_step] {name} is {array.shape} {array.dtype} but must be {shape} {dtype}")


def _room(tokens: int) -> int:
    """Tokens that threadgroup memory is laid out for: a few sizes, as each is a kernel to compile."""
    return next(room for room in (1, 2, 4, MOST_TOKENS) if tokens <= room)


def _padded(x: mx.array) -> mx.array:
    # A copy, but only in networks smaller than any of the family.
    return x if x.size >= SMALLEST else mx.pad(x.flatten(), (0, SMALLEST - x.size))


@functools.cache
def _columns(parts: tuple[tuple[int, int], ...]) -> mx.array:
    """Pitch and first column of each projection. Made once, as `_scalar`."""
    return mx.array(parts, mx.int32)


@functools.cache
def _scalar(value: float) -> mx.array:
    # An array made in every call would cost the host more than the launch.
    return mx.array(value, mx.float32)


# The kernel's body: what a variant does not put out, the preparation, and one of the two ways to end.
HELD = ("new_k", "new_v", "new_log_decay", "new_beta")
ABSENT = "device float* {} = nullptr;\n"
PREPARE = """
using Shape = DeltaShape<HK, HV, DK, DV, WIDTH, TOKENS, SPLITS>;
threadgroup float4 q[TOKENS * DK / 4];
threadgroup float4 k[TOKENS * DK / 4];
threadgroup float v[TOKENS * Shape::SHARE];
threadgroup float gates[TOKENS * 2];
const uint thread_index = thread_position_in_threadgroup.x, lane = thread_index_in_simdgroup;
const uint simdgroup = simdgroup_index_in_threadgroup, simdgroups = simdgroups_per_threadgroup;
const uint3 group = threadgroup_position_in_grid;
const DeltaPlace place = delta_place<Shape>(rows, group.y, group.z);
const DeltaPart<Shape> part(place, thread_index);
float4 s[Shape::PER];
delta_load<Shape>(state, part, s);  // asked for first: it is under way while the convolution runs
threadgroup float* q_values = (threadgroup float*)q;
threadgroup float* k_values = (threadgroup float*)k;
delta_convolve<Shape, DRAFT>(
    qkv, DeltaColumns(columns, 0), conv, held_inputs, place, q_values, k_values, v, new_inputs, new_v, thread_index,
    threads_per_threadgroup.x);
threadgroup_barrier(mem_flags::mem_threadgroup);
delta_prepare<Shape, DRAFT>(
    a, b, DeltaColumns(columns, 2), DeltaColumns(columns, 3), A_log, dt_bias, place, q_values, k_values, gates, new_k,
    new_log_decay, new_beta, thread_index, lane, simdgroup, simdgroups);
threadgroup_barrier(mem_flags::mem_threadgroup);
"""
RECUR = """
delta_recur<Shape, DRAFT>(
    s, held_k, held_v, held_log_decay, held_beta, place, part, q, k, v, gates, new_state,
    output + (size_t(place.start) * HV + place.head) * DV + place.split * Shape::SHARE, HV * DV);
"""
RECUR_AND_NORM = """
threadgroup float y[TOKENS * DV];
delta_recur<Shape, DRAFT>(
    s, held_k, held_v, held_log_decay, held_beta, place, part, q, k, v, gates, new_state, y, DV);
threadgroup_barrier(mem_flags::mem_threadgroup);
for (int t = simdgroup; t < place.tokens; t += simdgroups) {
  const int n = place.start + t;
  delta_gated_norm<DV>(
      y + t * DV, z + DeltaColumns(columns, 1).at(n, place.head * DV), norm, eps,
      output + (size_t(n) * HV + place.head) * DV, lane);
}
"""
NORM = """
const uint head = threadgroup_position_in_grid.y, n = threadgroup_position_in_grid.z;
const size_t row = (size_t(n) * HV + head) * DV;
delta_gated_norm<DV>(
    y + row, z + DeltaColumns(columns, 0).at(n, head * DV), norm, eps, output + row, thread_index_in_simdgroup);
"""
INPUTS = """
qkv z a b columns rows conv A_log dt_bias norm eps held_inputs state held_k held_v held_log_decay held_beta
"""


@functools.cache
def _kernel(draft: bool, stores: bool, with_norm: bool) -> Any:
    """stores: S is put out"""
    present = [*HELD * draft, *["new_state"] * stores]
    absent = [name for name in (*HELD, "new_state") if name not in present]
    return mx.fast.metal_kernel(
        name="delta_step" + "_draft" * draft + "_state" * stores + "_norm" * with_norm,
        input_names=INPUTS.split(),
        output_names=["output", "new_inputs", *present],
        header=metal_text("delta_step"),
        source="".join(map(ABSENT.format, absent)) + PREPARE + (RECUR_AND_NORM if with_norm else RECUR),
    )


@functools.cache
def _norm_kernel() -> Any:
    return mx.fast.metal_kernel(
        name="delta_step_gated_norm",
        input_names=["y", "z", "columns", "norm", "eps"],
        output_names=["output"],
        header=metal_text("delta_step"),
        source=NORM,
    )
