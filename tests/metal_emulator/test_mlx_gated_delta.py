"""MLX's own gated-delta kernels, unmodified: step by step, in chunks of 8, and on the M5's matrix units.

Both chunked forms lack a simdgroup barrier between reading gamma of one chunk and writing that of the next. The
emulator reports it. Errors are against mlx-lm's operations,
which sum in float32 in another order: 1e-6 of the largest value.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tests.metal_emulator import Options
from tests.metal_emulator.mlx_headers import in_every_order, int32, kernel, output
from tests.metal_emulator.support import error, private_copy, written_for

pytestmark = [pytest.mark.metal, written_for("mlx", "0.32.")]
Hk, Hv, D = 2, 4, 128
KEEP = Options(strict=False, on_fault="keep")
RACE = "data race inside a simdgroup"


def delta_inputs(T: int) -> tuple[dict[int, Any], np.ndarray, np.ndarray]:
    """The buffers that all three kernels share, and what they should give: y and the last state."""
    module = private_copy("mlx_lm.models.gated_delta")
    mx.random.seed(0)
    q, k, v = (mx.random.normal((1, T, heads, D)) for heads in (Hk, Hk, Hv))
    q, k = module.normalize_qk(q, k, inv_scale=D**-0.5, eps=1e-6)
    decay = mx.exp(-mx.random.uniform(shape=(1, T, Hv)) * 0.5)
    beta = mx.sigmoid(mx.random.normal((1, T, Hv)))
    state = mx.random.normal((1, Hv, D, D)) * 0.1
    y, last = module.gated_delta_ops(q, k, v, decay, beta, state)
    arrays = [np.array(x) for x in (q, k, v, state, decay, beta)]
    outputs = [output(tuple(y.shape)), output(tuple(last.shape))]
    return dict(enumerate([*arrays, *outputs, int32(T)])), np.array(y), np.array(last)


def test_step_by_step() -> None:
    buffers, y, last = delta_inputs(5)
    made = kernel(("gated_delta_update.h",), "gated_delta_seq", f"float, {D}, {D}, {Hk}, {Hv}, 16", {200: False})
    done = in_every_order(made, buffers, 6, (32, D, Hv), (32, 4, 1))
    assert error(done.outputs[6], y) < 1e-6
    assert error(done.outputs[7], last) < 1e-6
    assert done.faults == ()


@pytest.mark.parametrize("T", [16, 13])
def test_chunks_of_8_and_the_barrier_they_lack(T: int) -> None:
    buffers, y, last = delta_inputs(T)
    template = f"float, {D}, {D}, {Hk}, {Hv}, 8"
    made = kernel(("gated_delta_update.h",), "gated_delta_fused_chunk", template, {200: False})
    done = made.run(buffers, (32, D // 8, Hv), (32, 4, 1), options=KEEP)
    assert error(done.outputs[6], y) < 1e-6
    assert error(done.outputs[7], last) < 1e-6
    assert {fault.kind for fault in done.faults} == {RACE}
    assert "gated_delta_update.h" in done.faults[0].message
    # Each of 16 column groups computes the chunk's matrices again: what a better kernel has to beat.
    chunks = (T + 7) // 8
    assert done.counters.matrix_ops == 102 * (D // 8) * Hv * chunks


@pytest.mark.parametrize("tf32", [False, True])
def test_chunks_on_the_matrix_units_of_the_m5(tf32: bool) -> None:
    buffers, y, last = delta_inputs(29)
    headers, template = ("utils.h", "gated_delta_update_nax.h"), f"float, {D}, {D}, {Hk}, {Hv}, 16, 4"
    made = kernel(headers, "gated_delta_fused_nax", template, {200: False}, tf32=tf32)
    done = made.run(buffers, (32, D // 16, Hv), (32, 4, 1), options=KEEP)
    allowed = 2e-3 if tf32 else 1e-6  # 10 bits of mantissa in the operands
    assert error(done.outputs[6], y) < allowed
    assert error(done.outputs[7], last) < allowed
    assert {fault.kind for fault in done.faults} == {RACE}
    assert done.counters.tensor_ops > 0
