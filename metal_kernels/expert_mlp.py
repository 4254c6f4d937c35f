"""The experts' feed-forward of a few tokens, in two launches: gate, up and SwiGLU; then down, weighted and summed.

`expert_mlp_reference` is the definition, in its two halves; `expert_mlp` runs anywhere; `expert_mlp_metal` is the
pair of kernels, for 1 to 8 tokens. Tokens that chose the same expert share one read of its weights. Routings are
router.py's. Which of them is used is decided elsewhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlx_qwen35.metal_kernels.expert_weights import ExpertWeights, Matrices
from mlx_qwen35.metal_kernels.router import columns, route_reference
from mlx_qwen35.metal_kernels.selection import seeded, shapes_of
from mlx_qwen35.metal_kernels.source import metal_text

SIMD = 32  # threads of a simdgroup
MOST_TOKENS = 8
SIMDGROUPS = 8  # of a threadgroup: more of them share the reads of x, fewer spread over more cores

PREPARED = """
using Z = Sizes<C, E_WIDTH, S_WIDTH, K, P, N>;
using F = Format<MODE, BITS, GROUP>;
using SF = Format<S_MODE, S_BITS, S_GROUP>;
uint row = (threadgroup_position_in_grid.x * simdgroups_per_threadgroup + simdgroup_index_in_threadgroup) * PER;
"""
GATE_UP = (
    PREPARED
    + """
gate_up<T, F, SF, Z, PER>(
    x, chosen,
    stack(gate_w, gate_s, gate_b, STORED, FIRST), stack(up_w, up_s, up_b, STORED_2, FIRST_2),
    stack(shared_gate_w, shared_gate_s, shared_gate_b, S_STORED, S_FIRST),
    stack(shared_up_w, shared_up_s, shared_up_b, S_STORED_2, S_FIRST_2),
    hidden, threadgroup_position_in_grid.y, row, thread_index_in_simdgroup);
"""
)
DOWN = (
    PREPARED
    + """
down<T, F, SF, Z, PER>(
    hidden, chosen, weights, stack(down_w, down_s, down_b, STORED, FIRST),
    stack(shared_down_w, shared_down_s, shared_down_b, S_STORED, S_FIRST), y, row, thread_index_in_simdgroup);
"""
)


@functools.partial(mx.compile, shapeless=True)
def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) * up, in one launch, of columns as they lie."""
    return gate * mx.sigmoid(gate) * up


def expert_mlp_reference(x: mx.array, chosen: mx.array, weights: mx.array, experts: ExpertWeights) -> mx.array:
    """What a layer's experts make of x, weighted and summed, with the shared expert: the definition.

    x: [..., C]   chosen: [..., P], uint32, K different ones first   weights: [..., P], float32, K and the shared one's
    -> [..., C] in x's dtype. The products are float32; what stands between the halves is rounded to x's dtype.
    """
    return down_reference(gate_up_reference(x, chosen, experts), chosen, weights, experts)


def gate_up_reference(x: mx.array, chosen: mx.array, experts: ExpertWeights) -> mx.array:
    """silu(gate x) * (up x) of the K chosen experts and of the shared one, one after the other: [..., K F + Fs]."""
    rows = []
    for token, which in zip(_rows(x).astype(mx.float32), _rows(chosen)[:, : experts.chosen]):
        routed = swiglu(_meant(experts.gate, which) @ token, _meant(experts.up, which) @ token)
        shared = swiglu(_meant(experts.shared_gate) @ token, _meant(experts.shared_up) @ token)
        rows.append(mx.concatenate([routed.flatten(), shared]))
    return mx.stack(rows).reshape(*x.shape[:-1], -1).astype(x.dtype)


def down_reference(hidden: mx.array, chosen: mx.array, weights: mx.array, experts: ExpertWeights) -> mx.array:
    """The sum over a token's experts of weight * (down h), the shared expert among them: [..., C]."""
    K, split = experts.chosen, experts.chosen * experts.gate.rows
    rows = []
    for token, which, factor in zip(_rows(hidden).astype(mx.float32), _rows(chosen), _rows(weights)):
        routed = _meant(experts.down, which[:K]) @ token[:split].reshape(K, -1, 1)
        shared = _meant(experts.shared_down) @ token[split:]
        rows.append((routed[..., 0] * factor[:K, None]).sum(0) + factor[K] * shared)
    return mx.stack(rows).reshape(*hidden.shape[:-1], -1).astype(hidden.dtype)


