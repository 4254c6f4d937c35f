"""Every kind of source: decoded right or refused by name, and loaded afterwards by stock mlx-lm and by us."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen35.caches.kv import KVCache
from mlx_qwen35.convert import Options, convert, plan_conversion
from mlx_qwen35.convert.reading import Reader, RowSpan
from mlx_qwen35.convert.source import FP8_NOTE
from mlx_qwen35.convert.stream import blocks
from mlx_qwen35.errors import UserError
from mlx_qwen35.hub.headers import read_checkpoint
from mlx_qwen35.models.model import Model
from mlx_qwen35.models.weights import load_model
from tests.convert.originals import e4m3_values, rewrite, stored, write_fp8
from tests.convert.support import all_tensors, as_stock, stock, tokens, write_source
from tests.hub.conftest import safetensors
from tests.reference import CASES, write_checkpoint

QUICK = {"group_size": 32, "check_drafts": False}


def refused(source: Path, out: Path, **options) -> str:
    with pytest.raises(UserError) as error:
        convert(source, out, Options(**QUICK | options))
    assert "\n" not in str(error.value)
    assert not (out / "config.json").exists()
    return str(error.value)


def drafted(model: Model, name: str) -> mx.array:
    """MTP logits [1, 7, V]."""
    window = tokens(name, 8)
    hidden = model.hidden_states(window)
    return model.logits(model.mtp(hidden[:, :-1], model.embed(window[:, 1:]), KVCache()))


def assert_both_load_it(out: Path, name: str, mtp: bool) -> None:
    """Stock strictly; ours with its MTP layer where one was written."""
    assert np.isfinite(np.array(stock(out)(tokens(name, 9)))).all()
    ours = load_model(out).model
    assert np.isfinite(np.array(ours(tokens(name, 9)))).all()
    assert hasattr(ours, "mtp") == mtp
    if mtp:
        assert np.isfinite(np.array(drafted(ours, name))).all()


@pytest.mark.parametrize("mtp", ["subdir", "inline", "drop"])
@pytest.mark.parametrize("name", ["moe", "moe_separate", "yarn"])
def test_fused_separate_and_multimodal_load_in_stock_and_here(tmp_path: Path, name: str, mtp: str) -> None:
    out = convert(write_source(name, tmp_path / name), tmp_path / "out", Options(mtp=mtp, **QUICK)).out
    names = read_checkpoint(out).tensors
    assert (out / "mtp").exists() == (mtp == "subdir")
    assert any(n.startswith("language_model.mtp.") for n in names) == (mtp == "inline")
    assert any(n.startswith("vision_tower.") for n in names) == CASES[name].vision
    config = json.loads((out / "config.json").read_text())
    assert ("vision_config" in config) == CASES[name].vision  # no promise that is not kept
    assert config["text_config"]["mtp_num_hidden_layers"] == (mtp != "drop")
    assert_both_load_it(out, name, mtp != "drop")


def test_the_inline_layer_drafts_as_the_one_in_a_folder(tmp_path: Path) -> None:
    source = write_source("moe", tmp_path / "moe")
    found = [
        drafted(load_model(convert(source, tmp_path / mtp, Options(mtp=mtp, **QUICK)).out).model, "moe")
        for mtp in ("subdir", "inline")
    ]
    assert mx.array_equal(*found)


def test_the_tower_keeps_its_values_and_the_patches_have_their_channels_last(tmp_path: Path) -> None:
    source = write_source("yarn", tmp_path / "yarn")
    written, original = all_tensors(convert(source, tmp_path / "out", Options(**QUICK)).out), all_tensors(source)
    patches = "patch_embed.proj.weight"
    moved = mx.moveaxis(original[f"model.visual.{patches}"], 1, -1)
    assert written[f"vision_tower.{patches}"].shape == (32, 2, 16, 16, 3)
    assert mx.array_equal(written[f"vision_tower.{patches}"], moved)
    name = "blocks.0.norm1.bias"
    assert mx.array_equal(written[f"vision_tower.{name}"], original[f"model.visual.{name}"])
    assert sum(n.startswith("vision_tower.") for n in written) == sum("visual" in n for n in original) == 6


class TestFP8:
    def test_every_byte_means_what_the_format_says(self) -> None:
        ours = np.array(mx.from_fp8(mx.arange(256).astype(mx.uint8), mx.float32))
        assert np.array_equal(ours, e4m3_values(), equal_nan=True)

    @pytest.mark.parametrize("name", ["dense", "moe_separate"])
    def test_blocks_are_decoded_in_float32(self, tmp_path: Path, name: str) -> None:
        """Blocks of rows as small as one row, so that they begin inside a block of scales."""
        folder, truth = write_fp8(name, tmp_path / name)
        plan = plan_conversion(folder, Options(**QUICK))
        checked = 0
        with Reader() as reader:
            for job in plan.jobs:
                for span, _ in blocks(job.parameter, 32 * 5 * job.parameter.width):
                    if (name := span.entry.name) in truth:
                        expected = truth[name][span.first : span.first + span.count]
                        assert np.array_equal(np.array(reader.rows(span, job.parameter.width)), expected), name
                        checked += span.count
        assert checked == sum(len(values) for values in truth.values())

    @pytest.mark.parametrize("name", ["dense", "moe_separate"])
    def test_converts_and_loads_in_stock_and_here(self, tmp_path: Path, name: str) -> None:
        folder, truth = write_fp8(name, tmp_path / name)
        report = convert(folder, tmp_path / "out", Options(8, 32, check_drafts=False))
        assert FP8_NOTE in report.notes
        assert report.fate["scales, applied"] == len(truth)
        assert "quant_method" not in json.loads((report.out / "config.json").read_text())["quantization_config"]
        assert_both_load_it(report.out, name, mtp=True)

    def test_equals_the_conversion_of_its_decoded_values(self, tmp_path: Path) -> None:
        folder, truth = write_fp8("moe_separate", tmp_path / "fp8")
        decoded = write_source("moe_separate", tmp_path / "decoded")
        tensors = {
            n: mx.array(truth[n]).astype(mx.bfloat16) if n in truth else v for n, v in all_tensors(decoded).items()
        }
        rewrite(decoded, {name: stored(value) for name, value in tensors.items()})
        ours, theirs = (all_tensors(convert(f, tmp_path / f"out-{f.name}", as_stock()).out) for f in (folder, decoded))
        assert sorted(ours) == sorted(theirs)
        for name, tensor in theirs.items():
            assert mx.array_equal(ours[name].view(mx.uint8), tensor.view(mx.uint8)), name

    @pytest.mark.parametrize("rows_at_once", [1, 7, 40, 120])
    def test_stacked_matrices_each_begin_with_a_block_of_their_own(self, tmp_path: Path, rows_at_once: int) -> None:
        """Three experts of 40 rows, whose second block of 32 is cut short: scales differ at rows 32, 40, 72 ..."""
        codes = np.full((3, 40, 48), 0x38, np.uint8)  # one
        scales = np.arange(3 * 2 * 2, dtype=np.float32).reshape(3, 2, 2) + 1
        tensors = {"w": ("F8_E4M3", [3, 40, 48], codes.tobytes()), "s": stored(mx.array(scales))}
        (tmp_path / "model.safetensors").write_bytes(safetensors(tensors))
        entries = read_checkpoint(tmp_path).tensors
        found = []
        with Reader() as reader:
            for first in range(0, 120, rows_at_once):
                span = RowSpan(entries["w"], first, min(rows_at_once, 120 - first), entries["s"], (32, 32))
                found.append(np.array(reader.rows(span, 48)))
        wide = np.repeat(np.repeat(scales, 32, 1)[:, :40], 32, 2)[:, :, :48]
        assert np.array_equal(np.concatenate(found), wide.reshape(120, 48))

    def test_is_calibrated_with_its_decoded_values(self, tmp_path: Path) -> None:
        folder, _ = write_fp8("moe_separate", tmp_path / "fp8")
        plain = write_checkpoint("moe_separate", tmp_path / "plain")  # whose tokenizer reads any text
        (folder / "tokenizer.json").write_bytes((plain / "tokenizer.json").read_bytes())
        (tmp_path / "texts.txt").write_text("The river is long.\n\nThe sea is wide.")
        options = Options(quality="good", calibration=str(tmp_path / "texts.txt"), **QUICK)
        report = convert(folder, tmp_path / "out", options)
        out, seen = report.out, report.calibration
        assert seen is not None
        assert seen["tokens"] > 10
        assert json.loads((out / "quant_plan.json").read_text())["calibration"] == seen
        assert_both_load_it(out, "moe_separate", mtp=True)

    def test_its_mtp_layer_is_compared_with_the_converted_one(self, tmp_path: Path) -> None:
        folder, _ = write_fp8("dense", tmp_path / "fp8")
        drafts = convert(folder, tmp_path / "out", Options(8, 32)).drafts
        assert drafts is not None
        assert drafts.drafts > 10
        assert drafts.converted == pytest.approx(drafts.source, abs=0.3)  # of random weights, at 8 bits

    def test_a_weight_without_its_scale(self, tmp_path: Path) -> None:
        folder, truth = write_fp8("dense", tmp_path / "dense")
        name = sorted(truth)[3]
        rest = {n: v for n, v in raw(folder).items() if n != f"{name}_scale_inv"}
        assert name in refused(rewrite(folder, rest), tmp_path / "out")

    def test_scales_of_another_shape(self, tmp_path: Path) -> None:
        folder, truth = write_fp8("dense", tmp_path / "dense")
        name = f"{sorted(truth)[3]}_scale_inv"
        changed = raw(folder) | {name: stored(mx.zeros((1, 1)))}
        assert name in refused(rewrite(folder, changed), tmp_path / "out")

    def test_a_byte_that_is_no_number(self, tmp_path: Path) -> None:
        folder, truth = write_fp8("dense", tmp_path / "dense")
        entry = read_checkpoint(folder).tensors[sorted(truth)[3]]
        with entry.file.open("r+b") as file:
            file.seek(entry.begin + 7)
            file.write(b"\xff")
        assert entry.name in refused(folder, tmp_path / "out")


def raw(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    entries = read_checkpoint(folder).tensors
    return {n: (e.dtype, list(e.shape), e.file.read_bytes()[e.begin : e.end]) for n, e in entries.items()}


@pytest.mark.parametrize(
    ("endings", "kind"),
    [
        ((".qweight", ".qzeros", ".scales", ".g_idx"), "GPTQ"),
        ((".weight", ".weight_scale", ".weight_scale_2", ".input_scale"), "NVFP4"),
        ((".weight_packed", ".weight_scale", ".weight_global_scale"), "compressed-tensors"),
    ],
)
@pytest.mark.parametrize("described", [True, False])
def test_quantizations_of_others_are_refused_by_name(
    tmp_path: Path, endings: tuple[str, ...], kind: str, described: bool
) -> None:
    """Also where no config says so, as ModelOpt's exports that describe themselves in a file beside it."""
    folder = write_source("dense", tmp_path / "dense")
    tensors = raw(folder)
    module = "model.language_model.layers.0.mlp.down_proj"
    shape = tensors.pop(f"{module}.weight")[1]
    for ending in endings:
        tensors[module + ending] = ("U8", shape, bytes(shape[0] * shape[1]))
    config = {"quantization_config": {"quant_method": "gptq"}} if described else None
    assert kind in refused(rewrite(folder, tensors, config), tmp_path / "out")


