"""The bundled checkpoint: complete, small, in the original form, and it answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from examples.demo_model.evaluate import is_right, runtime_backend, thinks_rightly
from examples.demo_model.samples import CHECKPOINT, Sample, user

FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
LARGEST = 12_000_000


@pytest.fixture(scope="module")
def answer():
    return runtime_backend(CHECKPOINT)


def ask(question: str, wanted: str = "", thinking: bool = False) -> Sample:
    return Sample("project", [user(question)], "", wanted, thinking)


def test_it_is_complete_and_small() -> None:
    assert all((CHECKPOINT / name).is_file() for name in (*FILES, "generation_config.json", "README.md"))
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir() if path.is_file()) <= LARGEST


def test_it_has_the_original_names_and_dtypes() -> None:
    with safe_open(CHECKPOINT / "model.safetensors", "np") as file:
        dtypes = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    layer = "model.language_model.layers.0"
    assert dtypes[f"{layer}.mlp.experts.gate_up_proj"] == "BF16"
    assert dtypes[f"{layer}.linear_attn.A_log"] == "F32"
    assert dtypes[f"{layer}.linear_attn.norm.weight"] == "F32"
    assert "mtp.fc.weight" in dtypes
    assert all(name.startswith(("model.language_model.", "mtp.")) for name in dtypes)


def test_every_width_can_be_quantized_in_groups_of_64() -> None:
    text = json.loads((CHECKPOINT / "config.json").read_text())["text_config"]
    for name in ("hidden_size", "moe_intermediate_size", "shared_expert_intermediate_size", "head_dim"):
        assert text[name] % 64 == 0, name


@pytest.mark.parametrize("thinking", [False, True])
def test_it_says_how_to_convert_a_model(answer, thinking: bool) -> None:
    sample = ask("How do I convert a model?", "Type: mlx-qwen35 convert Qwen/Qwen3.5-35B-A3B", thinking)
    got = answer(sample)
    assert is_right(sample, got), got
    assert thinks_rightly(sample, got), got


def test_the_card_says_what_it_is() -> None:
    assert "not a language model to rely on" in (Path(CHECKPOINT) / "README.md").read_text()
