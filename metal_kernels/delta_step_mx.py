"""The DeltaNet step in mx operations: runs anywhere, differentiable. And what its implementations are measured with.

The definition is `delta_step.delta_step_reference`; letters and shapes: delta_rows.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

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
from mlx_qwen35.metal_kernels.rms_norm import rms_norm

Rule = Callable[..., tuple[mx.array, mx.array]]


def delta_step_mx(
    projected: Projected,
    weights: DeltaWeights,
    memory: DeltaMemory,
    rows: StepRows,
    draft: bool,
    rule: Rule = gated_delta,
) -> Stepped:
    """As `delta_step_reference`, all rows at once: shorter windows are padded.   rule: `gated_delta`, or one like it"""
    Hk, Hv, Dk, Dv, W = weights.Hk, weights.Hv, weights.Dk, weights.Dv, weights.W
    new, kept, tails, inputs, next_tails = _spans(rows.tokens, rows.held, rows.kept, W)
    (B, T), state = (len(rows.tokens), new.longest), memory.state
    if memory.window is not None and kept.longest:
        w = memory.window
        k, v, log_decay, beta = (kept.take(x) for x in (w.k, w.v, w.log_decay, w.beta))
        state = rule(k, k, v, kept.only(log_decay), kept.only(beta), state)[1]

    q_k_v, a, b, z = _taken(new, projected, weights)
    raw = mx.concatenate([tails.take(memory.inputs), q_k_v], axis=1)
    mixed = nn.silu(_convolved(raw.astype(mx.float32), weights.taps, T))
    q_and_k, v = mx.split(mixed, [2 * Hk * Dk], axis=-1)
    # x / |x| by the fused norm, for queries and keys at once: the mean of squares is their sum / Dk, and so is its
    # epsilon.
    q_and_k = rms_norm(q_and_k.reshape(B, T, 2 * Hk, Dk), None, 1e-6 / Dk)
    q, k = mx.split(q_and_k * weights.scales, 2, axis=2)
    v = v.reshape(B, T, Hv, Dv)
    log_decay = weights.rate * nn.softplus(a.astype(mx.float32) + weights.dt_bias)
    beta = mx.sigmoid(b.astype(mx.float32))
    # Padding comes after a row's tokens, so only the state could know of it; of a draft that is the one before.
    counted = (log_decay, beta) if draft else (new.only(log_decay), new.only(beta))
    y, after = rule(q, k, v, *counted, state)

    z = z.reshape(B, T, Hv, Dv)
    output = rms_norm(y, weights.norm, weights.eps) * nn.silu(z.astype(mx.float32))
    output = new.put(output.astype(z.dtype))
    if draft:
        return Stepped(output, inputs.put(raw), state, *(new.put(x) for x in (k, v, log_decay, beta)))
    return Stepped(output, next_tails.take(raw.flatten(0, 1)).flatten(0, 1), after)


def _taken(new: Spans, projected: Projected, weights: DeltaWeights) -> tuple[mx.array, ...]:
    """Columns of q | k | v, a, b and z, each [B, T, ...]; what lies in one array is moved at once."""
    widths = weights.conv_dim, weights.Hv, weights.Hv, weights.Hv * weights.Dv
    parts = projected.qkv, projected.a, projected.b, projected.z
    arrays = {id(part.array): new.take(part.array) for part in parts}
    return tuple(arrays[id(part.array)][..., part.first : part.first + width] for part, width in zip(parts, widths))


def delta_step_mx_fast(
    projected: Projected, weights: DeltaWeights, memory: DeltaMemory, rows: StepRows, draft: bool
) -> Stepped:
    """The same with MLX's own kernel for the rule. Dk a multiple of 32."""
    return delta_step_mx(projected, weights, memory, rows, draft, gated_delta_mx)


@dataclass(frozen=True)
class Spans:
    """One span of each row, in an array [total, ...] of the tokens of all rows.   starts, lengths: of the spans"""

    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    total: int

    @functools.cached_property
    def longest(self) -> int:
        return max(self.lengths)

    @functools.cached_property
    def is_even(self) -> bool:
        """Whether all are of one length, at the same place of rows of one length: then nothing has to be gathered."""
        B, first = len(self.starts), self.starts[0]
        step = self.total // B
        even = all(start == first + i * step for i, start in enumerate(self.starts))
        return even and B * step == self.total and len({*self.lengths}) == 1

    def take(self, x: mx.array) -> mx.array:
        """x: [total, ...] -> [B, longest, ...], shorter spans padded"""
        B, T = len(self.starts), self.longest
        if not self.is_even:
            return x[self._indices].reshape(B, T, *x.shape[1:])
        rows = x.reshape(B, -1, *x.shape[1:])
        return rows if rows.shape[1] == T else rows[:, self.starts[0] : self.starts[0] + T]

    def only(self, x: mx.array) -> mx.array:
        """x: [B, longest, H], float32 -> the same, and zero where a span is shorter"""
        return x if len({*self.lengths}) == 1 else x * self._exists

    def put(self, x: mx.array) -> mx.array:
        """x: [B, longest, ...] -> [sum of lengths, ...], the spans side by side"""
        flat = x.flatten(0, 1)
        return flat if len({*self.lengths}) == 1 else flat[self._existing]

    @functools.cached_property
    def _indices(self) -> mx.array:
        # Padded with a token of their own: another row's may be no number, and zero times that is none either.
        places = [
            min(start + min(t, max(length - 1, 0)), self.total - 1)
            for start, length in zip(self.starts, self.lengths)
            for t in range(self.longest)
        ]
        return mx.array(places, mx.int32)

    @functools.cached_property
    def _exists(self) -> mx.array:
        return mx.array([[[float(t < length)] for t in range(self.longest)] for length in self.lengths])

    @functools.cached_property
    def _existing(self) -> mx.array:
        rows = enumerate(self.lengths)
        return mx.array([i * self.longest + t for i, length in rows for t in range(length)], mx.int32)


@functools.lru_cache(64)  # all layers of a step ask for the same ones
def _spans(tokens: tuple[int, ...], held: tuple[int, ...], kept: tuple[int, ...], W: int) -> tuple[Spans, ...]:
    """What a step reads and leaves: the new tokens, those kept of the held windows, the convolution's inputs before the
    new tokens, both together, and the last of them (these two among padded inputs, [B each], `each` of a row).
    """
    B, each = len(tokens), W - 1 + max(tokens)
    new_starts, held_starts = (tuple(accumulate(lengths, initial=0))[:-1] for lengths in (tokens, held))
    tails = tuple(start + i * (W - 1) + n for i, (start, n) in enumerate(zip(held_starts, kept)))
    padded = tuple(range(0, B * each, each))
    return (
        Spans(new_starts, tokens, sum(tokens)),
        Spans(held_starts, kept, sum(held)),
        Spans(tails, (W - 1,) * B, B * (W - 1) + sum(held)),
        Spans(padded, tuple(W - 1 + t for t in tokens), B * each),
        Spans(tuple(start + t for start, t in zip(padded, tokens)), (W - 1,) * B, B * each),
    )


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