def expert_mlp(x: mx.array, chosen: mx.array, weights: mx.array, experts: ExpertWeights) -> mx.array:
    """The same by MLX's gathered products, on any device. Shapes as in `expert_mlp_reference`."""
    K, rows, which = experts.chosen, _rows(x), _rows(chosen)[:, : experts.chosen]
    factor = _rows(weights).astype(x.dtype)
    each = rows[:, None, None]
    hidden = swiglu(_gathered(experts.gate, each, which), _gathered(experts.up, each, which))
    routed = (_gathered(experts.down, hidden, which)[..., 0, :] * factor[:, :K, None]).sum(axis=-2)
    hidden = swiglu(_product(experts.shared_gate, rows), _product(experts.shared_up, rows))
    return (routed + factor[:, K : K + 1] * _product(experts.shared_down, hidden)).reshape(x.shape)


def fits(x: mx.array, *_: Any) -> bool:
    """Whether the kernels take so many tokens."""
    return 0 < x.size <= MOST_TOKENS * x.shape[-1]


def experts_example(
    x: mx.array, chosen: mx.array, weights: mx.array, experts: ExpertWeights
) -> tuple[mx.array, mx.array, mx.array, ExpertWeights]:
    """To measure with: the layer's own weights, and for each token a routing as the router makes them."""
    count = experts.gate.weight.shape[0]
    logits = mx.random.normal((*x.shape[:-1], count + 1), key=mx.random.key(1))
    return (*seeded(x), *route_reference(logits, count, experts.chosen), experts)


def experts_class(x: mx.array, chosen: mx.array, weights: mx.array, experts: ExpertWeights) -> str:
    """What a measurement holds for."""
    return f"{shapes_of(x)} {experts.shape_class}"


def expert_mlp_metal(
    x: mx.array, chosen: mx.array, weights: mx.array, experts: ExpertWeights, simdgroups: int = SIMDGROUPS
) -> mx.array:
    """The same in two launches, on Metal, for 1 to 8 tokens. Shapes as in `expert_mlp_reference`."""
    hidden = gate_up_metal(x, chosen, experts, simdgroups)
    return down_metal(hidden, chosen, weights, experts, simdgroups)


def gate_up_metal(x: mx.array, chosen: mx.array, experts: ExpertWeights, simdgroups: int = SIMDGROUPS) -> mx.array:
    """The first launch. Shapes as in `gate_up_reference`."""
    tokens = _checked("x", x, experts.width, chosen, experts)
    matrices, how = _ready(_gate_up_launch, x.dtype, tokens, experts, simdgroups)
    shape = (*x.shape[:-1], experts.hidden)
    kernel = _kernel("gate_up")
    return kernel(inputs=[x, chosen, *matrices], output_shapes=[shape], output_dtypes=[x.dtype], **how)[0]


def down_metal(
    hidden: mx.array, chosen: mx.array, weights: mx.array, experts: ExpertWeights, simdgroups: int = SIMDGROUPS
) -> mx.array:
    """The second launch. Shapes as in `down_reference`."""
    tokens = _checked("hidden", hidden, experts.hidden, chosen, experts)
    if weights.shape != chosen.shape or weights.dtype != mx.float32:
        raise ValueError(f"[expert_mlp] weights {weights.shape} {weights.dtype} must be {chosen.shape}, float32")
    matrices, how = _ready(_down_launch, hidden.dtype, tokens, experts, simdgroups)
    shape = (*hidden.shape[:-1], experts.width)
    inputs = [hidden, chosen, weights, *matrices]
    return _kernel("down")(inputs=inputs, output_shapes=[shape], output_dtypes=[hidden.dtype], **how)[0]


def _checked(name: str, x: mx.array, width: int, chosen: mx.array, experts: ExpertWeights) -> int:
    """How many tokens there are. Raises ValueError."""
    tokens = x.size // max(1, x.shape[-1])
    wanted = (*x.shape[:-1], columns(experts.chosen))
    if x.shape[-1] != width or chosen.shape != wanted or chosen.dtype != mx.uint32 or not 0 < tokens <= MOST_TOKENS:
        raise ValueError(
            f"[expert_mlp] {name} {x.shape} and chosen {chosen.shape} {chosen.dtype} must be [..., {width}] and "
            f"{wanted}, uint32, for 1 to {MOST_TOKENS} tokens"
        )
    return tokens


Launch = tuple[list[mx.array], dict[str, Any]]  # the weights' arrays, and what else does not change from call to call


def _ready(
    make: Callable[[mx.Dtype, int, ExpertWeights, int], Launch],
    dtype: mx.Dtype,
    tokens: int,
    experts: ExpertWeights,
    simdgroups: int,
) -> Launch:
    """Made once: it takes the host longer than all the rest of a call."""
    key = (make, dtype, tokens, simdgroups)
    if key not in experts.launches:
        experts.launches[key] = make(dtype, tokens, experts, simdgroups)
    return experts.launches[key]


