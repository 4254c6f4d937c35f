"""The DeltaNet step in mx operations against its definition; and all its implementations as candidates."""

from __future__ import annotations

from functools import partial

import mlx.core as mx
import pytest

from mlx_qwen35.metal_kernels.delta_rule import gated_delta_mx, gated_delta_products, gated_delta_stepwise
from mlx_qwen35.metal_kernels.delta_step import delta_step, delta_step_reference
from mlx_qwen35.metal_kernels.delta_step_mx import Rule, delta_step_mx, step_class, step_example
from mlx_qwen35.metal_kernels.override import Override
from mlx_qwen35.metal_kernels.selection import Candidate, Operation, Selection
from tests.metal_emulator import Session
from tests.metal_kernels.delta_examples import Shape, example, same

SMALL = Shape(2, 4, 32, 24)


@pytest.mark.parametrize("draft", [False, True], ids=["stays", "draft"])
@pytest.mark.parametrize("rule", [gated_delta_stepwise, gated_delta_mx, gated_delta_products])
@pytest.mark.parametrize(
    "rows",
    [([1, 1, 1],), ([3, 3], [4, 4], [2, 2]), ([1, 2, 2, 7, 8], [8, 0, 0, 1, 2], [5, 0, 0, 1, 2]), ([5], [3], [0])],
    ids=["decode", "alike", "unlike", "nothing kept"],
)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_rows_of_any_lengths_run_at_once(rows: tuple[list[int], ...], dtype: mx.Dtype, rule: Rule, draft: bool) -> None:
    of = example(SMALL, *rows, dtype=dtype)
    same(delta_step_mx(*of.arguments, draft, rule), of, draft)


@pytest.mark.metal
@pytest.mark.parametrize("draft", [False, True], ids=["stays", "draft"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_every_implementation_passes_the_selections_check(metal: Session | None, dtype: mx.Dtype, draft: bool) -> None:
    operation = Operation(
        "delta_step",
        (
            Candidate("reference", delta_step_reference),
            Candidate("fast", delta_step_mx),
            Candidate("metal", delta_step, True),
            Candidate("metal-split", partial(delta_step, splits=2), True),
        ),
        step_example,
        step_class,
    )
    selection = Selection(Override())
    of = example(SMALL, [3, 1], [2, 2], [1, 2], dtype)
    same(selection.run(operation, (*of.arguments, draft)), of, draft)
    assert selection.rejected() == {}


def test_a_choice_holds_for_equal_shapes_and_work() -> None:
    of = example(SMALL, [3], [2], [1])
    keys = {step_class(*of.arguments, draft) for draft in (False, True)}
    keys |= {
        step_class(*example(SMALL, *rows).arguments, False) for rows in [([1],), ([3],), ([3, 3],), ([4], [1], [1])]
    }
    assert len(keys) == 5  # windows of 3 and 4 that replay are one
    assert step_class(*of.arguments, True) == "Hk2 Hv4 Dk32 Dv24 W4 float32 1x4 draft replay"
