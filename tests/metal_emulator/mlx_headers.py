"""MLX's own Metal headers, as the wheel ships them: what their tests share."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from tests.metal_emulator.compile import Unit, mlx_include
from tests.metal_emulator.kernel import Done, Kernel, Out
from tests.metal_emulator.options import SCHEDULES, Options

FOLDER = "mlx/backend/metal/kernels/"
QUANTIZED = ("utils.h", "steel/gemm/gemm.h", "quantized_utils.h", "quantized.h")


def int32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def int64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def kernel(
    headers: tuple[str, ...], name: str, template: str, constants: dict[int, Any] | None = None, **how: Any
) -> Kernel:
    text = "".join(f'#include "{FOLDER}{header}"\n' for header in headers)
    unit = Unit(text, name, template, (mlx_include(),), constants or {})
    return Kernel(unit, Options(strict=False, **how))


def in_every_order(made: Kernel, buffers: dict[int, Any], output: int, grid: Any, threadgroup: Any) -> Done:
    """Run with every schedule; the outputs must be the same to the bit."""
    runs = []
    for schedule in SCHEDULES:
        how = Options(strict=False, schedule=schedule, on_fault="keep")
        runs.append(made.run(buffers, grid, threadgroup, options=how))
    assert all(np.array_equal(runs[0].outputs[output], done.outputs[output]) for done in runs)
    return runs[0]


def output(shape: tuple[int, ...], dtype: type = np.float32) -> Out:
    return Out(shape, dtype)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class Quantized:
    """Random weights in MLX's affine 4-bit form, group 64: what the kernel reads, and what it means."""

    def __init__(self, *shape: int, dtype: mx.Dtype = mx.float32) -> None:
        packed, scales, biases = mx.quantize(mx.array(random(*shape)), 64, 4)
        scales, biases = scales.astype(dtype), biases.astype(dtype)
        self.packed = np.array(packed)
        self.scales, self.biases = bits(scales), bits(biases)
        self.meant = np.array(mx.dequantize(packed, scales, biases, 64, 4).astype(mx.float32), np.float64)


def bits(x: mx.array) -> np.ndarray:
    """As numpy, bfloat16 as its bits."""
    return np.array(x.view(mx.uint16) if x.dtype == mx.bfloat16 else x)


def from_bits(x: np.ndarray) -> np.ndarray:
    return np.array(mx.array(x).view(mx.bfloat16).astype(mx.float32), np.float64)
