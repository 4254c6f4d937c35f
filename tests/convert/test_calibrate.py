"""Statistics of a tiny network's inputs: which are gathered, that they are true, and that nothing interrupts them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen35.convert import calibrate as module
from mlx_qwen35.convert.calibrate import Plan, calibrate
from mlx_qwen35.convert.layerwise import EMBEDDING, LayerwiseModel, mixer
from mlx_qwen35.convert.rounded_model import uniform
from mlx_qwen35.convert.rounding import quality_of
from mlx_qwen35.convert.statistics import COVERED, CalibrationStore, Moments, input_of
from mlx_qwen35.convert.texts import Tokens
from mlx_qwen35.models.weights import survey
from tests.reference import CASES, token_ids, write_checkpoint

MOE, DENSE = "moe", "dense"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    for name in (MOE, DENSE):
        write_checkpoint(name, folder / name)
    return {name: folder / name for name in (MOE, DENSE)}


def texts(name: str) -> list[Tokens]:
    """Of several lengths, so that batches are padded."""
    ids = [int(i) for i in token_ids(CASES[name])]
    return [Tokens("text", tuple(ids[a:b])) for a, b in ((0, 50), (50, 83), (83, 150), (150, 167))]


def plan(folder: Path, quality: str) -> Plan:
    return Plan(uniform(survey(folder), 4, 32), quality)


@pytest.fixture(scope="module")
def calibrated(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory):
    """Stores of whole calibrations, to be read only: with everything packed at 4 bits, or nothing."""
    root = tmp_path_factory.mktemp("stores")

    @cache
    def store(name: str, quality: str, packed: bool = True) -> CalibrationStore:
        wanted = plan(sources[name], quality) if packed else Plan({}, quality)
        return calibrate(sources[name], wanted, texts(name), root / f"{name}-{quality}-{packed}")

    return store


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("name", [MOE, DENSE])
def test_every_packed_parameter_but_the_embedding_has_statistics_of_its_width(
    name: str, sources: dict[str, Path], calibrated
) -> None:
    wanted, store, found_source = plan(sources[name], "best"), calibrated(name, "best"), survey(sources[name])
    model, tied = LayerwiseModel(found_source), found_source.config.tie_embeddings
    for target, packing in wanted.packings.items():
        if packing is None or (target == f"{EMBEDDING}.weight" and not tied):
            continue
        width = model._at(target.removesuffix(".weight"))["weight"].shape[-1]
        found = store.statistics(target)
        assert found.second_moments is not None, target
        assert found.second_moments.shape == (width,), target
        assert bool(mx.isfinite(found.second_moments).all())
        if "switch_mlp.down_proj" not in target:
            assert found.hessian is not None, target
            assert np.linalg.eigvalsh(np.array(found.hessian)).min() > -1e-3 * float(found.second_moments.max())


@pytest.mark.parametrize("name", [MOE, DENSE])
def test_no_channel_of_an_embedding_that_is_the_head_too_counts_for_little(
    name: str, sources: dict[str, Path], calibrated
) -> None:
    """The head's inputs alone would say so, and what is looked up would suffer."""
    found = calibrated(name, "good").statistics(f"{EMBEDDING}.weight").second_moments
    assert (found is not None) == survey(sources[name]).config.tie_embeddings
    if found is not None:
        assert float(found.min()) > 0.5 * float(found.mean())


def test_statistics_are_those_of_the_text_and_not_of_padding(sources: dict[str, Path], calibrated) -> None:
    """Layer 0's inputs computed text by text, with no batch and no padding."""
    folder, given = sources[DENSE], texts(DENSE)
    store = calibrated(DENSE, "best", packed=False)
    model = LayerwiseModel(folder)
    embedding, layer = model.load(EMBEDDING), model.layer(model.layer_paths[0])
    inputs, later = [], []
    for text in given:
        x = embedding(mx.array([text.ids]))
        inputs.append(layer.input_layernorm(x)[0])
        x = x + mixer(layer, layer.input_layernorm(x))
        later.append(layer.post_attention_layernorm(x)[0])
    for entry, rows in (("linear_attn.in_proj_qkv", inputs), ("mlp.gate_proj", later)):
        seen = np.concatenate([np.array(r) for r in rows]).astype(np.float64)
        found = store.statistics(f"{model.layer_paths[0]}.{entry}.weight")
        # float32 sums of a few hundred squares.
        np.testing.assert_allclose(np.array(found.second_moments), (seen**2).mean(0), rtol=1e-4)
        hessian, n, dim = seen.T @ seen / len(seen), len(seen), seen.shape[1]
        expected = np.where(np.eye(dim, dtype=bool), hessian, hessian * n / (n + dim))
        scale = np.sqrt(np.outer(np.diag(hessian), np.diag(hessian)))
        # Correlations are kept in half precision: 2^-11 of one.
        assert np.abs((np.array(found.hessian) - expected) / scale).max() < 6e-4