def _gate_up_launch(dtype: mx.Dtype, tokens: int, experts: ExpertWeights, simdgroups: int) -> Launch:
    # Two matrices' rows at once: with many tokens their sums would fill the registers.
    per = 4 if tokens <= MOST_TOKENS // 2 else 2
    widest = max(experts.gate.rows, experts.shared_gate.rows)
    pairs = (experts.gate, experts.up, experts.shared_gate, experts.shared_up)
    template = [*_template(dtype, tokens, per, experts, *pairs[::2]), *_second(*pairs[1::2])]
    arrays = [array for m in pairs for array in m.buffers]
    return arrays, _grid(widest, per, simdgroups, tokens * experts.chosen + 1) | {"template": template}


def _down_launch(dtype: mx.Dtype, tokens: int, experts: ExpertWeights, simdgroups: int) -> Launch:
    per = 4
    template = _template(dtype, tokens, per, experts, experts.down, experts.shared_down)
    arrays = [*experts.down.buffers, *experts.shared_down.buffers]
    return arrays, _grid(experts.width, per, simdgroups, 1) | {"template": template}


def _grid(rows: int, per: int, simdgroups: int, high: int) -> dict[str, Any]:
    """`per` rows a simdgroup, in whole threadgroups."""
    threads = simdgroups * SIMD
    return {"grid": (-(-rows // (simdgroups * per)) * threads, high, 1), "threadgroup": (threads, 1, 1)}


def _template(
    dtype: mx.Dtype, tokens: int, per: int, experts: ExpertWeights, routed: Matrices, shared: Matrices
) -> list[tuple[str, Any]]:
    (mode, bits, group), (s_mode, s_bits, s_group) = routed.format, shared.format
    sizes = {"C": experts.width, "E_WIDTH": experts.gate.rows, "S_WIDTH": experts.shared_gate.rows}
    routing = {"K": experts.chosen, "P": columns(experts.chosen), "N": tokens, "PER": per}
    formats = {"MODE": mode, "BITS": bits, "GROUP": group, "S_MODE": s_mode, "S_BITS": s_bits, "S_GROUP": s_group}
    places = {"STORED": routed.stored, "FIRST": routed.first, "S_STORED": shared.stored, "S_FIRST": shared.first}
    return [("T", dtype), *(sizes | routing | formats | places).items()]


def _second(routed: Matrices, shared: Matrices) -> list[tuple[str, int]]:
    """Where the other matrices of a pair stand."""
    routed_place = [("STORED_2", routed.stored), ("FIRST_2", routed.first)]
    return [*routed_place, ("S_STORED_2", shared.stored), ("S_FIRST_2", shared.first)]


@functools.cache
def _kernel(name: str) -> Any:
    source, matrices, before, output = {
        "gate_up": (GATE_UP, ("gate", "up", "shared_gate", "shared_up"), ["x", "chosen"], "hidden"),
        "down": (DOWN, ("down", "shared_down"), ["hidden", "chosen", "weights"], "y"),
    }[name]
    return mx.fast.metal_kernel(
        name=f"expert_mlp_{name}",
        input_names=[*before, *(f"{matrix}_{part}" for matrix in matrices for part in "wsb")],
        output_names=[output],
        header=metal_text("packed_rows") + metal_text("expert_mlp"),
        source=source,
    )


def _rows(x: mx.array) -> mx.array:
    """[..., C] -> [N, C]"""
    return x.reshape(-1, x.shape[-1])


def _meant(m: Matrices, which: mx.array | None = None) -> mx.array:
    """The rows that are meant, unpacked to float32: [K, rows, inputs] of the experts in `which`, or [rows, inputs]."""
    weight, scales, biases = (a if a is None or which is None else a[which] for a in (m.weight, m.scales, m.biases))
    assert weight is not None
    if m.mode is not None:
        assert scales is not None
        if biases is not None:
            # In their own dtype the product would be rounded to it.
            scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        weight = mx.dequantize(weight, scales, biases, m.group_size, m.bits, mode=m.mode)
    return weight[..., m.first : m.first + m.rows, :].astype(mx.float32)


def _gathered(m: Matrices, x: mx.array, which: mx.array) -> mx.array:
    """x: [N, 1 or K, 1, in]   which: [N, K] -> [N, K, 1, rows]"""
    if m.mode is None:
        full = mx.gather_mm(x, m.weight.swapaxes(-1, -2), rhs_indices=which)
    else:
        assert m.scales is not None
        packing = {"group_size": m.group_size, "bits": m.bits, "mode": m.mode}
        full = mx.gather_qmm(x, m.weight, m.scales, m.biases, rhs_indices=which, transpose=True, **packing)
    return full[..., m.first : m.first + m.rows]


def _product(m: Matrices, x: mx.array) -> mx.array:
    """x: [N, in] -> [N, rows]"""
    if m.mode is None:
        full = x @ m.weight.T
    else:
        assert m.scales is not None
        packing = {"group_size": m.group_size, "bits": m.bits, "mode": m.mode}
        full = mx.quantized_matmul(x, m.weight, m.scales, m.biases, transpose=True, **packing)
    return full[..., m.first : m.first + m.rows]
