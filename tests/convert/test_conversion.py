"""What else a conversion promises: files copied, truthful config, an MTP layer that works, clear refusals."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen35.caches.kv import KVCache
from mlx_qwen35.convert import Options, convert, plan_conversion
from mlx_qwen35.convert.journal import JOURNAL
from mlx_qwen35.convert.table import table_of
from mlx_qwen35.errors import UserError
from mlx_qwen35.hub.headers import read_checkpoint
from mlx_qwen35.models.model import Model
from mlx_qwen35.models.weights import load_model
from tests.convert.support import OTHER_FILES, all_tensors, as_stock, largest_difference, tokens, write_source
from tests.reference import CASES, recorded


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source("moe", tmp_path_factory.mktemp("source") / "moe")


@pytest.fixture(scope="module")
def converted(source: Path) -> Path:
    return convert(source, source.parent / "converted", as_stock()).out


def refused(source, out: Path, **options) -> str:
    with pytest.raises(UserError) as error:
        convert(source, out, Options(**options))
    assert "\n" not in str(error.value)
    return str(error.value)


class TestTheFolder:
    def test_other_files_are_copied_byte_for_byte_and_code_is_not(self, source: Path, converted: Path) -> None:
        for name in (*OTHER_FILES, "tokenizer.json", "tokenizer_config.json"):
            assert (converted / name).read_bytes() == (source / name).read_bytes(), name
        assert not (converted / "modeling_evil.py").exists()
        assert not (converted / "README.md").exists()
        assert not list(converted.rglob("*.part"))
        assert not (converted / JOURNAL).exists()

    def test_norms_are_in_stocks_convention_and_decays_in_float32(self, source: Path, converted: Path) -> None:
        files = read_checkpoint(converted)
        assert files.metadata == {"format": "mlx", "norm_convention": "plus_one"}
        norm, original = "language_model.model.layers.3.self_attn.q_norm.weight", all_tensors(source)
        stored = original["model.language_model.layers.3.self_attn.q_norm.weight"]
        assert mx.array_equal(all_tensors(converted)[norm], stored + 1.0)
        for name, entry in files.tensors.items():
            is_packed = name.endswith("weight") and name.removesuffix("weight") + "scales" in files.tensors
            assert entry.dtype == ("F32" if name.endswith("A_log") else "U32" if is_packed else "BF16"), name

    def test_every_tensor_is_aligned_to_its_own_type(self, converted: Path) -> None:
        for entry in read_checkpoint(converted).tensors.values():
            assert entry.begin % (2 if entry.dtype == "BF16" else 4) == 0, entry.name

    def test_the_vision_tower_is_left_out_and_not_promised(self, tmp_path: Path) -> None:
        report = convert(write_source("yarn", tmp_path / "yarn"), tmp_path / "out", as_stock())
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert "vision_config" not in config
        assert not any("visual" in name or "vision" in name for name in read_checkpoint(tmp_path / "out").tensors)
        assert "vision tower, as asked" in table_of(report.plan)

    def test_a_missing_mtp_layer_is_not_promised(self, tmp_path: Path) -> None:
        convert(write_source("flat", tmp_path / "flat"), tmp_path / "out", as_stock())
        assert json.loads((tmp_path / "out" / "config.json").read_text())["mtp_num_hidden_layers"] == 0
        assert not (tmp_path / "out" / "mtp").exists()

    def test_the_names_that_stock_knows(self, tmp_path: Path) -> None:
        """A text-only fine-tune calls itself qwen3_5_text, which stock mlx-lm does not know."""
        folder = write_source("flat", tmp_path / "flat")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "qwen3_5_text"}))
        convert(folder, tmp_path / "out", as_stock())
        assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "qwen3_5"

    def test_a_head_tied_in_one_place_only_is_tied_for_stock_too(self, tmp_path: Path) -> None:
        folder = write_source("tied_f32", tmp_path / "tied")
        config = json.loads((folder / "config.json").read_text())
        del config["text_config"]["tie_word_embeddings"]
        (folder / "config.json").write_text(json.dumps(config))
        convert(folder, tmp_path / "out", as_stock())
        assert json.loads((tmp_path / "out" / "config.json").read_text())["text_config"]["tie_word_embeddings"] is True


class TestTheMTPLayer:
    """Stock knows none, so it is compared with the recorded one of transformers, and with the source's weights."""

    def test_lies_beside_the_model(self, converted: Path) -> None:
        names = read_checkpoint(converted).tensors
        assert all(e.file.parent.name == "mtp" for n, e in names.items() if n.startswith("mtp."))
        assert "mtp.layers.0.mlp.switch_mlp.up_proj.scales" in names
        assert names["mtp.fc.weight"].dtype == "BF16"

    @pytest.mark.parametrize("name", ["dense", "moe", "moe_separate"])
    def test_drafts_as_its_unpacked_weights_do(self, tmp_path: Path, name: str) -> None:
        source = write_source(name, tmp_path / name)
        convert(source, tmp_path / "out", as_stock())
        original = load_model(source, adapt=False, joined=False).model
        expected, ours = packed_and_unpacked(original), load_model(tmp_path / "out").model
        # Both float32, from the same rounded weights.
        assert largest_difference(drafts(expected, name), drafts(ours, name)) <= 1e-4

    def test_drafts_like_the_original(self, tmp_path: Path) -> None:
        convert(write_source("dense", tmp_path / "dense"), tmp_path / "out", as_stock(8))
        reference = recorded("dense")["mtp_logits"]
        error = np.array(drafts(load_model(tmp_path / "out").model, "dense")[0]) - reference
        # 8-bit weights are 0.5 % away; a norm in the wrong convention moves logits by their own size.
        assert np.sqrt((error**2).mean() / (reference**2).mean()) < 0.05


