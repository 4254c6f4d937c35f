"""The DeltaNet step: its definition against the layer, the kernel against the definition, and what a step moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen35.caches.delta_state import DeltaState
from mlx_qwen35.metal_kernels.delta_rows import Columns, DeltaMemory, DeltaWeights, Projected, Stepped, StepRows
from mlx_qwen35.metal_kernels.delta_step import delta_step, delta_step_reference
from mlx_qwen35.models.delta_net import GatedDeltaNet
from mlx_qwen35.models.joined import project
from mlx_qwen35.models.windows import DeltaPart
from tests.metal_emulator import SCHEDULES, Session
from tests.metal_kernels.delta_examples import (
    FLOAT32,
    Shape,
    close,
    example,
    random_memory,
    random_projected,
    random_weights,
    same,
)
from tests.support.networks import network

Step = Callable[..., Stepped]

FAMILY = {heads: Shape(16, heads, 128, 128) for heads in (16, 32, 48, 64)}  # of 0.8B to 397B-A17B
SMALL = Shape(2, 4, 40, 24)  # three simdgroups, so that a missing barrier is a race


def of_layer(layer: GatedDeltaNet) -> DeltaWeights:
    return DeltaWeights(layer.conv1d.weight, layer.A_log, layer.dt_bias, layer.norm.weight, layer.norm.eps, layer.Hk)


def recurrent_layer(name: str) -> GatedDeltaNet:
    return next(layer.linear_attn for layer in network(name).layers if layer.is_linear)


class AsLong(DeltaPart):
    """Windows that the layer computes as it does long ones: not by the step that is on trial."""

    @property
    def is_short(self) -> bool:
        return False


def follow_the_layer(step: Step) -> None:
    """Windows of a text, some drafted, through the layer and its cache and through the step and its memory."""
    layer: GatedDeltaNet = recurrent_layer("dense")
    conv_dim, W, _ = layer.conv1d.weight.shape
    cache, weights = DeltaState(), of_layer(layer)
    memory = DeltaMemory(mx.zeros((W - 1, conv_dim)), mx.zeros((1, layer.Hv, layer.Dv, layer.Dk)))
    held = kept = 0
    mx.random.seed(7)
    for tokens, draft, then_kept in [
        (5, False, 0),
        (4, True, 2),
        (3, True, 0),
        (8, True, 8),
        (1, True, 1),
        (2, False, 0),
    ]:
        x = mx.random.normal((1, tokens, layer.out_proj.weight.shape[0]))
        wanted = layer.packed(x, [AsLong(0, [cache], (tokens,), (draft,))])
        projected = Projected(*project(layer, ("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b"), x))
        output, *_ = stepped = step(projected, weights, memory, StepRows([tokens], [held], [kept]), draft)
        memory = stepped.memory
        close("output", layer.out_proj(output.reshape(1, tokens, -1)), wanted)
        held, kept = (tokens, then_kept) if draft else (0, 0)
        if draft:
            cache.commit(then_kept)
    tail, state = cache.snapshot()
    close("tail", memory.inputs[None], tail)
    close("state", memory.state, state)


def test_the_definition_is_what_the_layer_computes() -> None:
    follow_the_layer(delta_step_reference)


@pytest.mark.metal
def test_the_kernel_is_what_the_layer_computes(metal: Session | None) -> None:
    follow_the_layer(delta_step)


@pytest.mark.metal
@pytest.mark.parametrize("draft", [False, True], ids=["stays", "draft"])
@pytest.mark.parametrize(("heads", "splits"), [(16, 2), (32, 1), (48, 1), (64, 4)])
def test_kernel_at_the_familys_shapes(metal: Session | None, heads: int, splits: int, draft: bool) -> None:
    of = example(FAMILY[heads], [2], [2], [1], mx.bfloat16)
    same(delta_step(*of.arguments, draft=draft, splits=splits), of, draft)
    if metal:
        assert metal.total_launches() == (1 if splits == 1 else 2)
        assert metal.last.warnings == ()


@pytest.mark.metal
@pytest.mark.parametrize("metal", SCHEDULES, indirect=True)
@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("draft", [False, True], ids=["stays", "draft"])
def test_rows_of_different_lengths_and_different_commits(metal: Session | None, draft: bool, splits: int) -> None:
    of = example(SMALL, tokens=[1, 2, 3, 7, 8], held=[8, 0, 3, 1, 2], kept=[5, 0, 0, 1, 2])
    same(delta_step(*of.arguments, draft=draft, splits=splits), of, draft)
    if metal:
        assert all(launch.warnings == () for launch in metal.launches)


@pytest.mark.metal
@pytest.mark.parametrize(
    ("ratio", "dtype"), [(1, mx.float32), (2, mx.float16), (3, mx.bfloat16), (4, mx.float32)], ids=str
)
def test_value_heads_read_their_key_head(metal: Session | None, ratio: int, dtype: mx.Dtype) -> None:
    of = example(Shape(2, 2 * ratio, 16, 24), [3, 1], [2, 2], [1, 2], dtype)
    for draft in (False, True):
        same(delta_step(*of.arguments, draft=draft), of, draft)


@pytest.mark.metal
@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize(
    "shape",
    [Shape(1, 1, 4, 2), Shape(1, 3, 12, 20), Shape(3, 3, 20, 6, W=2), Shape(1, 2, 36, 130, W=5), Shape(1, 1, 256, 64)],
    ids=str,
)
def test_widths_that_fill_no_simdgroup(metal: Session | None, shape: Shape, splits: int) -> None:
    of = example(shape, [3, 1], [2, 1], [1, 1])
    same(delta_step(*of.arguments, draft=True, splits=splits), of, draft=True)


@pytest.mark.metal
def test_gates_keep_their_digits_where_they_hardly_forget(metal: Session | None) -> None:
    of = example(Shape(1, 8, 16, 8), [8])
    a = mx.linspace(-60, 60, 64).reshape(8, 8)  # decays of 1 - 1e-26 add up over a long text, if they are not 1
    of = replace(of, projected=replace(of.projected, a=Columns(a), b=Columns(a * 2)))
    got, wanted = (step(*of.arguments, draft=True).memory.window for step in (delta_step, delta_step_reference))
    assert got is not None
    assert wanted is not None
    for name in ("log_decay", "beta"):
        assert np.allclose(np.array(getattr(got, name)), np.array(getattr(wanted, name)), rtol=FLOAT32, atol=0), name


@pytest.mark.metal
@pytest.mark.parametrize("splits", [1, 4])
def test_a_row_does_not_depend_on_its_company(metal: Session | None, splits: int) -> None:
    of = example(SMALL, tokens=[5, 8, 6], held=[3, 0, 4], kept=[1, 0, 4])
    together = delta_step(*of.arguments, draft=True, splits=splits).output
    rows, W = of.rows, SMALL.W
    for i in range(3):
        mine = slice(rows.starts[i], rows.starts[i] + rows.tokens[i])
        held = slice(rows.held_starts[i], rows.held_starts[i] + rows.held[i])
        inputs = of.memory.inputs[held.start + i * (W - 1) : held.stop + (i + 1) * (W - 1)]
        assert of.memory.window is not None
        window = replace(of.memory.window, **{name: x[held] for name, x in vars(of.memory.window).items()})
        memory = DeltaMemory(inputs, of.memory.state[i : i + 1], window if rows.held[i] else None)
        projected = Projected(*[Columns(p.array[mine]) for p in vars(of.projected).values()])
        one = StepRows(rows.tokens[i : i + 1], rows.held[i : i + 1], rows.kept[i : i + 1])
        alone = delta_step(projected, of.weights, memory, one, draft=True, splits=splits).output
        assert mx.array_equal(alone, together[mine])


@pytest.mark.metal
def test_verified_drafts_leave_the_state_of_plain_decoding(metal: Session | None) -> None:
    mx.random.seed(3)
    weights, plain = random_weights(SMALL, mx.float32), random_memory(SMALL, [0], mx.float32)
    drafted, held, kept = plain, 0, 0
    for tokens, stay in [(4, 2), (3, 0), (5, 5), (1, 1)]:
        projected = random_projected(SMALL, tokens, mx.float32)
        verified = delta_step(projected, weights, drafted, StepRows([tokens], [held], [kept]), draft=True)
        drafted, held, kept = verified.memory, tokens, stay
        for t in range(stay):
            token = Projected(*[Columns(p.array[t : t + 1]) for p in vars(projected).values()])
            decoded = delta_step(token, weights, plain, StepRows([1]), draft=False)
            close("output", verified.output[t : t + 1], decoded.output)
            plain = decoded.memory
    projected = random_projected(SMALL, 1, mx.float32)
    verified = delta_step(projected, weights, drafted, StepRows([1], [held], [kept]), draft=False)
    decoded = delta_step(projected, weights, plain, StepRows([1]), draft=False)
    assert all(mx.array_equal(a, b) for a, b in zip(verified[:3], decoded[:3]))


@pytest.mark.metal
@pytest.mark.parametrize("splits", [1, 2])
def test_one_projections_columns_are_read_where_they_lie(metal: Session | None, splits: int) -> None:
    of = example(SMALL, [2, 1], [1, 2], [1, 0])
    parts = list(vars(of.projected).values())
    whole = mx.concatenate([mx.ones((3, 5)), *[p.array for p in parts]], axis=1)
    firsts = np.cumsum([5] + [p.array.shape[1] for p in parts])[:4].tolist()
    joined = replace(of, projected=Projected(*[Columns(whole, first) for first in firsts]))
    same(delta_step(*joined.arguments, draft=True, splits=splits), of, draft=True)
    if metal:
        assert metal.total_launches() == splits
        assert metal.last.copied == ()


@pytest.mark.metal
def test_views_of_larger_arrays(metal: Session | None) -> None:
    of = example(SMALL, [2], [3], [2])
    around = mx.ones((2, *of.memory.state.shape[1:]))
    state = mx.concatenate([around, of.memory.state])[2:]
    z = mx.repeat(of.projected.z.array, 2, axis=0)[::2]
    viewed = replace(of, projected=replace(of.projected, z=Columns(z)), memory=replace(of.memory, state=state))
    same(delta_step(*viewed.arguments, draft=False), of, draft=False)
    if metal:
        assert metal.last.copied == ("z",)  # strided; a row of the states of several is not copied


@pytest.mark.metal
def test_decoding_moves_the_state_once_in_and_once_out(metal: Session | None) -> None:
    shape = FAMILY[32]
    of = example(shape, [1], dtype=mx.bfloat16)
    delta_step(*of.arguments, draft=False)
    if metal:
        state = of.memory.state.nbytes
        moved = metal.last.counters.threadgroup_unique
        assert moved["state"] == moved["new_state"] == state
        # Inputs, tail in and out, weights of the convolution, z, output; the rest is small.
        least = 2 * state + 2 * shape.conv_dim * (1 + 3 + 3 + 4) + 2 * 2 * shape.Hv * shape.Dv
        assert metal.last.counters.device_bytes <= 1.03 * least
        assert metal.last.counters.simd_diverged == 0


@pytest.mark.metal
def test_verifying_moves_less_than_a_state_a_token_would(metal: Session | None) -> None:
    of = example(FAMILY[32], [3], [3], [2], mx.bfloat16)
    delta_step(*of.arguments, draft=True)
    if metal:
        state = of.memory.state.nbytes
        # S in and out, and 14 % for all else. With a state a position it would be 4: S read once and written 3 times.
        assert metal.last.counters.device_bytes <= 2.3 * state
    nothing_kept = replace(of, rows=StepRows([3], [3], [0]))
    assert delta_step(*nothing_kept.arguments, draft=True).state is of.memory.state
    if metal:
        assert metal.last.counters.device_bytes <= 1.3 * state


def test_arguments_that_do_not_fit_are_named() -> None:
    of = example(SMALL, [2])
    with pytest.raises(ValueError, match=r"windows must have 1 to 8 tokens but have \(9,\)"):
        StepRows([9])
    with pytest.raises(ValueError, match=r"\(3,\) tokens kept, of windows of \(2,\)"):
        StepRows([1], [2], [3])
    with pytest.raises(ValueError, match=r"state is \(1, 4, 24, 40\) .* must be \(2, 4, 24, 40\)"):
        delta_step(of.projected, of.weights, of.memory, StepRows([1, 1]), draft=False)
    wrong = replace(of.projected, qkv=Columns(of.projected.qkv.array.astype(mx.float16)))
    with pytest.raises(ValueError, match=r"qkv is .*float16 but must be .*float32"):
        delta_step(wrong, of.weights, of.memory, of.rows, draft=False)
    with pytest.raises(ValueError, match=r"with Hk = 3, Hv = 4"):
        replace(of.weights, Hk=3)
    with pytest.raises(ValueError, match=r"\(4,\) mlx.core.float16"):
        replace(of.weights, A_log=of.weights.A_log.astype(mx.float16))
    with pytest.raises(ValueError, match="the memory holds none"):
        delta_step(of.projected, of.weights, of.memory, StepRows([2], [1], [1]), draft=False)
    with pytest.raises(ValueError, match="of the 5 splits"):
        delta_step(*of.arguments, draft=False, splits=5)
