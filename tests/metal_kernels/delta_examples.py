"""Seeded inputs of a DeltaNet step, of any shape, as the layer would meet them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import mlx.core as mx

from mlx_qwen35.metal_kernels.delta_rows import Columns, DeltaMemory, DeltaWeights, HeldWindow, Projected, StepRows

EPS = 1e-6


@dataclass(frozen=True)
class Shape:
    Hk: int
    Hv: int
    Dk: int
    Dv: int
    W: int = 4

    @property
    def conv_dim(self) -> int:
        return 2 * self.Hk * self.Dk + self.Hv * self.Dv


@dataclass(frozen=True)
class Example:
    projected: Projected
    weights: DeltaWeights
    memory: DeltaMemory
    rows: StepRows

    @property
    def arguments(self) -> tuple[Projected, DeltaWeights, DeltaMemory, StepRows]:
        return self.projected, self.weights, self.memory, self.rows

    def in_float32(self) -> Example:
        """The same numbers, so that the definition rounds nothing."""
        parts = (Columns(p.array.astype(mx.float32), p.first) for p in vars(self.projected).values())
        memory = replace(self.memory, inputs=self.memory.inputs.astype(mx.float32))
        return Example(Projected(*parts), self.weights, memory, self.rows)


def random_weights(shape: Shape, dtype: mx.Dtype) -> DeltaWeights:
    conv = 0.5 * mx.random.normal((shape.conv_dim, shape.W, 1))
    # As Qwen3.5 begins its training: rates from 1 to 16, steps that forget little.
    A_log = mx.log(mx.random.uniform(1, 16, (shape.Hv,)))
    dt_bias = mx.random.uniform(-6, 0, (shape.Hv,))
    norm = 1 + 0.2 * mx.random.normal((shape.Dv,))
    return DeltaWeights(conv.astype(dtype), A_log, dt_bias, norm, EPS, shape.Hk)


def random_projected(shape: Shape, tokens: int, dtype: mx.Dtype) -> Projected:
    widths = (shape.conv_dim, shape.Hv * shape.Dv, shape.Hv, shape.Hv)
    return Projected(*[Columns(mx.random.normal((tokens, width)).astype(dtype)) for width in widths])


def random_memory(shape: Shape, held: Sequence[int], dtype: mx.Dtype) -> DeltaMemory:
    B, P = len(held), sum(held)
    inputs = mx.random.normal((B * (shape.W - 1) + P, shape.conv_dim)).astype(dtype)
    state = 0.3 * mx.random.normal((B, shape.Hv, shape.Dv, shape.Dk))
    if not P:
        return DeltaMemory(inputs, state)
    k = mx.random.normal((P, shape.Hk, shape.Dk)) * shape.Dk**-0.5
    v = mx.random.normal((P, shape.Hv, shape.Dv))
    log_decay, beta = -mx.random.uniform(0, 2, (P, shape.Hv)), mx.random.uniform(0, 1, (P, shape.Hv))
    return DeltaMemory(inputs, state, HeldWindow(k, v, log_decay, beta))


def example(
    shape: Shape,
    tokens: Sequence[int],
    held: Sequence[int] = (),
    kept: Sequence[int] = (),
    dtype: mx.Dtype = mx.float32,
) -> Example:
    """One step: rows with windows of `tokens`, whose memory holds windows of `held`, of which `kept` stayed."""
    mx.random.seed(shape.Hv * 1000 + shape.Dk + sum(tokens))
    rows = StepRows(tokens, held, kept)
    projected, weights = random_projected(shape, sum(tokens), dtype), random_weights(shape, dtype)
    made = Example(projected, weights, random_memory(shape, rows.held, dtype), rows)
    # The emulator runs a kernel as soon as it is called: inputs must not be generated within its time.
    mx.eval([vars(p) for p in (made.weights,)], made.memory.inputs, made.memory.state)
    return made
