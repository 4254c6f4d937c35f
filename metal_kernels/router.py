"""The router behind its matmul: softmax, the K largest, renormalised, and the shared expert's gate, in one launch.

`route_reference` is the definition, and runs anywhere; `route_metal` is the kernel. What they return goes into
expert_mlp.py as it is. Which of them is used is decided elsewhere.
"""

from __future__ import annotations

import functools
from typing import Any

import mlx.core as mx

from mlx_qwen35.metal_kernels.source import metal_text

SIMD = 32  # threads of a simdgroup
SMALLEST = 8  # elements; MLX hands smaller inputs to a kernel in another address space
MOST_EXPERTS = 1024  # 32 a lane
MOST_CHOSEN = SIMD - 1

SOURCE = """
route<T, E, K, W, P>(logits, chosen, weights, threadgroup_position_in_grid.x, thread_index_in_simdgroup);
"""


def columns(chosen: int) -> int:
    """Width of a routing: the chosen experts, the shared one, and what makes eight."""
    return max(chosen + 1, SMALLEST)


def route_reference(logits: mx.array, experts: int, chosen: int) -> tuple[mx.array, mx.array]:
    """Which experts a token takes, and how much of each: the definition.

    logits: [..., W], float of any width; E experts, then the logit of the shared expert's gate, the rest is not read
    -> chosen experts [..., P], uint32, largest first, of equals the lowest index first; columns K and above are 0
    -> weights [..., P], float32: K that sum to one, then sigmoid of the shared gate, then zeros
    """
    wide = logits[..., : experts + 1].astype(mx.float32)
    # MLX's sort is stable. Argpartition's choice among equals, and its order, would depend on the device.
    indices = mx.stop_gradient(mx.argsort(-wide[..., :experts], axis=-1)[..., :chosen])
    weights = mx.take_along_axis(mx.softmax(wide[..., :experts], axis=-1), indices, axis=-1)
    weights = weights / weights.sum(-1, keepdims=True)
    shared = mx.sigmoid(wide[..., experts:])
    rest = mx.zeros((*logits.shape[:-1], columns(chosen) - chosen))
    return (
        mx.concatenate([indices.astype(mx.uint32), rest.astype(mx.uint32)], axis=-1),
        mx.concatenate([weights, shared, rest[..., 1:]], axis=-1),
    )


def route_metal(logits: mx.array, experts: int, chosen: int) -> tuple[mx.array, mx.array]:
    """The same in one launch, on Metal, a simdgroup a row: for few rows. Shapes as in `route_reference`.

    A row with NaN gets K valid experts and weights of NaN.
    """
    width = logits.shape[-1]
    if not 0 < chosen <= min(experts, MOST_CHOSEN) or experts > MOST_EXPERTS or width < max(experts + 1, SMALLEST):
        raise ValueError(
            f"[route] logits {logits.shape} must be [..., W] with W at least {SMALLEST} and more than the {experts} "
            f"experts, at most {MOST_EXPERTS}, of which 1 to {MOST_CHOSEN} are chosen, not {chosen}"
        )
    shape = (*logits.shape[:-1], columns(chosen))
    indices, weights = _kernel()(
        inputs=[logits],
        template=[("T", logits.dtype), ("E", experts), ("K", chosen), ("W", width), ("P", shape[-1])],
        grid=(SIMD * (logits.size // width), 1, 1),
        threadgroup=(SIMD, 1, 1),
        output_shapes=[shape, shape],
        output_dtypes=[mx.uint32, mx.float32],
    )
    return indices, weights


@functools.cache
def _kernel() -> Any:
    return mx.fast.metal_kernel(
        name="route",
        input_names=["logits"],
        output_names=["chosen", "weights"],
        header=metal_text("router"),
        source=SOURCE,
    )
