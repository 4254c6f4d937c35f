"""What a chunk of the delta rule costs in the emulator: ours beside MLX's own chunked kernels and mlx-lm's scans.

`python -m tests.metal_kernels.delta_costs` prints the table of metal_kernels/README.md. Of a token and value head all
numbers are the same for any number of heads, with two value heads a key head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_qwen35.metal_kernels.delta_chunk import delta_chunk
from tests.metal_emulator import Options, emulated_metal
from tests.metal_emulator.counters import Counters
from tests.metal_emulator.mlx_headers import int32, kernel, output
from tests.metal_emulator.support import private_copy
from tests.metal_kernels.delta_windows import Window, random_window

D = 128
FOREIGN = Options(strict=False, on_fault="keep")  # MLX's chunked kernels lack a barrier


@dataclass(frozen=True)
class Chunked:
    """A kernel behind mx.fast.gated_delta_update. columns: of S, a simdgroup"""

    headers: tuple[str, ...]
    name: str
    sizes: str
    columns: int


CHUNKS_OF_8 = Chunked(("gated_delta_update.h",), "gated_delta_fused_chunk", "8", 8)
CHUNKS_OF_16 = Chunked(("utils.h", "gated_delta_update_nax.h"), "gated_delta_fused_nax", "16, 4", 16)


@dataclass(frozen=True)
class Cost:
    """Of a token and value head. loaded: bytes that threads ask for   moved: bytes in 64-byte lines, in and out, each
    line once a threadgroup   simd: simdgroup operations other than matrix products   barriers: of threadgroups
    """

    flops: float
    matrix_flops: float
    loaded: float
    moved: float
    simd: float
    barriers: float
    launches: int


def cost(counted: Sequence[Counters], tokens_and_heads: int) -> Cost:
    def part(of: Callable[[Counters], float]) -> float:
        return sum(map(of, counted)) / tokens_and_heads

    return Cost(
        part(lambda c: c.flops),
        part(lambda c: c.matrix_flops),
        part(lambda c: c.device_loaded),
        part(lambda c: c.device_bytes),
        part(lambda c: c.simd_ops),
        part(lambda c: c.threadgroup_barriers),
        len(counted),
    )


def ours(window: Window, splits: int = 2) -> Cost:
    with emulated_metal() as session:
        delta_chunk(*window, splits=splits)
    return cost([launch.counters for launch in session.launches], _tokens_and_heads(window))


def of_mlx(window: Window, form: Chunked) -> Cost:
    q, k, v, log_decay, beta, state = window
    T, Hk, Hv = q.shape[1], q.shape[2], v.shape[2]
    made = kernel(form.headers, form.name, f"float, {D}, {D}, {Hk}, {Hv}, {form.sizes}", {200: False})
    arrays = [np.array(x) for x in (q, k, v, state, mx.exp(log_decay), beta)]
    buffers = dict(enumerate([*arrays, output(tuple(v.shape)), output(tuple(state.shape)), int32(T)]))
    done = made.run(buffers, (32, D // form.columns, Hv), (32, 4, 1), options=FOREIGN)
    return cost([done.counters], _tokens_and_heads(window))


def of_mlx_lm(window: Window, name: str = "gated_delta_kernel") -> Cost:
    """name: of a function in mlx_lm.models.gated_delta"""
    module: Any = private_copy("mlx_lm.models.gated_delta")
    q, k, v, log_decay, beta, state = window
    with emulated_metal() as session:
        getattr(module, name)(q, k, v, mx.exp(log_decay), beta, state)
    return cost([launch.counters for launch in session.launches], _tokens_and_heads(window))


def _tokens_and_heads(window: Window) -> int:
    v = window[2]
    return v.shape[0] * v.shape[1] * v.shape[2]


def table(T: int = 1024) -> str:
    """Markdown, a line for each kernel."""
    window = random_window(T, B=1, Hk=1, Hv=2, Dk=D, Dv=D)
    rows = {
        "mlx-lm, a simdgroup a row": of_mlx_lm(window, "gated_delta_kernel_unpacked"),
        "mlx-lm, packed": of_mlx_lm(window),
        "MLX, chunks of 8": of_mlx(window, CHUNKS_OF_8),
        "MLX, chunks of 16, M5 only": of_mlx(window, CHUNKS_OF_16),
        **{f"ours, {n} threadgroup{'s' * (n > 1)} a head": ours(window, n) for n in (1, 2, 4)},
    }
    lines = [
        "| kernel | launches | kFLOP | of it on matrices | KB loaded | KB moved | simdgroup operations | barriers |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, c in rows.items():
        flops = (c.flops + c.matrix_flops) / 1e3
        lines.append(
            f"| {name} | {c.launches} | {flops:.0f} | {c.matrix_flops / 1e3:.0f} | {c.loaded / 1024:.1f} "
            f"| {c.moved / 1024:.1f} | {c.simd:.1f} | {c.barriers:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
