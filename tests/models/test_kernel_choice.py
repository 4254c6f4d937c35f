"""The demo model with the definitions in place of every faster form: the same tokens."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import mlx_qwen35
from mlx_qwen35.errors import ConfigError
from mlx_qwen35.metal_kernels import operations, rms_norm
from mlx_qwen35.metal_kernels import selection as selecting
from mlx_qwen35.metal_kernels.operations import OPERATIONS, override, using
from mlx_qwen35.metal_kernels.override import VARIABLE
from mlx_qwen35.metal_kernels.selection import Candidate, Operation, Selection
from mlx_qwen35.models.model import Model
from mlx_qwen35.models.weights import load_model
from mlx_qwen35.models.windows import Window, commit

DEMO = Path(mlx_qwen35.__file__).parent / "demo_checkpoint"
PROMPT, ANSWER = 70, 16


@pytest.fixture(scope="module")
def demo() -> Model:
    return load_model(DEMO).model


def tokens(model: Model, asked: str) -> list[int]:
    """Prefill, decode, and one window of four to verify, kept whole: the tokens at temperature 0."""
    prompt = np.random.default_rng(5).integers(0, 300, PROMPT)
    with using(Selection(override(asked))):
        cache, window, said = model.make_cache(), mx.array(prompt), []
        for _ in range(ANSWER):
            hidden = model.step([Window(window, cache)])
            window = mx.argmax(model.logits(hidden[-1:]), axis=-1)
            said += np.array(window).tolist()
        draft = mx.array(said[:4])
        verified = mx.argmax(model.logits(model.step([Window(draft, cache, draft=True)])), axis=-1)
        said += np.array(verified).tolist()
        commit(cache, 4, 4)
        hidden = model.step([Window(verified[-1:], cache)])
        return [*said, *np.array(mx.argmax(model.logits(hidden), axis=-1)).tolist()]


def test_reference_and_auto_give_the_same_tokens(demo: Model) -> None:
    assert tokens(demo, "reference") == tokens(demo, "auto") == tokens(demo, "gated_delta=reference")


@pytest.mark.metal
def test_kernels_inside_the_network_give_the_tokens_of_the_reference(demo: Model, metal: object) -> None:
    kernels = ",".join(f"{o.name}={o.candidates[-1].name}" for o in OPERATIONS)
    assert tokens(demo, kernels) == tokens(demo, "reference")


@pytest.mark.metal
def test_a_wrong_kernel_is_named_and_generation_goes_on(
    demo: Model, metal: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(x: mx.array, residual: mx.array, weight: mx.array, eps: float) -> tuple[mx.array, mx.array]:
        return rms_norm.add_rms_norm(x, 2 * residual, weight, eps)

    right = operations.ADD_RMS_NORM
    planted = Operation(right.name, (*right.candidates[:2], Candidate("metal", wrong, True)))
    monkeypatch.setattr(operations, "ADD_RMS_NORM", planted)
    monkeypatch.setattr(selecting, "CALLS", 1)
    monkeypatch.setattr(selecting, "ROUNDS", 1)
    others = ",".join(f"{o.name}=reference" for o in OPERATIONS if o is not right)
    assert tokens(demo, others) == tokens(demo, "reference")
    assert [r for r in caplog.messages if "add_rms_norm=metal is not used on this machine" in r]


def test_what_the_environment_misspells_is_refused_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "_selections", [])
    monkeypatch.setenv(VARIABLE, "gated-delta=fast")
    with pytest.raises(ConfigError, match="gated-delta"):
        load_model(DEMO)
