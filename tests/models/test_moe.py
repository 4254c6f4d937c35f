"""The feed-forward on its kernels: forced, inside a layer, for every number of tokens; and what there is without."""

from __future__ import annotations

import logging
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map

from mlx_qwen35.metal_kernels import operations
from mlx_qwen35.metal_kernels.operations import EXPERT_MLP, ROUTE, override, using
from mlx_qwen35.metal_kernels.selection import Selection
from mlx_qwen35.models.config import ExpertsConfig
from mlx_qwen35.models.joined import join
from mlx_qwen35.models.moe import SparseMoE
from tests.metal_emulator import Session

C, E, K = 64, 8, 2
KERNELS = "route=metal,expert_mlp=metal"
SHARED_GATE_APART = {"gate": 8, "shared_expert_gate": 4}


def layer_of(width: int = 32, bits: dict[str, int] | None = None, experts: int = E) -> SparseMoE:
    """Random weights, packed at 4 bits or, by name, at others, and joined; unpacked with no bits."""
    mx.random.seed(5)
    layer = SparseMoE(C, ExpertsConfig(count=experts, chosen=K, width=width, shared_width=96))
    layer.update(tree_map(lambda a: mx.random.normal(a.shape) / 8, layer.parameters()))
    if bits is not None:
        nn.quantize(layer, class_predicate=lambda path, _: {"bits": (bits or {}).get(path, 4), "group_size": 32})
    join(layer)
    return layer


def computed(layer: SparseMoE, x: mx.array, asked: str) -> np.ndarray:
    with using(Selection(override(asked))):
        return np.array(layer(x))


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    # float32 sums in another order, through two products
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.metal
@pytest.mark.parametrize("bits", [None, {}, SHARED_GATE_APART], ids=["plain", "4 bits", "two formats"])
@pytest.mark.parametrize("shape", [(1, 1, C), (1, 8, C), (2, 3, C), (1, 9, C)])
def test_the_kernels_inside_the_layer_give_what_the_definitions_give(
    metal: Session | None, shape: tuple[int, ...], bits: dict[str, int] | None
) -> None:
    layer, x = layer_of(bits=bits), mx.random.normal(shape)
    wanted = computed(layer, x, "reference")
    before = metal.total_launches() if metal else 0
    found = computed(layer, x, KERNELS)
    close(found, wanted)
    if metal:
        few = shape[0] * shape[1] <= 8
        assert metal.total_launches() - before == (3 if few else 1)  # more tokens share reads by sorting
        assert all(one.copied == () for one in metal.launches)


@pytest.mark.metal
def test_every_candidate_passes_the_check_that_a_mac_makes(metal: Session | None) -> None:
    layer, rejected = layer_of(bits={}), []
    chosen = Selection(override("auto"), None, rejected.append)
    with using(chosen):
        mx.eval(layer(mx.random.normal((1, 2, C))))
    assert rejected == []
    if metal:
        assert {key.split()[0] for key in chosen.chosen()} == {"route", "expert_mlp"}


def test_more_tokens_than_kernels_take_are_computed_as_few_are() -> None:
    layer, x = layer_of(bits={}), mx.random.normal((1, 40, C))
    few = [layer(x[:, i : i + 8]) for i in range(0, 40, 8)]
    close(np.array(layer(x)), np.array(mx.concatenate(few, axis=1)))


def test_weights_no_kernel_takes_are_computed_without_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    layer, x = layer_of(width=24), mx.random.normal((1, 3, C))
    with caplog.at_level(logging.DEBUG, "mlx_qwen35"):
        found = [np.array(layer(x)) for _ in range(2)]
    assert np.isfinite(found[0]).all()
    assert [r.message for r in caplog.records if "no kernel" in r.message] != []
    assert len(caplog.records) == 1
    wide = mx.concatenate([x] * 4, axis=1)  # the way of many tokens
    close(found[1], np.array(layer(wide))[:, :3])


def test_new_weights_are_used_at_once() -> None:
    layer, x = layer_of(bits={}), mx.random.normal((1, 2, C))
    before = np.array(layer(x))
    layer.switch_mlp.update(tree_map(lambda a: a * 2 if a.dtype == mx.float32 else a, layer.switch_mlp.parameters()))
    after = np.array(layer(x))
    assert np.abs(after - before).max() > 0.1 * np.abs(before).max()


def test_few_experts_leave_room_for_the_kernels_columns() -> None:
    layer, x = layer_of(bits=SHARED_GATE_APART, experts=4), mx.random.normal((1, 3, C))
    logits = layer._logits(x[0])
    assert logits.shape == (3, 8)
    assert not logits[:, 5:].any()
    close(computed(layer, x, "auto"), computed(layer, x, "reference"))


@pytest.mark.parametrize("experts", [8, 256])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_the_fast_router_takes_the_same_experts_in_the_same_order(experts: int, dtype: mx.Dtype) -> None:
    logits = mx.zeros((5, experts + 8), dtype)
    example: Any = ROUTE.example(logits, experts, 4)
    assert len(np.unique(np.array(example[0].astype(mx.float32))[0])) == experts + 8  # or a tie would decide
    (indices, weights), wanted = (c.call(*example) for c in ROUTE.candidates[:2])
    assert mx.array_equal(indices, wanted[0])
    assert mx.allclose(weights, wanted[1], rtol=1e-6)
    assert operations.route(*example)[0].shape == (5, 8)


def test_examples_choose_different_experts_with_weights_of_one() -> None:
    layer = layer_of(bits={})
    made: Any = layer._kernel_weights()
    x, chosen, weights, experts = EXPERT_MLP.example(
        mx.zeros((5, C), mx.bfloat16), mx.zeros((5, 8), mx.uint32), mx.zeros((5, 8)), made
    )
    assert experts is made
    assert (x.dtype, chosen.dtype, weights.dtype) == (mx.bfloat16, mx.uint32, mx.float32)
    assert all(len(set(row[:K])) == K for row in chosen.tolist())
    assert mx.allclose(weights[:, :K].sum(-1), mx.ones(5))
