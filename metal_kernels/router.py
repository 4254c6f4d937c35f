"""The router behind its matmul: softmax, the K largest, renormalised, and the shared expert's gate, in one launch.

`route_reference` is the definition; `route` runs anywhere; `route_metal` is the kernel. What they return goes into
expert_mlp.py as it is. Which of them is used is decided elsewhere.
"""

from __future__ import annotations

import functools
from typing import Any

import mlx.core as mx

from mlx_qwen35.metal_kernels.selection import shapes_of
from mlx_qwen35.metal_kernels.source import metal_text

SIMD = 32  # threads of a simdgroup
SMALLEST = 8  # elements; MLX hands smaller inputs to a kernel in another address space
MOST_EXPERTS = 1024  # 32 a lane
MOST_CHOSEN = SIMD - 1
FEW_EXPERTS = 32  # a sort of so few costs no more than taking the largest and sorting those

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


def route(logits: mx.array, experts: int, chosen: int) -> tuple[mx.array, mx.array]:
    """The same on any device, in fewer steps. Which of equal experts is the last to be chosen may differ."""
    wide = logits.astype(mx.float32)
    routed = wide[..., :experts]
    if experts <= FEW_EXPERTS:
        indices = mx.argsort(-routed, axis=-1)[..., :chosen]
        largest = mx.take_along_axis(routed, indices, axis=-1)
    else:
        indices = mx.argpartition(-routed, chosen - 1, axis=-1)[..., :chosen]
        largest = mx.take_along_axis(routed, indices, axis=-1)
        order = mx.argsort(-largest, axis=-1)
        indices, largest = (mx.take_along_axis(x, order, axis=-1) for x in (indices, largest))
    # The sum over all experts cancels when the chosen are renormalised.
    weights, shared = mx.softmax(largest, axis=-1), mx.sigmoid(wide[..., experts : experts + 1])
    shape = (*logits.shape[:-1], columns(chosen) - chosen)
    rest = mx.zeros(shape)
    return (
        mx.concatenate([indices, mx.zeros(shape, mx.uint32)], axis=-1),
        mx.concatenate([weights, shared, rest[..., 1:]], axis=-1),
    )


def route_metal(logits: mx.array, experts: int, chosen: int) -> tuple[mx.array, mx.array]:
    """The same in one launch, on Metal, a simdgroup a row: for few rows. Shapes as in `route_reference`.

    A row with NaN gets K valid experts and weights of NaN.
    """
    width = logits.shape[-1]
    if not fits(logits, experts, chosen):
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


def fits(logits: mx.array, experts: int, chosen: int) -> bool:
    """Whether the kernel takes such a routing."""
    wide_enough = logits.shape[-1] >= max(experts + 1, SMALLEST)
    return 0 < chosen <= min(experts, MOST_CHOSEN) and experts <= MOST_EXPERTS and wide_enough


def route_example(logits: mx.array, experts: int, chosen: int) -> tuple[mx.array, int, int]:
    """To measure with. No two experts of a token are equal in any dtype: the fast form may take another of equals."""
    order = mx.argsort(mx.random.normal(logits.shape, key=mx.random.key(0)), axis=-1)
    # Neighbouring bfloat16 numbers, from one half on.
    return (order.astype(mx.uint16) + 0x3F00).view(mx.bfloat16).astype(logits.dtype), experts, chosen


def route_class(logits: mx.array, experts: int, chosen: int) -> str:
    """What a measurement holds for."""
    return f"{shapes_of(logits)} {chosen} of {experts}"


@functools.cache
def _kernel() -> Any:
    return mx.fast.metal_kernel(
        name="route",
        input_names=["logits"],
        output_names=["chosen", "weights"],
        header=metal_text("router"),
        source=SOURCE,
    )
