"""The DeltaNet step in mx operations: runs anywhere, differentiable. And what its implementations are measured with.

The definition is `delta_step.delta_step_reference`; letters and shapes: delta_rows.py.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

import mlx.core as mx
import mlx.nn as nn

from mlx_qwen35.metal_kernels.delta_rows import (
    Columns,
    DeltaMemory,
    DeltaWeights,
    HeldWindow,
    Projected,
    Stepped,
    StepRows,
)
from mlx_qwen35.metal_kernels.delta_rule import gated_delta, gated_delta_mx

Rule = Callable[..., tuple[mx.array, mx.array]]


def delta_step_mx(
    projected: Projected,
    weights: DeltaWeights,
    memory: DeltaMemory,
    rows: StepRows,
    draft: bool,
    rule: Rule = gated_delta,
) -> Stepped:
    """As `delta_step_reference`; neighbouring rows that are alike run at once.   rule: `gated_delta`, or one like it"""
    shapes = list(zip(rows.tokens, rows.held, rows.kept))
    runs = [[i for i, _ in run] for _, run in groupby(enumerate(shapes), lambda row: row[1])]
    steps = [_run(projected, weights, memory, rows, run[0], len(run), draft, rule) for run in runs]
    if len(steps) == 1:
        return steps[0]
    return Stepped(*[mx.concatenate(list(arrays)) for arrays in zip(*steps) if arrays[0] is not None])


def delta_step_mx_fast(
    projected: Projected, weights: DeltaWeights, memory: DeltaMemory, rows: StepRows, draft: bool
) -> Stepped:
    """The same with MLX's own kernel for the rule. Dk a multiple of 32."""
    return delta_step_mx(projected, weights, memory, rows, draft, gated_delta_mx)


def _run(
    projected: Projected,
    weights: DeltaWeights,
    memory: DeltaMemory,
    rows: StepRows,
    first: int,
    B: int,
    draft: bool,
    rule: Rule,
) -> Stepped:
    """Rows [first, first + B), which have equal windows and hold equal ones."""
    Hk, Hv, Dk, Dv, W = weights.Hk, weights.Hv, weights.Dk, weights.Dv, weights.W
    T, P, kept, held_start = rows.tokens[first], rows.held[first], rows.kept[first], rows.held_starts[first]

    def cut(x: mx.array, start: int, length: int) -> mx.array:
        own = x if B * length == x.shape[0] else x[start : start + B * length]
        return own.reshape(B, length, *x.shape[1:])

    def new(columns: Columns, width: int) -> mx.array:
        return cut(columns.cut(width), rows.starts[first], T)

    state = memory.state if len(rows.tokens) == B else memory.state[first : first + B]
    if kept and memory.window is not None:
        w = memory.window
        k, v, log_decay, beta = (cut(x, held_start, P)[:, :kept] for x in (w.k, w.v, w.log_decay, w.beta))
        state = rule(k, k, v, log_decay, beta, state)[1]

    tail = cut(memory.inputs, held_start + first * (W - 1), W - 1 + P)
    if P:
        tail = tail[:, kept : kept + W - 1]
    raw = mx.concatenate([tail, new(projected.qkv, weights.conv_dim)], axis=1)
    mixed = nn.silu(_convolved(raw.astype(mx.float32), weights.taps, T))
    q_and_k, v = mx.split(mixed, [2 * Hk * Dk], axis=-1)
    # x / |x| by the fused norm, for queries and keys at once: the mean of squares is their sum / Dk, and so is its
    # epsilon.
    q_and_k = mx.fast.rms_norm(q_and_k.reshape(B, T, 2 * Hk, Dk), None, 1e-6 / Dk)
    q, k = mx.split(q_and_k * weights.scales, 2, axis=2)
    v = v.reshape(B, T, Hv, Dv)
    a, b = (new(x, Hv).astype(mx.float32) for x in (projected.a, projected.b))
    log_decay, beta = weights.rate * nn.softplus(a + weights.dt_bias), mx.sigmoid(b)
    y, after = rule(q, k, v, log_decay, beta, state)

    z = new(projected.z, Hv * Dv).reshape(B, T, Hv, Dv)
    output = mx.fast.rms_norm(y, weights.norm, weights.eps) * nn.silu(z.astype(mx.float32))
    held = (k, v, log_decay, beta) if draft else ()
    flat = [x.flatten(0, 1) for x in (output.astype(z.dtype), raw if draft else raw[:, T:], *held)]
    return Stepped(flat[0], flat[1], state if draft else after, *flat[2:])


def _convolved(inputs: mx.array, taps: mx.array, T: int) -> mx.array:
    """The depthwise convolution of inputs [B, W - 1 + T, C], float32, with taps [W, C]: [B, T, C].

    Of so few tokens it is a product and a sum: on a CPU several times faster than mx.conv1d.
    """
    if T == 1:
        return (inputs * taps).sum(axis=1, keepdims=True)
    (B, length, C), W = inputs.shape, taps.shape[0]
    windows = mx.as_strided(inputs, (B, T, W, C), (length * C, C, C, 1))
    return (windows * taps).sum(axis=2)


def step_class(projected: Projected, weights: DeltaWeights, memory: DeltaMemory, rows: StepRows, draft: bool) -> str:
    """What a choice among implementations holds for: the layer's shape, and how much the rows do."""
    w, dtype = weights, str(projected.z.array.dtype).removeprefix("mlx.core.")
    shape = f"Hk{w.Hk} Hv{w.Hv} Dk{w.Dk} Dv{w.Dv} W{w.W} {dtype}"
    sizes = [1 << (n - 1).bit_length() for n in (len(rows.tokens), max(rows.tokens))]
    return f"{shape} {sizes[0]}x{sizes[1]}{' draft' * draft}{' replay' * any(rows.kept)}"


def step_example(
    projected: Projected, weights: DeltaWeights, memory: DeltaMemory, rows: StepRows, draft: bool
) -> tuple[Projected, DeltaWeights, DeltaMemory, StepRows, bool]:
    """Arguments of the same shapes to measure with, always the same numbers; the layer's own weights."""
    keys = iter(mx.random.split(mx.random.key(0), 10))

    def normal(x: mx.array) -> mx.array:
        return mx.random.normal(x.shape, key=next(keys)).astype(x.dtype)

    parts = [Columns(normal(part.array), part.first) for part in vars(projected).values()]
    window = memory.window
    if window is not None:
        # As the network has them: other values let the state grow without bound.
        k = normal(window.k) * weights.Dk**-0.5
        log_decay, beta = -0.1 * mx.abs(normal(window.log_decay)), mx.sigmoid(normal(window.beta))
        window = HeldWindow(k, normal(window.v), log_decay, beta)
    seeded = DeltaMemory(normal(memory.inputs), 0.1 * normal(memory.state), window)
    return Projected(*parts), weights, seeded, rows, draft
