"""config.json at the door: real files parse, and what the network does not implement is refused by name."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from mlx_qwen35.errors import ConfigError
from mlx_qwen35.models.config import FULL, LINEAR, parse_config, read_config
from tests.reference import CASES
from tests.reference import config as reference_config

REAL = sorted((Path(__file__).parents[3] / "shared/data/configs").glob("*.json"))


@pytest.fixture
def moe() -> dict[str, Any]:
    return copy.deepcopy(reference_config(CASES["moe"]))


def test_real_configs_parse() -> None:
    if not REAL:
        pytest.skip("SKIPPED LOUDLY: the real config files lie outside this checkout")
    sizes = {p.name: parse_config(json.loads(p.read_text())) for p in REAL}
    a3b = sizes["35B-A3B.reconstructed.json"]
    assert a3b.layer_types[:4] == (LINEAR, LINEAR, LINEAR, FULL)
    assert a3b.experts is not None
    assert (a3b.experts.count, a3b.experts.chosen) == (256, 8)
    assert (a3b.rotary.dims, a3b.rotary.sections) == (64, (11, 11, 10))
    assert sizes["0.8B.json"].tie_embeddings
    assert not sizes["9B.json"].tie_embeddings
    assert all(not c.notes for c in sizes.values()), "a real config has a key that nobody reads"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("attn_output_gate", False),
        ("mamba_ssm_dtype", "bfloat16"),
        ("mlp_only_layers", [0]),
        ("mtp_num_hidden_layers", 2),
        ("num_hidden_layers", -3),
        ("hidden_size", "128"),
        ("hidden_size", 2**31),
        ("vocab_size", 2**32),
        ("num_hidden_layers", 10**9),
        ("head_dim", 2**30),
        ("num_key_value_heads", 3),
        ("layer_types", ["full_attention"]),
        ("num_experts_per_tok", 10_000),
        ("rope_scaling", {"type": "linear"}),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(moe: dict[str, Any], key: str, value: Any) -> None:
    moe["text_config"][key] = value
    with pytest.raises(ConfigError, match=key) as error:
        parse_config(moe)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("rope_type", "longrope"), ("mrope_interleaved", False), ("mrope_section", [1, 1, 1]), ("short_factor", [1.0])],
)
def test_rotary_settings_are_obeyed_or_refused(moe: dict[str, Any], key: str, value: Any) -> None:
    moe["text_config"]["rope_parameters"][key] = value
    with pytest.raises(ConfigError, match=key):
        parse_config(moe)


def test_other_model_types_are_refused(moe: dict[str, Any]) -> None:
    moe["model_type"] = "llama"
    with pytest.raises(ConfigError, match="'llama'"):
        parse_config(moe)


@pytest.mark.parametrize("method", ["fp8", "gptq", "compressed-tensors"])
def test_foreign_quantizations_are_refused(moe: dict[str, Any], method: str) -> None:
    moe["quantization_config"] = {"quant_method": method}
    with pytest.raises(ConfigError, match=method):
        parse_config(moe)


def test_unknown_keys_are_named_not_dropped(moe: dict[str, Any]) -> None:
    moe["text_config"]["sliding_window"] = 4096
    assert any("sliding_window" in note for note in parse_config(moe).notes)


def test_code_in_a_config_is_ignored_and_told(moe: dict[str, Any]) -> None:
    moe["auto_map"] = {"AutoModel": "evil.Model"}
    assert any("ignored" in note for note in parse_config(moe).notes)


def test_a_folder_without_config_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No config.json in .* hub name"):
        read_config(tmp_path)
