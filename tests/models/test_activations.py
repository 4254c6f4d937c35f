"""float16 in place of bfloat16: where a chip emulates bfloat16, if it is faster, and only if the numbers fit."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_qwen35.metal_kernels import selection as selecting
from mlx_qwen35.metal_kernels.operations import ACTIVATIONS, OPERATIONS, using
from mlx_qwen35.metal_kernels.override import AUTO, REFERENCE, Override
from mlx_qwen35.metal_kernels.selection import Selection
from mlx_qwen35.models import activations
from mlx_qwen35.models.model import Model
from mlx_qwen35.models.weights import load_model
from tests.reference import write_checkpoint
from tests.support.networks import distance

M1, M2, M3 = "applegpu_g13s", "applegpu_g14d", "applegpu_g15p"
# Everything else runs its definition: what is on trial is the dtype.
OTHERS = {operation.name: REFERENCE for operation in OPERATIONS if operation is not ACTIVATIONS}


class Mac:
    """A chip by its GPU's name, on which a step in each dtype takes so many seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, gpu: str, seconds: dict[mx.Dtype, float]) -> None:
        self.now, self.warnings = 0.0, []
        monkeypatch.setattr(mx.metal, "is_available", lambda: True)
        monkeypatch.setattr(mx, "device_info", lambda: {"architecture": gpu})
        monkeypatch.setattr(selecting, "CALLS", 1)
        monkeypatch.setattr(selecting, "ROUNDS", 1)
        logits = activations._logits

        def timed(model: Model) -> mx.array:
            self.now += seconds[dtype_of(model)]
            return logits(model)

        monkeypatch.setattr(activations, "_logits", timed)

    def fastest(self, model: Model, asked: dict[str, str] | None = None) -> Model:
        override = Override(AUTO, OTHERS | (asked or {}))
        with using(Selection(override, None, self.warnings.append, lambda: self.now)):
            return activations.fastest(model)


def stored() -> Model:
    """A dense one: MLX's CPU backend gathers experts in float32 only."""
    with tempfile.TemporaryDirectory() as folder:
        return load_model(write_checkpoint("dense", Path(folder) / "dense"), adapt=False).model


def dtype_of(model: Model) -> mx.Dtype:
    return model.embed(mx.array([1])).dtype


def logits_of(model: Model) -> mx.array:
    with using(Selection(Override(REFERENCE))):
        return activations._logits(model)


FASTER, SLOWER = {mx.bfloat16: 2.0, mx.float16: 1.0}, {mx.bfloat16: 1.0, mx.float16: 2.0}


@pytest.mark.parametrize("gpu", [M1, M2])
def test_float16_runs_where_it_is_faster(gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mac, model = Mac(monkeypatch, gpu, FASTER), stored()
    half = mac.fastest(model)
    assert mac.warnings == []
    assert (dtype_of(half), dtype_of(model)) == (mx.float16, mx.bfloat16)
    # bfloat16 rounds at 2^-8 of a number layer after layer; float16 is the closer of the two.
    assert distance(logits_of(half), logits_of(model)) < 0.1


@pytest.mark.parametrize(
    ("gpu", "seconds", "asked"),
    [(M1, SLOWER, {}), (M3, FASTER, {}), (M1, FASTER, {"activations": "stored"}), ("", FASTER, {})],
    ids=["slower", "has bfloat16", "told not to", "unknown chip"],
)
def test_the_stored_dtype_stays(
    gpu: str, seconds: dict[mx.Dtype, float], asked: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = stored()
    assert Mac(monkeypatch, gpu, seconds).fastest(model, asked) is model


def test_numbers_too_large_for_float16_are_seen_before_they_are_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By the measurement, and on a machine that measured another checkpoint of this shape long ago."""
    model = stored()
    model.layers[0].post_attention_layernorm.weight = model.layers[0].post_attention_layernorm.weight * 1e5
    mac = Mac(monkeypatch, M1, FASTER)
    assert mac.fastest(model) is model
    assert "activations=float16" in mac.warnings[0]
    with caplog.at_level(logging.WARNING):
        assert mac.fastest(model, {"activations": "float16"}) is model
    assert "too large for float16" in caplog.text


def test_packed_weights_are_shared_not_copied() -> None:
    model = stored()
    half = activations.in_float16(model)
    ours, theirs = (dict(activations._arrays(m)) for m in (half, model))
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert (ours[name] is array) == (array.dtype != mx.bfloat16)
