"""Contexts beyond the native one: which factor, what transformers computes there, and what is refused."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen35.caches.kv import KVCache
from mlx_qwen35.errors import ConfigError
from mlx_qwen35.models import weights
from mlx_qwen35.models.config import ModelConfig, parse_config, read_config
from mlx_qwen35.models.context import room, with_context
from mlx_qwen35.models.model import Model
from mlx_qwen35.models.rotary import Rotary
from mlx_qwen35.models.weights import load_model
from tests.reference import DATA, config, token_ids
from tests.reference.tiny import write_case
from tests.reference.tiny_cases import LONG, LONG_FACTORS, LONG_TOKENS
from tests.support.float32 import load_float32

NATIVE = 262_144
# Both sides float32, sums in different orders, logits of order 1 to 10; angles are exact in both.
CLOSE = 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_case(LONG, tmp_path_factory.mktemp("long"))


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    with np.load(DATA / "long.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize(("context", "factor"), [(300_000, 2), (524_288, 2), (524_289, 4), (1_010_000, 4)])
def test_the_factor_is_the_smallest_that_reaches(folder: Path, context: int, factor: int) -> None:
    config = with_context(read_config(folder), context)
    assert (config.rotary.factor, config.rotary.original_context, config.max_context) == (factor, NATIVE, context)
    assert any("YaRN" in note for note in config.notes)


def test_within_the_native_context_nothing_changes(folder: Path) -> None:
    config = read_config(folder)
    assert with_context(config, NATIVE) is config
    assert "with YaRN for up to 1,048,576" in room(config)


def test_a_checkpoint_that_was_stretched_before_is_stretched_from_its_native_context(folder: Path) -> None:
    once = with_context(read_config(folder), 500_000)
    assert with_context(once, 400_000) is once
    twice = with_context(once, 1_000_000)
    assert (twice.rotary.factor, twice.rotary.original_context) == (4, NATIVE)


def test_more_than_four_times_the_native_context_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="ask for 1,048,576 or less"):
        with_context(read_config(folder), 1_048_577)


@pytest.mark.parametrize("factor", LONG_FACTORS)
def test_frequencies_are_transformers(folder: Path, recorded: dict[str, np.ndarray], factor: int) -> None:
    rotary = Rotary(with_yarn(folder, factor).rotary)
    np.testing.assert_allclose(rotary.inverse_frequencies, recorded[f"inverse_frequencies_{factor}"], rtol=1e-6)
    assert rotary.scale == pytest.approx(float(recorded[f"scale_{factor}"]), rel=1e-6)


@pytest.mark.parametrize("factor", LONG_FACTORS)
def test_text_and_mtp_behind_the_native_context_are_transformers(
    folder: Path, recorded: dict[str, np.ndarray], factor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = long_network(folder, factor, monkeypatch)
    tokens = mx.array(token_ids(LONG)[:LONG_TOKENS].astype(np.int32))[None]
    positions = mx.broadcast_to(LONG_FACTORS[factor] + mx.arange(LONG_TOKENS), (3, 1, LONG_TOKENS))
    hidden = model.hidden_states(tokens, positions=positions)
    drafted = model.mtp(hidden[:, :-1], model.embed(tokens[:, 1:]), KVCache(), positions[..., :-1])
    for name, logits in {"logits": model.logits(hidden), "mtp_logits": model.logits(drafted)}.items():
        exact, as_is = recorded[f"{name}_exact_{factor}"], recorded[f"{name}_as_is_{factor}"]
        assert np.abs(np.array(logits[0]) - exact).max() < CLOSE
        # transformers' own float32 angles are off by some hundredths of a radian there.
        assert np.abs(np.array(logits[0]) - as_is).max() < 2e-2


def with_yarn(folder: Path, factor: int) -> ModelConfig:
    """By asking for that context, or, where no context gives that factor, as a checkpoint's own config says it."""
    if factor in (2, 4):
        return with_context(read_config(folder), factor * NATIVE)
    described = config(LONG)
    described["text_config"]["rope_parameters"] |= {
        "rope_type": "yarn",
        "factor": float(factor),
        "original_max_position_embeddings": NATIVE,
    }
    return parse_config(described)


def long_network(folder: Path, factor: int, monkeypatch: pytest.MonkeyPatch) -> Model:
    """As `--context` loads it."""
    monkeypatch.setattr(weights, "read_config", lambda _: with_yarn(folder, factor))
    return load_float32(folder).model


def test_loading_for_a_long_context_sets_trunk_and_mtp(folder: Path) -> None:
    loaded = load_model(folder, context=1_010_000)
    rotaries = [
        layer.self_attn.rotary for layer in [*loaded.model.layers, *loaded.model.mtp.layers] if not layer.is_linear
    ]
    assert len(rotaries) == 2
    assert {rotary.scale for rotary in rotaries} == {Rotary(with_yarn(folder, 4).rotary).scale}
    assert loaded.config.max_context == 1_010_000