def drafts(model: Model, name: str) -> mx.array:
    """MTP logits [1, 12, V] on the recorded inputs."""
    hidden = mx.array(recorded(name)["hidden_final"][:12])[None]
    return model.logits(model.mtp(hidden, model.embed(tokens(name, 13)[:, 1:]), KVCache()))


def packed_and_unpacked(model: Model) -> Model:
    """Every matrix that 4 bits in groups of 32 can hold, packed and unpacked again; the rest in float32.

    `model` is as loaded on Metal: bfloat16 matrices, norms in float32, which a conversion rounds to bfloat16.
    """
    for path, module in model.named_modules():
        for name, value in list(module.items()):
            if not isinstance(value, mx.array):
                continue
            width, high = value.shape[-1], path.endswith(("mlp.gate", "shared_expert_gate"))
            group, bits = (64, 8) if high else (32, 4)
            fits = hasattr(module, "to_quantized") and path != "mtp.fc" and width % group == 0
            if fits:
                packed, *scales = mx.quantize(value, group, bits)
                scales = [a.astype(mx.float32) for a in scales]  # else unpacked weights are rounded once more
                value = mx.dequantize(packed, *scales, group_size=group, bits=bits)
            elif not name.endswith("A_log"):
                value = value.astype(mx.bfloat16)
            module[name] = value.astype(mx.float32)
    return model


class TestRefusals:
    def test_widths_that_mlx_does_not_have(self, source: Path, tmp_path: Path) -> None:
        assert "7 bits" in refused(source, tmp_path / "out", bits=7)
        assert "Group size 16" in refused(source, tmp_path / "out", group_size=16)
        assert not (tmp_path / "out").exists()

    def test_a_folder_with_other_things_in_it(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "letter.txt").write_text("dear")
        assert "is not empty" in refused(source, tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]

    def test_a_complete_conversion_is_not_overwritten(self, source: Path, converted: Path) -> None:
        assert "is not empty" in refused(source, converted, bits=4, group_size=32)

    def test_the_source_itself(self, source: Path) -> None:
        assert "the source itself" in refused(source, source)

    def test_a_source_that_is_quantized_already(self, converted: Path, tmp_path: Path) -> None:
        assert "quantized already (4 bits)" in refused(converted, tmp_path / "out")

    @pytest.mark.parametrize("method", ["fp8", "gptq", "modelopt"])
    def test_formats_of_other_programs(self, source: Path, tmp_path: Path, method: str) -> None:
        folder = tmp_path / "other"
        shutil.copytree(source, folder)
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = {"quant_method": method, "weight_block_size": [128, 128]}
        (folder / "config.json").write_text(json.dumps(config))
        assert f"'{method}'" in refused(folder, tmp_path / "out")

    def test_a_dtype_that_holds_no_plain_numbers(self, tmp_path: Path) -> None:
        folder = write_source("dense", tmp_path / "dense")
        file = folder / "model.safetensors"
        raw = file.read_bytes()
        # Eight-bit floats without a config that says so: same header length, half the bytes of one tensor.
        size = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + size])
        last = max((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"][1])
        header[last]["dtype"] = "F8_E4M3"
        begin, end = header[last]["data_offsets"]
        header[last]["data_offsets"][1] = begin + (end - begin) // 2
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size : len(raw) - (end - begin) // 2])
        assert "F8_E4M3" in refused(folder, tmp_path / "out")

    def test_too_little_disk(self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6)  # pyright: ignore[reportAttributeAccessIssue]
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        assert "1.0 MB are free" in refused(source, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_weight_that_is_not_a_number(self, tmp_path: Path) -> None:
        folder = write_source("dense", tmp_path / "dense")
        entry = read_checkpoint(folder).tensors["model.language_model.layers.1.mlp.up_proj.weight"]
        with entry.file.open("r+b") as file:
            file.seek(entry.begin)
            file.write(b"\xff\x7f")  # a bfloat16 NaN
        assert "layers.1.mlp.up_proj" in refused(folder, tmp_path / "out")
        assert not (tmp_path / "out" / "config.json").exists()

    def test_a_name_that_is_nothing_known(self, tmp_path: Path) -> None:
        assert refused("no/such/model/at/all", tmp_path / "out")


def test_the_plan_counts_what_is_written(source: Path, converted: Path) -> None:
    plan = plan_conversion(source, as_stock())
    files = read_checkpoint(converted)
    assert plan.nbytes == sum(entry.nbytes for entry in files.tensors.values())
    assert plan.parameters == sum(t.size for t in all_tensors(source).values())
    assert "gates of shared experts" in table_of(plan)


@pytest.mark.parametrize("name", CASES)
def test_our_loader_takes_every_kind_of_source(tmp_path: Path, name: str) -> None:
    report = convert(write_source(name, tmp_path / name), tmp_path / "out", as_stock(6))
    logits = load_model(tmp_path / "out").model(tokens(name, 5))
    assert np.isfinite(np.array(logits)).all()
    assert all(error.relative < 0.03 for error in report.errors)  # 6 bits; 1.7 % measured
