"""The checkpoints that speed is measured on have the real shapes, load everywhere, and stay sane."""

import math
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load_model as load_stock_model

from examples import real_shapes
from examples.real_shapes import FOUR_BIT, ORIGINAL, config_of, tensors_of
from mlx_qwen35.convert import Options, plan_conversion
from mlx_qwen35.hub.family import FAMILY, VOCABULARY
from mlx_qwen35.hub.headers import read_checkpoint
from mlx_qwen35.models.weights import load_model


@pytest.mark.parametrize("size", FAMILY)
def test_a_whole_size_has_the_released_number_of_parameters(size: str) -> None:
    entry = FAMILY[size]
    tensors = tensors_of(config_of(entry, entry.layers, VOCABULARY, mtp=True), ORIGINAL)
    released = entry.text_parameters + entry.embedding_parameters + entry.mtp_parameters
    assert sum(math.prod(t.shape) for t in tensors) == released


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("shapes")
    forms = (ORIGINAL, FOUR_BIT)
    return {form: real_shapes.write("0.8b", root / form, 4, 256, form, mtp=True, seed=3) for form in forms}


@pytest.mark.parametrize("form", [ORIGINAL, FOUR_BIT])
def test_loads_and_computes_sane_logits(folders: dict[str, Path], form: str) -> None:
    loaded = load_model(folders[form])
    assert loaded.notes == ()
    assert hasattr(loaded.model, "mtp")
    logits = np.array(loaded.model(mx.arange(5)[None]))
    assert 0.1 < logits.std() < 10
    load_stock_model(folders[form], lazy=True, strict=True)


def test_four_bit_is_what_the_converter_would_write(folders: dict[str, Path]) -> None:
    """Same names, shapes and types, so that a measurement on one holds for the other."""
    plan = plan_conversion(folders[ORIGINAL], Options(quality="stock"))
    planned = {t.name: (t.dtype, t.shape) for f in plan.files for t in f.tensors}
    written = {n: (e.dtype, e.shape) for n, e in read_checkpoint(folders[FOUR_BIT]).tensors.items()}
    assert written == planned


def test_the_mixtures_shapes_are_the_converters_too() -> None:
    config = config_of(FAMILY["35b-a3b"], 4, 256, mtp=False)
    names = {t.name: t for t in tensors_of(config, FOUR_BIT)}
    assert names["language_model.model.layers.0.mlp.switch_mlp.down_proj.weight"].shape == (256, 2048, 64)
    assert names["language_model.model.layers.0.mlp.gate.weight"].shape == (256, 512)  # 8 bits
    assert names["language_model.model.layers.0.mlp.shared_expert_gate.scales"].shape == (1, 32)


def test_decays_are_neither_instant_nor_eternal(folders: dict[str, Path]) -> None:
    layer = load_model(folders[FOUR_BIT]).model.layers[0].linear_attn
    decay = np.array(mx.exp(-mx.exp(layer.A_log) * mx.logaddexp(layer.dt_bias, mx.array(0.0))))
    assert 0.49 < decay.min() < 0.6
    assert 0.99 < decay.max() <= 0.9995


def test_the_seed_decides(folders: dict[str, Path], tmp_path: Path) -> None:
    same = real_shapes.write("0.8b", tmp_path / "same", 4, 256, FOUR_BIT, mtp=True, seed=3)
    other = real_shapes.write("0.8b", tmp_path / "other", 4, 256, FOUR_BIT, mtp=True, seed=4)
    file = "model.safetensors"
    assert (same / file).read_bytes() == (folders[FOUR_BIT] / file).read_bytes()
    assert (same / file).read_bytes() != (other / file).read_bytes()
