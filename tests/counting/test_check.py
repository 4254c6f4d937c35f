"""The check that the first Mac runs: here with emulated kernels, on the demo model."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

import mlx_qwen35
from mlx_qwen35.counting.check import check_kernels, check_model
from mlx_qwen35.errors import UserError
from mlx_qwen35.metal_kernels import operations, rms_norm
from mlx_qwen35.metal_kernels.selection import Candidate, Operation
from mlx_qwen35.models.model import Model
from mlx_qwen35.models.weights import load_model

DEMO = Path(mlx_qwen35.__file__).parent / "demo_checkpoint"


@pytest.fixture(scope="module")
def demo() -> Model:
    """Loaded before Metal is emulated, so that the rest of it is what a CPU can run."""
    return load_model(DEMO).model


@pytest.mark.metal
def test_every_operation_of_a_checkpoint_is_chosen_and_told(demo: Model, metal: object) -> None:
    lines = check_model(demo)
    assert {line.split()[0] for line in lines[:-1]} >= {"add_rms_norm", "gated_delta"}
    assert "differ by" in lines[-1]


@pytest.mark.metal
def test_a_wrong_kernel_is_named(demo: Model, metal: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(x: mx.array, residual: mx.array, weight: mx.array, eps: float) -> tuple[mx.array, mx.array]:
        return rms_norm.add_rms_norm(x, 2 * residual, weight, eps)

    right = operations.ADD_RMS_NORM
    operation = Operation(right.name, (*right.candidates[:2], Candidate("metal", wrong, True)))
    monkeypatch.setattr(operations, "ADD_RMS_NORM", operation)
    with pytest.raises(UserError, match="add_rms_norm=metal"):
        check_model(demo)


def test_without_metal_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    with pytest.raises(UserError, match="needs Metal"):
        check_kernels(DEMO)