class TestAnMTPLayerFromTheOriginal:
    @pytest.fixture
    def original(self, tmp_path: Path) -> Path:
        return write_source("moe", tmp_path / "original")

    def test_is_grafted_onto_a_conversion_that_lost_it(self, original: Path, tmp_path: Path) -> None:
        lost = convert(original, tmp_path / "lost", as_stock(mtp="drop")).out
        report = convert(lost, tmp_path / "out", Options(mtp_source=original, check_drafts=False))
        out = report.out
        assert 4.5 < report.bits_per_weight < 7  # packed words are not weights
        before, after = all_tensors(lost), all_tensors(out)
        assert sorted(before) == sorted(after)
        for name, tensor in before.items():  # the trunk is copied, bit for bit
            assert mx.array_equal(after[name].view(mx.uint8), tensor.view(mx.uint8)), name
        assert_both_load_it(out, "moe", mtp=True)
        old, new = (json.loads((f / "config.json").read_text())["quantization"] for f in (lost, out))
        assert {k: v for k, v in new.items() if not k.startswith("mtp.")} == old

    def test_drafts_as_one_that_was_never_lost(self, original: Path, tmp_path: Path) -> None:
        whole = convert(original, tmp_path / "whole", as_stock()).out
        lost = convert(original, tmp_path / "lost", as_stock(mtp="drop")).out
        grafted = convert(lost, tmp_path / "out", as_stock(mtp_source=original)).out
        ours, theirs = (drafted(load_model(folder).model, "moe") for folder in (grafted, whole))
        assert mx.array_equal(ours, theirs)

    def test_of_another_network_is_refused(self, original: Path, tmp_path: Path) -> None:
        other = write_source("moe_separate", tmp_path / "other")
        assert "another network" in refused(original, tmp_path / "out", mtp_source=other)

    def test_of_one_that_has_none_is_refused(self, tmp_path: Path) -> None:
        flat = write_source("flat", tmp_path / "flat")
        assert "no MTP layer to give" in refused(
            flat, tmp_path / "out", mtp_source=write_source("flat", tmp_path / "b")
        )


class TestRefusals:
    def test_another_family(self, tmp_path: Path) -> None:
        (tmp_path / "llama").mkdir()
        (tmp_path / "llama" / "config.json").write_text('{"model_type": "llama"}')
        assert "'llama'" in refused(tmp_path / "llama", tmp_path / "out")

    def test_a_missing_shard(self, tmp_path: Path) -> None:
        folder = write_source("moe", tmp_path / "moe")
        next(folder.glob("*00002-of*")).unlink()
        assert "lacks 1 of 2" in refused(folder, tmp_path / "out")

    def test_an_unknown_dtype(self, tmp_path: Path) -> None:
        folder = write_source("dense", tmp_path / "dense")
        name, (_, shape, content) = next((n, t) for n, t in raw(folder).items() if n.endswith("up_proj.weight"))
        assert "I16" in refused(rewrite(folder, raw(folder) | {name: ("I16", shape, content)}), tmp_path / "out")
