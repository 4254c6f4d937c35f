"""Seeded inputs of a DeltaNet step, of any shape, as the layer would meet them; and what its results must be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from mlx_qwen35.metal_kernels.delta_rows import (
    Columns,
    DeltaMemory,
    DeltaWeights,
    HeldWindow,
    Projected,
    Stepped,
    StepRows,
)
from mlx_qwen35.metal_kernels.delta_step import delta_step_reference

EPS = 1e-6
ROUNDING = {mx.float32: 0.0, mx.float16: 2.0**-11, mx.bfloat16: 2.0**-8}
# Sums of float32 in another order, of the largest number: measured up to 4e-7.
FLOAT32 = 1e-5


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


def close(name: str, got: mx.array, wanted: mx.array, rounding: float = 0.0) -> None:
    """Within one rounding of what the definition says in float32."""
    assert got.shape == wanted.shape, name
    a, b = (np.array(x.astype(mx.float32), np.float64) for x in (got, wanted))
    # Compared so that a NaN fails.
    assert np.all(np.abs(a - b) <= rounding * np.abs(b) + FLOAT32 * np.abs(b).max()), name


def same(got: Stepped, of: Example, draft: bool) -> None:
    """Everything a step returns, against the definition; what is only moved must be the same to the bit."""
    wanted = delta_step_reference(*of.in_float32().arguments, draft)
    dtype = of.projected.z.array.dtype
    assert got.output.dtype == got.inputs.dtype == dtype
    assert mx.array_equal(got.inputs.astype(mx.float32), wanted.inputs)
    close("output", got.output, wanted.output, ROUNDING[dtype])
    assert [x is None for x in got] == [x is None for x in wanted] == [False] * 3 + [not draft] * 4
    for name, a, b in list(zip(Stepped._fields, got, wanted))[2:]:
        if a is not None and b is not None:
            close(name, a, b)
