"""The experts' feed-forward: MLX's gathered products and the two kernels against the definition."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map

from mlx_qwen35.metal_kernels.expert_mlp import (
    down_metal,
    down_reference,
    expert_mlp,
    expert_mlp_metal,
    expert_mlp_reference,
    gate_up_metal,
    gate_up_reference,
)
from mlx_qwen35.metal_kernels.expert_weights import ExpertWeights, Matrices, packed, plain
from mlx_qwen35.metal_kernels.operations import override, using
from mlx_qwen35.metal_kernels.router import columns, route_metal, route_reference
from mlx_qwen35.metal_kernels.selection import Selection
from mlx_qwen35.metal_kernels.source import metal_text
from mlx_qwen35.models.config import ExpertsConfig
from mlx_qwen35.models.moe import SparseMoE
from tests.metal_emulator import SCHEDULES, Session
from tests.metal_emulator.support import error

ROUNDING = {mx.float32: 0.0, mx.float16: 2.0**-11, mx.bfloat16: 2.0**-8}
Packing = tuple[int, int, str] | None  # bits, group, mode
FOUR: Packing = (4, 64, "affine")
PACKINGS: list[Packing] = [
    FOUR,
    *[(bits, 32, "affine") for bits in (2, 3, 4, 5, 6, 8)],
    (8, 64, "affine"),
    (4, 128, "affine"),
    (4, 32, "mxfp4"),
    (4, 16, "nvfp4"),
    (8, 32, "mxfp8"),
    None,
]


def matrices(shape: tuple[int, ...], packing: Packing, dtype: mx.Dtype = mx.float32, seed: int = 0) -> Matrices:
    weight = mx.random.normal(shape, key=mx.random.key(seed)) * shape[-1] ** -0.5
    if packing is None:
        return plain(weight.astype(dtype))
    bits, group, mode = packing
    codes, *rest = mx.quantize(weight, group, bits, mode=mode)
    # Scales of the fp modes are bytes.
    scales, *biases = [a if a.dtype == mx.uint8 else a.astype(dtype) for a in rest]
    return packed(codes, scales, biases[0] if biases else None, group, bits, mode)


def experts_of(
    E: int,
    C: int,
    F: int,
    K: int,
    packing: Packing = FOUR,
    shared: tuple[int, Packing] | None = None,
    dtype: mx.Dtype = mx.float32,
) -> ExpertWeights:
    Fs, shared_packing = shared or (F, packing)
    shapes = [(E, F, C), (E, F, C), (E, C, F), (Fs, C), (Fs, C), (C, Fs)]
    made = [matrices(s, packing if len(s) == 3 else shared_packing, dtype, i) for i, s in enumerate(shapes)]
    return ExpertWeights(*made, chosen=K)


def routing(tokens: int, E: int, K: int, seed: int = 0) -> tuple[mx.array, mx.array]:
    logits = mx.random.normal((tokens, max(8, E + 1)), key=mx.random.key(seed + 100))
    return route_reference(logits, E, K)


def inputs(tokens: int, C: int, dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.random.normal((tokens, C), key=mx.random.key(50 + C)).astype(dtype)


def check(got: mx.array, wanted_from: Any, x: mx.array) -> None:
    """Within one rounding of the definition computed in float32 from the same inputs."""
    assert got.dtype == x.dtype
    wanted = np.array(wanted_from(x.astype(mx.float32)), np.float64)
    difference = np.abs(np.array(got.astype(mx.float32), np.float64) - wanted)
    # float32 sums in another order: 1e-5 of the largest, on top of the rounding of each value.
    assert np.all(difference <= ROUNDING[x.dtype] * np.abs(wanted) + 1e-5 * np.abs(wanted).max())


def check_both(x: mx.array, route: tuple[mx.array, mx.array], experts: ExpertWeights, **how: int) -> mx.array:
    """Each launch against its half of the definition; rounded where the first hands over."""
    chosen, weights = route
    hidden = gate_up_metal(x, chosen, experts, **how)
    check(hidden, lambda wide: gate_up_reference(wide, chosen, experts), x)
    y = down_metal(hidden, chosen, weights, experts, **how)
    check(y, lambda wide: down_reference(wide, chosen, weights, experts), hidden)
    return y


def test_definition_against_float64() -> None:
    E, C, F, K = 5, 64, 32, 3
    experts = experts_of(E, C, F, K, (4, 32, "affine"), shared=(96, None))
    x, (chosen, weights) = inputs(2, C), routing(2, E, K)

    def full(m: Matrices) -> np.ndarray:
        if m.scales is None:
            return np.array(m.weight, np.float64)
        return np.array(mx.dequantize(m.weight, m.scales, m.biases, 32, 4), np.float64)

    def through(token: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
        g = gate @ token
        return down @ (g / (1 + np.exp(-g)) * (up @ token))

    routed = [full(m) for m in (experts.gate, experts.up, experts.down)]
    shared = [full(m) for m in (experts.shared_gate, experts.shared_up, experts.shared_down)]
    for n, y in enumerate(expert_mlp_reference(x, chosen, weights, experts)):
        token, factor = np.array(x[n], np.float64), np.array(weights[n], np.float64)
        wanted = factor[K] * through(token, *shared)
        for slot, e in enumerate(np.array(chosen[n, :K])):
            wanted += factor[slot] * through(token, *[m[e] for m in routed])
        assert error(y, wanted) < 1e-6


@pytest.mark.parametrize("packing", [FOUR, (4, 16, "nvfp4"), None], ids=str)
def test_gathered_products_equal_the_definition(packing: Packing) -> None:
    experts = experts_of(6, 128, 64, 2, packing, shared=(128, (8, 64, "affine")))
    x, (chosen, weights) = inputs(5, 128), routing(5, 6, 2)
    got = expert_mlp(x.reshape(1, 5, 128), chosen[None], weights[None], experts)
    assert error(got[0], expert_mlp_reference(x, chosen, weights, experts)) <= 1e-5


@pytest.mark.metal
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_kernels_equal_the_definition_at_35b_and_read_each_weight_once(metal: Session | None, dtype: mx.Dtype) -> None:
    """All 9 experts of a token; scales of 16 bits, as in checkpoints."""
    experts = experts_of(9, 2048, 512, 8, dtype=mx.bfloat16)
    check_both(inputs(1, 2048, dtype), routing(1, 9, 8), experts)
    if metal:
        assert metal.total_launches() == 2
        assert all(one.warnings == () for one in metal.launches)
        minimum = experts.active_bytes()
        once = sum(sum(one.counters.unique.values()) for one in metal.launches)
        assert minimum <= once <= 1.01 * minimum
        # Threadgroups of 32 rows each read the token anew; as floats it weighs twice as much.
        reread = 1.08 if dtype.size == 2 else 1.16
        assert sum(one.counters.device_bytes for one in metal.launches) <= reread * minimum


@pytest.mark.metal
@pytest.mark.parametrize(("C", "packing"), [(3072, FOUR), (4096, (4, 32, "affine"))], ids=["122B", "397B"])
def test_kernels_equal_the_definition_at_the_largest_widths(metal: Session | None, C: int, packing: Packing) -> None:
    experts = experts_of(2, C, 1024, 1, packing, shared=(1024, (8, 64, "affine")), dtype=mx.bfloat16)
    check_both(inputs(1, C, mx.bfloat16), routing(1, 2, 1), experts)


@pytest.mark.metal
@pytest.mark.parametrize(("packing", "other"), list(zip(PACKINGS, PACKINGS[-4:] + PACKINGS[:-4])), ids=str)
def test_every_packing_of_mlx(metal: Session | None, packing: Packing, other: Packing) -> None:
    """Routed and shared experts differ, as in our own recipe and in checkpoints that pack routed experts only."""
    check_both(inputs(2, 256), routing(2, 5, 2), experts_of(5, 256, 128, 2, packing, shared=(128, other)))


@pytest.mark.metal
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("packing", [FOUR, None], ids=str)
def test_weights_and_scales_of_16_bits(metal: Session | None, dtype: mx.Dtype, packing: Packing) -> None:
    experts = experts_of(5, 128, 64, 2, packing, dtype=dtype)
    check_both(inputs(3, 128, dtype), routing(3, 5, 2), experts)


@pytest.mark.metal
@pytest.mark.parametrize("tokens", range(1, 9))
def test_tokens_that_chose_the_same_expert_share_its_weights(metal: Session | None, tokens: int) -> None:
    experts = experts_of(6, 64, 32, 3, (4, 32, "affine"))
    route = routing(tokens, 6, 3)
    x = inputs(tokens, 64)
    together = check_both(x, route, experts)
    if metal:
        first, second = metal.launches
        different = len(set(np.array(route[0])[:, :3].flatten().tolist()))
        for counters, names in [(first.counters, ("gate_w", "up_w")), (second.counters, ("down_w",))]:
            assert [counters.loaded[name] for name in names] == [different * 32 * 64 // 2] * len(names)
            shared = [name for name in counters.loaded if name.startswith("shared") and name.endswith("_w")]
            assert all(counters.loaded[name] == 32 * 64 // 2 for name in shared)
    # Each token's answer is its own, to the bit.
    alone = [
        expert_mlp_metal(x[n : n + 1], *(part[n : n + 1] for part in route), experts=experts) for n in range(tokens)
    ]
    assert mx.array_equal(together, mx.concatenate(alone))


@pytest.mark.metal
@pytest.mark.parametrize("metal", SCHEDULES, indirect=True)
@pytest.mark.parametrize("sizes", [(2, 16, 16, 16), (5, 48, 16, 80), (2, 528, 48, 32), (5, 32, 560, 16)], ids=str)
def test_widths_that_fill_no_threadgroup_and_no_simdgroup(
    metal: Session | None, sizes: tuple[int, int, int, int]
) -> None:
    tokens, C, F, Fs = sizes
    experts = experts_of(3, C, F, 2, (4, 16, "nvfp4"), shared=(Fs, None))
    for simdgroups in (8, 1):
        check_both(inputs(tokens, C), routing(tokens, 3, 2), experts, simdgroups=simdgroups)
    if metal:
        assert all(one.warnings == () for one in metal.launches)


@pytest.mark.metal
def test_gate_and_up_in_one_array_are_not_copied(metal: Session | None) -> None:
    apart = experts_of(4, 64, 64, 2)
    both: Any = [mx.concatenate([a, b], axis=1) for a, b in zip(apart.gate.buffers, apart.up.buffers)]
    shared: Any = [mx.concatenate([a, b]) for a, b in zip(apart.shared_gate.buffers, apart.shared_up.buffers)]
    gate, up = (packed(*both, group_size=64, bits=4, rows=64, first=first) for first in (0, 64))
    shared_gate, shared_up = (packed(*shared, group_size=64, bits=4, rows=64, first=first) for first in (0, 64))
    joined = ExpertWeights(gate, up, apart.down, shared_gate, shared_up, apart.shared_down, chosen=2)
    x, route = inputs(2, 64), routing(2, 4, 2)
    assert mx.array_equal(check_both(x, route, joined), check_both(x, route, apart))
    assert error(expert_mlp(x, *route, joined), expert_mlp_reference(x, *route, apart)) <= 1e-5
    if metal:
        assert all(one.copied == () for one in metal.launches)


@pytest.mark.metal
def test_rows_of_a_wider_array(metal: Session | None) -> None:
    experts, (chosen, weights) = experts_of(4, 64, 64, 2), routing(6, 4, 2)
    x = inputs(6, 64)
    check_both(x[2:5], (chosen[2:5], weights[2:5]), experts)
    if metal:
        assert all(one.copied == () for one in metal.launches)
    wide = mx.concatenate([x, x], axis=-1)
    check_both(wide[::2, :64], (chosen[::2], weights[::2]), experts)


@pytest.mark.metal
def test_router_and_experts_equal_the_models_layer(metal: Session | None) -> None:
    """Three launches behind the router's matmul, whose last row is the shared expert's gate; windows of 1 and 4."""
    mx.random.seed(5)
    layer = SparseMoE(64, ExpertsConfig(count=8, chosen=2, width=32, shared_width=96))
    layer.update(tree_map(lambda a: mx.random.normal(a.shape) / 8, layer.parameters()))
    nn.quantize(layer.switch_mlp, 32, 4)
    nn.quantize(layer.shared_expert, 32, 6)
    modules: list[Any] = [layer.switch_mlp[f"{p}_proj"] for p in ("gate", "up", "down")]
    modules += [layer.shared_expert[f"{p}_proj"] for p in ("gate", "up", "down")]
    experts = ExpertWeights(*(packed(m.weight, m.scales, m.biases, m.group_size, m.bits) for m in modules), chosen=2)
    router = mx.concatenate([layer.gate.weight, layer.shared_expert_gate.weight])
    for shape in [(1, 1, 64), (1, 4, 64), (1, 1, 64)]:
        x = mx.random.normal(shape)
        chosen, weights = route_metal(x @ router.T, 8, 2)
        with using(Selection(override("reference"))):
            wanted = layer(x)
        assert error(expert_mlp_metal(x, chosen, weights, experts), wanted) <= 1e-5
    if metal:
        assert metal.total_launches() == 9
        assert metal.recompiled == []


@pytest.mark.metal
def test_offsets_past_32_bits() -> None:
    """397B: 512 experts of 1,024 rows of 4,096. At 8 bits they end at byte 2^31; unpacked floats at word 2^32.

    Twice as many experts show that 64 bits are used, not 32 that just suffice.
    """
    from tests.metal_emulator.compile import Unit
    from tests.metal_emulator.kernel import Kernel, Out

    text = (
        """
    #include <metal_stdlib>
    using namespace metal;
    """
        + metal_text("packed_rows")
        + """
    [[kernel]] void offsets(const device uint* w [[buffer(0)]], const device uint* experts [[buffer(1)]],
                            device ulong* o [[buffer(2)]], uint i [[thread_index_in_simdgroup]]) {
      const auto whole = stack(w, w, w, 1024, 0);
      o[2 * i] = (ulong)rows_of<Format<AFFINE, 8, 32>, 4096>(whole, experts[i], 1023).words - (ulong)w;
      o[2 * i + 1] = (ulong)rows_of<Format<FLOAT32, 32, 16>, 4096>(whole, experts[i], 1023).words - (ulong)w;
    }
    """
    )
    experts = np.array([0, 255, 511, 1023], np.uint32)
    buffers = {0: np.zeros(8, np.uint32), 1: experts, 2: Out((8,), np.uint64)}
    done = Kernel(Unit(text, "offsets")).run(buffers, (4, 1, 1), (4, 1, 1))
    wanted = [(e * 1024 + 1023) * 4096 * size for e in experts.tolist() for size in (1, 4)]
    assert done.outputs[2].tolist() == wanted
    assert wanted[-1] > 2 * 2**32


def test_weights_that_would_be_copied_at_every_call_are_refused() -> None:
    whole = matrices((4, 128, 64), FOUR)
    half = packed(whole.weight[:, :64], whole.buffers[1][:, :64], whole.buffers[2][:, :64], 64, 4)
    good = experts_of(4, 64, 64, 2)
    with pytest.raises(ValueError, match=r"gate: .* view with strides; pass the whole array"):
        ExpertWeights(half, good.up, good.down, good.shared_gate, good.shared_up, good.shared_down, 2)
    # One expert's block is contiguous where it stands.
    assert matrices((4, 64, 64), FOUR).complaint() is None
    block = packed(whole.weight[1:], whole.buffers[1][1:], whole.buffers[2][1:], 64, 4)
    assert block.complaint() is None


def test_shape_class_tells_formats_and_sizes_apart() -> None:
    made = [experts_of(4, 64, 64, 2), experts_of(4, 64, 64, 1), experts_of(4, 64, 64, 2, (8, 64, "affine"))]
    made += [experts_of(4, 64, 64, 2, shared=(32, None)), experts_of(4, 128, 64, 2), experts_of(4, 64, 32, 2, None)]
    assert len({one.shape_class for one in made}) == len(made)
    assert experts_of(4, 64, 64, 2).shape_class == made[0].shape_class


def test_weights_and_arguments_that_do_not_fit_are_named() -> None:
    good = experts_of(4, 64, 64, 2)
    shared: Any = (good.shared_gate, good.shared_up, good.shared_down, 2)
    with pytest.raises(ValueError, match="they share a launch"):
        ExpertWeights(good.gate, matrices((4, 64, 64), (8, 64, "affine")), good.down, *shared)
    with pytest.raises(ValueError, match="gate 64 x 64, up 32 x 64"):
        ExpertWeights(good.gate, matrices((4, 32, 64), FOUR), good.down, *shared)
    with pytest.raises(ValueError, match="down: 64 rows of 40"):
        ExpertWeights(good.gate, good.up, matrices((4, 64, 40), None), *shared)
    weight, scales, biases = good.down.buffers
    with pytest.raises(ValueError, match="down: rows 32 to 96 of 64"):
        ExpertWeights(good.gate, good.up, packed(weight, scales, biases, 64, 4, rows=64, first=32), *shared)
    x, (chosen, weights) = inputs(9, 64), routing(9, 4, 2)
    with pytest.raises(ValueError, match="for 1 to 8 tokens"):
        expert_mlp_metal(x, chosen, weights, good)
    with pytest.raises(ValueError, match=rf"chosen \(2, 2\) .* must be .* \(2, {columns(2)}\)"):
        gate_up_metal(x[:2], chosen[:2, :2], good)
    with pytest.raises(ValueError, match=r"weights .*bfloat16"):
        down_metal(mx.zeros((2, 192)), chosen[:2], weights[:2].astype(mx.bfloat16), good)
