"""Loading: every tensor accounted for, faults in one line, and norm conventions that were mixed up."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_qwen35.caches.delta_state import DeltaState
from mlx_qwen35.caches.kv import KVCache
from mlx_qwen35.errors import CheckpointError
from mlx_qwen35.models.norms import METADATA_KEY, PLUS_ONE
from mlx_qwen35.models.tensor_names import is_zero_centred_norm, plan_tensors
from mlx_qwen35.models.weights import load_model
from tests.reference import recorded, write_checkpoint
from tests.support.float32 import load_float32

Tensors = dict[str, mx.array]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint("dense", tmp_path / "dense")


def weights_of(folder: Path) -> Tensors:
    tensors: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        loaded = mx.load(str(file))
        assert isinstance(loaded, dict)
        tensors |= loaded
    mx.eval(tensors)
    return tensors


def rewrite(folder: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    for file in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        file.unlink()
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, metadata)
    return folder


def as_mlx_layout(tensors: Tensors, add_to_norms: float, add_to_mtp_norms: float | None = None) -> Tensors:
    """The same weights as an MLX conversion has them, norms shifted by what the conversion (rightly or not) added."""
    result = {}
    for target, recipe in plan_tensors(tensors).recipes.items():
        value = tensors[recipe.sources[0]]
        if recipe.move_conv_axis:
            value = value.swapaxes(1, 2)
        if is_zero_centred_norm(target):
            mtp = target.startswith("mtp.") and add_to_mtp_norms is not None
            value = value.astype(mx.float32) + (add_to_mtp_norms if mtp else add_to_norms)
        result[target] = value
    return result


def assert_right(folder: Path) -> tuple[str, ...]:
    """Loads `folder`, compares its logits with transformers', and returns the loader's notes."""
    loaded, reference = load_float32(folder), recorded("dense")
    tokens = mx.array(reference["tokens"][:63])[None]
    hidden = loaded.model.hidden_states(tokens)
    logits = loaded.model.logits(hidden)[0]
    # Norms are float32 here, so nothing is lost on the way; the tolerance is that of the transformers tests.
    assert mx.abs(logits - mx.array(reference["logits_63"])).max().item() <= 1e-4
    drafted = loaded.model.mtp(hidden[:, :12], loaded.model.embed(tokens[:, 1:13]))
    assert mx.abs(drafted[0] - mx.array(reference["mtp_hidden"])).max().item() <= 1e-4
    return loaded.notes


def test_missing_unexpected_and_misshaped_tensors_are_all_in_one_error(checkpoint: Path) -> None:
    tensors = weights_of(checkpoint)
    prefix = "model.language_model.layers."
    del tensors[f"{prefix}0.linear_attn.A_log"], tensors[f"{prefix}3.self_attn.k_norm.weight"]
    tensors["model.language_model.layers.9.mystery.weight"] = mx.zeros(3)
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:, :-1]
    with pytest.raises(CheckpointError) as error:
        load_model(rewrite(checkpoint, tensors))
    message = str(error.value)
    for part in ("2 missing", "0.linear_attn.A_log", "3.self_attn.k_norm", "1 unexpected", "mystery", "lm_head.weight"):
        assert part in message
    assert "\n" not in message


def test_a_gap_among_separate_experts_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint("moe_separate", tmp_path / "m")
    tensors = weights_of(folder)
    gone = next(n for n in sorted(tensors) if ".experts.1.up_proj" in n)
    del tensors[gone]
    with pytest.raises(CheckpointError, match=r"expert 1 of .*up_proj"):
        load_model(rewrite(folder, tensors))


@pytest.mark.parametrize("added", [0.0, 1.0, 2.0])
def test_norms_shifted_once_twice_or_not_at_all_in_an_mlx_conversion(checkpoint: Path, added: float) -> None:
    notes = assert_right(rewrite(checkpoint, as_mlx_layout(weights_of(checkpoint), added)))
    assert any("WARNING" in n for n in notes) == (added != 1.0)


@pytest.mark.parametrize("mtp_added", [0.0, 2.0])
def test_mtp_norms_treated_unlike_the_trunk(checkpoint: Path, mtp_added: float) -> None:
    notes = assert_right(rewrite(checkpoint, as_mlx_layout(weights_of(checkpoint), 1.0, mtp_added)))
    assert any("MTP" in n and "WARNING" in n for n in notes)


def test_an_original_whose_norms_were_already_shifted(checkpoint: Path) -> None:
    tensors = weights_of(checkpoint)
    shifted = {n: v.astype(mx.float32) + 1 if is_zero_centred_norm(n) else v for n, v in tensors.items()}
    folder = rewrite(checkpoint, {n: v for n, v in shifted.items() if not n.startswith("mtp.")})
    notes = load_model(folder).notes
    assert any("WARNING" in n and "1 + w" in n for n in notes)


def test_our_own_conversions_declare_their_convention(checkpoint: Path) -> None:
    tensors = as_mlx_layout(weights_of(checkpoint), 1.0)
    assert not [n for n in assert_right(rewrite(checkpoint, tensors, {METADATA_KEY: PLUS_ONE})) if "WARNING" in n]


def test_norms_and_decay_parameters_stay_float32(checkpoint: Path) -> None:
    model = load_model(checkpoint, adapt=False).model
    kept = {n: v.dtype for n, v in tree_flatten(model.parameters()) if is_zero_centred_norm(n) or "A_log" in n}
    assert kept
    assert set(kept.values()) == {mx.float32}
    assert model.language_model.model.embed_tokens.weight.dtype == mx.bfloat16


def test_a_config_without_quantization_refuses_packed_weights(checkpoint: Path) -> None:
    tensors = as_mlx_layout(weights_of(checkpoint), 1.0)
    path = "language_model.model.layers.0.mlp.gate_proj"
    w, scales, biases = mx.quantize(tensors[f"{path}.weight"], 64, 4)
    tensors |= {f"{path}.weight": w, f"{path}.scales": scales, f"{path}.biases": biases}
    with pytest.raises(CheckpointError, match="no quantization settings"):
        load_model(rewrite(checkpoint, tensors))
    config = json.loads((checkpoint / "config.json").read_text())
    config["quantization"] = {"bits": 4, "group_size": 64}
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert load_model(checkpoint).model is not None


@pytest.mark.parametrize("case", ["moe", "moe_separate"])
def test_loading_holds_no_more_than_the_model_and_one_layer(tmp_path: Path, case: str) -> None:
    """Fused experts are cut in two and separate ones stacked: the sources must not stay behind."""
    folder = write_checkpoint(case, tmp_path / case)
    held: list[int] = []
    mx.clear_cache()
    before = mx.get_active_memory()
    loaded = load_model(folder, lambda done, total: held.append(mx.get_active_memory() - before), adapt=False)
    sizes = {n: a.nbytes for n, a in tree_flatten(loaded.model.parameters())}
    layer = sum(size for name, size in sizes.items() if ".layers.0." in name and not name.startswith("mtp."))
    assert max(held) <= sum(sizes.values()) + 1.2 * layer  # buffers are rounded up


@pytest.mark.parametrize("case", ["moe", "dense"])
def test_on_metal_activations_stay_bfloat16_and_the_state_float32(tmp_path: Path, case: str) -> None:
    """One float32 weight in the wrong place would turn every later activation float32, unseen."""
    model = load_model(write_checkpoint(case, tmp_path / case), adapt=False).model
    if case == "moe":  # gather_mm knows no bfloat16 on the CPU, so its shapes and dtypes are all that is asked
        for tokens in (3, 30):
            x = mx.zeros((1, tokens, model.config.hidden_size), mx.bfloat16)
            assert (model.layers[0].mlp(x).shape, model.layers[0].mlp(x).dtype) == (x.shape, mx.bfloat16)
        return
    cache = model.make_cache()
    assert model(mx.array([[1, 2, 3, 4, 5, 6]]), cache).dtype == mx.bfloat16
    assert model(mx.array([[1]]), cache).dtype == mx.bfloat16
    assert {c.conv_tail.dtype for c in cache if isinstance(c, DeltaState) and c.conv_tail is not None} == {mx.bfloat16}
    assert {c.delta.dtype for c in cache if isinstance(c, DeltaState) and c.delta is not None} == {mx.float32}
    assert {c.keys.dtype for c in cache if isinstance(c, KVCache) and c.keys is not None} == {mx.bfloat16}


@pytest.mark.parametrize(("scales", "word"), [((1, 4096), "groups of 0"), ((), "quantized|wrong shape|groups of")])
def test_scales_that_fit_no_packing_are_one_line(checkpoint: Path, scales: tuple[int, ...], word: str) -> None:
    """MLX divides by a group size of zero, which would end the process."""
    tensors = as_mlx_layout(weights_of(checkpoint), 1.0)
    tensors["language_model.model.layers.0.mlp.gate_proj.scales"] = mx.zeros(scales)
    config = json.loads((checkpoint / "config.json").read_text())
    config["quantization"] = {"bits": 4, "group_size": 64}
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=word):
        load_model(rewrite(checkpoint, tensors))


def test_scales_without_their_weight_are_listed(checkpoint: Path) -> None:
    tensors = as_mlx_layout(weights_of(checkpoint), 1.0)
    path = "language_model.model.layers.0.mlp.gate_proj"
    tensors[f"{path}.scales"] = tensors.pop(f"{path}.weight")
    with pytest.raises(CheckpointError, match=r"1 missing.*gate_proj\.weight.*1 unexpected.*gate_proj\.scales"):
        load_model(rewrite(checkpoint, tensors))
