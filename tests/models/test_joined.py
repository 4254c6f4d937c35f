"""Projections joined when they are loaded: which ones, what they compute, and what that costs in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from examples import real_shapes
from mlx_qwen35.models.joined import ROWS, join, project
from mlx_qwen35.models.model import Model
from mlx_qwen35.models.weights import load_model
from tests.reference.tiny import write_checkpoint

DELTA = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")
ATTENTION = ("q_proj", "k_proj", "v_proj")
FEED_FORWARD = ("gate_proj", "up_proj")
ROUTER = ("gate", "shared_expert_gate")
WIDTHS = {"first": 40, "second": 24, "third": 5}


class Owner(nn.Module):
    JOINED = tuple(WIDTHS)

    def __init__(self, inputs: int = 128) -> None:
        super().__init__()
        for name, width in WIDTHS.items():
            self[name] = nn.Linear(inputs, width, bias=False)


def outputs(owner: Owner, x: mx.array) -> list[np.ndarray]:
    """Of each projection, by its own width."""
    return [np.array(c.cut(w)) for c, w in zip(project(owner, Owner.JOINED, x), WIDTHS.values())]


def joined_names(owner: nn.Module) -> list[tuple[str, ...]]:
    return [tuple(name for name, _ in one.columns) for one in owner.get("joined", ())]


def by_kind(model: Model) -> dict[str, list[tuple[str, ...]]]:
    """What is joined in the trunk and in the MTP layer, by the class of the owner."""
    return {type(m).__name__: found for m in model.modules() if (found := joined_names(m))}


@pytest.mark.parametrize("shape", [(1, 1, 128), (2, 3, 128), (40, 128)])
def test_joined_equals_separate(shape: tuple[int, ...]) -> None:
    owner, x = Owner(), mx.random.normal(shape)
    wanted = outputs(owner, x)
    join(owner)
    assert joined_names(owner) == [Owner.JOINED]
    for ours, theirs in zip(outputs(owner, x), wanted):
        assert ours.shape == (x.size // 128, theirs.shape[1])
        assert np.abs(ours - theirs).max() <= 1e-6 * np.abs(theirs).max()  # float32 sums of 128 in another order


@pytest.mark.parametrize("packing", [(64, 4, "affine"), (32, 8, "affine"), (32, 4, "mxfp4"), (16, 4, "nvfp4")])
@pytest.mark.parametrize("rows", [1, 9])
def test_packed_rows_are_multiplied_as_before_to_the_bit(packing: tuple[int, int, str], rows: int) -> None:
    owner, x = Owner(), mx.random.normal((rows, 128))
    nn.quantize(owner, *packing[:2], mode=packing[2])
    wanted = outputs(owner, x)
    join(owner)
    assert joined_names(owner) == [Owner.JOINED]
    assert all(np.array_equal(a, b) for a, b in zip(outputs(owner, x), wanted))


def test_only_what_is_stored_alike_is_joined() -> None:
    def bits(path: str, _: nn.Module) -> dict[str, int]:
        return {"bits": 8 if path == "second" else 4, "group_size": 64}

    owner, x = Owner(), mx.random.normal((2, 128))
    nn.quantize(owner, class_predicate=bits)
    wanted = outputs(owner, x)
    join(owner)
    assert joined_names(owner) == [("first", "third")]
    assert all(np.array_equal(a, b) for a, b in zip(outputs(owner, x), wanted))
    plain = Owner()
    plain["second"].weight = plain["second"].weight.astype(mx.bfloat16)
    plain["third"] = nn.Linear(128, WIDTHS["third"], bias=True)
    join(plain)
    assert joined_names(plain) == []


def test_rows_are_whole_eights_and_the_rest_is_zero() -> None:
    owner = Owner()
    nn.quantize(owner, 64, 4)
    join(owner)
    (columns,) = {id(c.array): c.array for c in project(owner, Owner.JOINED, mx.ones((1, 128)))}.values()
    assert columns.shape == (1, -(-sum(WIDTHS.values()) // ROWS) * ROWS)
    assert not columns[:, sum(WIDTHS.values()) :].any()


def test_all_kinds_are_joined_when_a_checkpoint_is_loaded(tmp_path: Path) -> None:
    dense = load_model(write_checkpoint("dense", tmp_path / "dense")).model
    assert by_kind(dense) == {"GatedDeltaNet": [DELTA], "Attention": [ATTENTION], "MLP": [FEED_FORWARD]}
    assert joined_names(dense.mtp.layers[0].self_attn) == [ATTENTION]
    mixture = load_model(write_checkpoint("moe", tmp_path / "moe"), adapt=False).model
    feed_forward = {"MLP": [FEED_FORWARD], "SparseMoE": [ROUTER]}
    assert by_kind(mixture) == {"GatedDeltaNet": [DELTA], "Attention": [ATTENTION]} | feed_forward
    assert not any(set(DELTA + ATTENTION + FEED_FORWARD + ROUTER) & set(m) for m in _owners(mixture))
    apart = load_model(tmp_path / "moe", adapt=False, joined=False).model
    assert by_kind(apart) == {}


def nbytes(part: nn.Module) -> int:
    arrays: list[Any] = tree_flatten(part.parameters())  # pyright: ignore[reportAssignmentType]
    return sum(array.nbytes for _, array in arrays)


def _owners(model: Model) -> list[Any]:
    return [m for m in model.modules() if hasattr(type(m), "JOINED")]


def test_loading_holds_one_layer_more_at_most(tmp_path: Path) -> None:
    """All that is evaluated at once are a layer's arrays and the same arrays joined."""
    folder = real_shapes.write("0.8b", tmp_path / "model", 8, 128, real_shapes.ORIGINAL)
    peaks: dict[bool, int] = {}
    layer = whole = 0
    for joined in (False, True):
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        model = load_model(folder, adapt=False, joined=joined).model
        peaks[joined] = mx.get_peak_memory() - before
        layer, whole = max(map(nbytes, model.layers)), nbytes(model)
        assert mx.get_active_memory() - before <= 1.02 * whole  # nothing of what was joined stays
        del model
    assert peaks[True] <= peaks[False] + layer
    assert whole > 6 * layer
