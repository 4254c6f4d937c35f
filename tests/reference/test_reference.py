"""The recorded data itself: are these the checkpoints it was made from, and is it what README.md says it is?

Runs without torch. Whether our model agrees with it is tested beside the model.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.reference import (
    CASES,
    config,
    file_hashes,
    manifest,
    recorded,
    token_ids,
    write_checkpoint,
    write_float32_copy,
)
from tests.reference.delta_rule import DELTA_CASES, delta_inputs, delta_rule_float64

every_case = pytest.mark.parametrize("name", list(CASES))


def header_of(path: Path) -> dict:
    with path.open("rb") as file:
        return json.loads(file.read(int.from_bytes(file.read(8), "little")))


def tensor_types(folder: Path) -> dict[str, str]:
    headers = [header_of(path) for path in folder.glob("*.safetensors")]
    return {name: entry["dtype"] for header in headers for name, entry in header.items() if name != "__metadata__"}


def read_as_float32(folder: Path) -> dict[str, np.ndarray]:
    out = {}
    for path in folder.glob("*.safetensors"):
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        for name, entry in header_of(path).items():
            if name == "__metadata__":
                continue
            first, end = (start + at for at in entry["data_offsets"])
            if entry["dtype"] == "BF16":
                array = (np.frombuffer(data[first:end], "<u2").astype(np.uint32) << 16).view(np.float32)
            else:
                array = np.frombuffer(data[first:end], "<f4")
            out[name] = array.reshape(entry["shape"])
    return out


@every_case
def test_the_checkpoint_made_here_is_the_one_transformers_read(name: str, tmp_path: Path) -> None:
    assert file_hashes(write_checkpoint(name, tmp_path)) == manifest()["cases"][name]["files"]


@every_case
def test_recorded_arrays_are_finite_and_about_the_same_tokens(name: str) -> None:
    arrays = recorded(name)
    assert all(np.isfinite(array).all() for array in arrays.values())
    np.testing.assert_array_equal(arrays["tokens"], token_ids(CASES[name]))
    assert arrays["greedy"].max() < CASES[name].tokens
    assert ("mtp_logits" in arrays) == (CASES[name].mtp != "absent")


@every_case
def test_logits_are_large_enough_to_show_a_mistake(name: str) -> None:
    """1e-4 only means something on logits of order 1 to 10 from a state that is neither lost nor kept for good."""
    facts = manifest()["cases"][name]
    assert 1 < facts["logits_abs_max"] < 15
    low, high = facts["decay_range"]
    assert 0.5 < low < 0.75
    assert 0.99 < high < 0.999


@every_case
def test_recorded_decode_equals_the_recorded_full_pass(name: str) -> None:
    arrays, facts = recorded(name), manifest()["cases"][name]
    assert facts["cached_gap"] < 1e-4
    at_65 = arrays["logits_65"]
    np.testing.assert_allclose(arrays["cached_1"], at_65[0:13], atol=facts["cached_gap"] + 1e-4, rtol=0)
    np.testing.assert_allclose(arrays["cached_64"][:2], at_65[63:65], atol=facts["cached_gap"] + 1e-4, rtol=0)


@every_case
def test_no_recorded_choice_is_a_near_tie(name: str) -> None:
    """A greedy token or an expert that float32 rounding could turn would make the comparison a matter of luck."""
    facts = manifest()["cases"][name]
    assert facts["greedy_top2_gap"] > 1e-3
    assert facts.get("router_logit_gap", 1) > 5e-5


@every_case
def test_the_float32_copy_holds_the_same_values(name: str, tmp_path: Path) -> None:
    original = read_as_float32(write_checkpoint(name, tmp_path / "original"))
    copy = write_float32_copy(name, tmp_path / "copy")
    copied = read_as_float32(copy)
    assert set(tensor_types(copy).values()) == {"F32"}
    for tensor in original.keys() & copied.keys():
        np.testing.assert_array_equal(copied[tensor], original[tensor])
    for tensor in original.keys() - copied.keys():  # an expert by itself: find it in the stack
        at, expert, part, _ = tensor.rsplit(".", 3)
        stack = copied[f"{at}.{'down_proj' if part == 'down_proj' else 'gate_up_proj'}"][int(expert)]
        width = original[tensor].shape[0]
        rows = stack[width:] if part == "up_proj" else stack[:width]
        np.testing.assert_array_equal(rows, original[tensor])


@pytest.mark.parametrize("name", list(DELTA_CASES))
def test_the_delta_rule_in_float64_is_the_one_transformers_computes(name: str) -> None:
    arrays = recorded("delta_rule")
    output, state = delta_rule_float64(delta_inputs(name))
    # transformers computes in float32; 1e-5 is its own distance when one key returns 200 times, 1e-6 elsewhere.
    np.testing.assert_allclose(arrays[f"{name}/output"], output[:, -8:], atol=1e-5, rtol=0)
    np.testing.assert_allclose(arrays[f"{name}/state"], state, atol=1e-5, rtol=0)


def test_the_checkpoints_cover_what_the_family_varies(tmp_path: Path) -> None:
    texts = [config(case) if case.flat else config(case)["text_config"] for case in CASES.values()]
    assert {t["num_attention_heads"] // t["num_key_value_heads"] for t in texts} == {1, 2, 4, 6}
    assert {t["linear_num_value_heads"] // t["linear_num_key_heads"] for t in texts} == {1, 2, 3, 4}
    assert all(t["linear_key_head_dim"] != t["linear_value_head_dim"] for t in texts)
    assert all(sum(t["rope_parameters"]["mrope_section"]) * 8 == t["head_dim"] for t in texts)
    names = {case: tensor_types(write_checkpoint(case, tmp_path / case)) for case in CASES}
    assert any("lm_head.weight" in n for n in names.values())
    assert any("lm_head.weight" not in n for n in names.values())
    assert "model.language_model.layers.0.mlp.experts.gate_up_proj" in names["moe"]
    assert "mtp.layers.0.mlp.experts.7.down_proj.weight" in names["moe"]
    assert "model.language_model.layers.3.mlp.experts.5.up_proj.weight" in names["moe_separate"]
    assert "mtp.layers.0.mlp.experts.down_proj" in names["moe_separate"]
    assert "model.layers.0.linear_attn.A_log" in names["flat"]
    assert names["dense"]["model.language_model.layers.0.linear_attn.A_log"] == "F32"
    assert names["dense"]["model.language_model.layers.0.linear_attn.norm.weight"] == "F32"
    assert names["dense"]["model.language_model.layers.0.linear_attn.dt_bias"] == "BF16"