def test_each_expert_has_the_statistics_of_its_own_tokens(sources: dict[str, Path], calibrated) -> None:
    folder, given = sources[MOE], texts(MOE)
    store = calibrated(MOE, "best", packed=False)
    name = "language_model.model.layers.0.mlp.switch_mlp.down_proj.weight"
    experts = survey(folder).config.experts
    assert experts is not None
    counts = store.routed(name, experts.count)
    assert sum(counts) == experts.chosen * sum(len(t.ids) for t in given)
    well = [e for e, count in enumerate(counts) if count >= COVERED]
    own = [np.array(store.statistics(name, e).second_moments) for e in well]
    assert len(own) > 1
    assert not np.allclose(own[0], own[1])
    weights = np.array(counts)[well] / np.array(counts)[well].sum()
    if len(well) == experts.count:
        pooled = np.array(store.statistics(name).second_moments)
        np.testing.assert_allclose(sum(w * o for w, o in zip(weights, own)), pooled, rtol=1e-4)
    summary = store.summary()
    assert summary["tokens_per_expert"]["language_model.model.layers.0"] == counts  # pyright: ignore


def test_an_expert_that_saw_too_little_takes_its_layers_pooled_statistics(tmp_path: Path) -> None:
    entry = "language_model.model.layers.3.mlp.switch_mlp.down_proj"
    store, outer = CalibrationStore(tmp_path), np.diag([4.0, 9.0]).astype(np.float32)
    store.put(
        "layers.3",
        {
            f"{entry}:0": Moments(COVERED, np.array([4.0, 9.0]) * COVERED, outer * COVERED),
            f"{entry}:1": Moments(COVERED - 1, np.array([1.0, 1.0]), outer),
            f"{entry}": Moments(40, np.array([40.0, 80.0])),
        },
    )
    assert np.array(store.statistics(f"{entry}.weight", 0).second_moments).tolist() == [4, 9]
    for few in (1, 2):  # seen rarely, and never
        found = store.statistics(f"{entry}.weight", few)
        assert np.array(found.second_moments).tolist() == [1, 2]
        assert found.hessian is None


def test_neighbours_correlations_are_those_of_the_whole_hessian(calibrated) -> None:
    """What `good` keeps beside what `best` keeps, of inputs that nothing has rounded yet."""
    given, stores = texts(MOE), {quality: calibrated(MOE, quality, packed=False) for quality in ("good", "best")}
    for name in ("linear_attn.in_proj_qkv", "linear_attn.out_proj"):
        parameter = f"language_model.model.layers.0.{name}.weight"
        blocks, whole = (
            np.array(a)
            for a in (stores["good"].statistics(parameter).blocks, stores["best"].statistics(parameter).hessian)
        )
        size, n = blocks.shape[-1], sum(len(t.ids) for t in given)
        # Shrunk by n / (n + size), each for what it is.
        more = (n + len(whole)) / (n + size)
        for i, block in enumerate(blocks):
            part = whole[i * size : (i + 1) * size, i * size : (i + 1) * size]
            expected = np.where(np.eye(size, dtype=bool), part, part * more)
            scale = np.sqrt(np.outer(np.diag(part), np.diag(part)))
            assert np.abs((block - expected) / scale).max() < 2e-3  # correlations in half precision


def test_a_routers_inputs_are_kept_whole_for_good_as_well(calibrated) -> None:
    store = calibrated(MOE, "good", packed=False)
    layer = "language_model.model.layers.0"
    assert store.statistics(f"{layer}.mlp.gate.weight").hessian is not None
    assert store.statistics(f"{layer}.linear_attn.in_proj_qkv.weight").hessian is None
    assert store.statistics(f"{layer}.mlp.switch_mlp.down_proj.weight", 0).hessian is None
    assert quality_of("good", f"{layer}.mlp.gate.weight") == "best"
    assert quality_of("good", f"{layer}.mlp.gate_proj.weight") == quality_of("good", "mtp.fc.weight") == "good"
    assert quality_of("fast", f"{layer}.mlp.gate.weight") == "fast"


def test_what_few_tokens_say_of_correlations_is_shrunk(tmp_path: Path) -> None:
    store, outer = CalibrationStore(tmp_path), np.array([[4, 3], [3, 9]], np.float32)
    path = "language_model.model.layers.0.linear_attn.out_proj"
    store.put("layers.0", {path: Moments(6, np.diag(outer).astype(np.float64) * 6, outer * 6)})
    found = np.array(store.statistics(f"{path}.weight").hessian)
    np.testing.assert_allclose(found, [[4, 3 * 6 / 8], [3 * 6 / 8, 9]], rtol=1e-3)  # half precision


@pytest.mark.parametrize("quality", ["good", "best"])
def test_an_interrupted_calibration_continues_to_the_same_bits(
    quality: str, sources: dict[str, Path], calibrated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, given = sources[MOE], texts(MOE)
    wanted, whole = plan(folder, quality), calibrated(MOE, quality)

    class Killed(Exception):
        pass

    def kill(done: int, _: int) -> None:
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        calibrate(folder, wanted, given, tmp_path / "cut", progress=kill)
    assert not CalibrationStore(tmp_path / "cut").is_complete
    layers: list[int] = []
    calibrate(folder, wanted, given, tmp_path / "cut", progress=lambda done, _: layers.append(done))
    assert layers == [3, 4]
    assert files(tmp_path / "cut") == files(whole.folder)
    # And a finished one is not run again.
    monkeypatch.setattr(module, "_Run", None)
    assert calibrate(folder, wanted, given, tmp_path / "cut").is_complete


def test_statistics_of_another_plan_or_other_texts_are_not_taken_up(sources: dict[str, Path], tmp_path: Path) -> None:
    folder, given = sources[DENSE], texts(DENSE)
    calibrate(folder, plan(folder, "good"), given, tmp_path / "store")
    before = files(tmp_path / "store")
    calibrate(folder, plan(folder, "good"), given[:2], tmp_path / "store")
    assert files(tmp_path / "store")["layers.0.safetensors"] != before["layers.0.safetensors"]


def test_layers_downstream_see_the_rounded_layers_before_them(calibrated) -> None:
    stores = (calibrated(DENSE, "best", packed=False), calibrated(DENSE, "best"))
    last = "language_model.model.layers.3.mlp.gate_proj.weight"
    a, b = (np.array(store.statistics(last).second_moments) for store in stores)
    assert not np.array_equal(a, b)
    np.testing.assert_allclose(a, b, rtol=0.5)


@pytest.mark.parametrize(
    ("parameter", "entry"),
    [
        ("language_model.model.layers.0.linear_attn.in_proj_z.weight", "language_model.model.layers.0.linear_attn"),
        (
            "language_model.model.layers.0.linear_attn.out_proj.weight",
            "language_model.model.layers.0.linear_attn.out_proj",
        ),
        ("language_model.model.layers.3.self_attn.k_proj.weight", "language_model.model.layers.3.self_attn"),
        ("language_model.model.layers.3.self_attn.o_proj.weight", "language_model.model.layers.3.self_attn.o_proj"),
        ("language_model.model.layers.1.mlp.gate.weight", "language_model.model.layers.1.mlp"),
        ("language_model.model.layers.1.mlp.shared_expert_gate.weight", "language_model.model.layers.1.mlp"),
        ("language_model.model.layers.1.mlp.shared_expert.up_proj.weight", "language_model.model.layers.1.mlp"),
        ("language_model.model.layers.1.mlp.switch_mlp.gate_proj.weight", "language_model.model.layers.1.mlp"),
        ("mtp.layers.0.mlp.up_proj.weight", "mtp.layers.0.mlp"),
        ("mtp.layers.0.mlp.shared_expert.down_proj.weight", "mtp.layers.0.mlp.shared_expert.down_proj"),
        ("language_model.lm_head.weight", "language_model.lm_head"),
    ],
)
def test_parameters_that_share_an_input_share_an_entry(parameter: str, entry: str) -> None:
    assert input_of(parameter) == entry
