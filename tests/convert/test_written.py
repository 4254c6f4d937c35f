"""Damage after writing is found, and writing takes the memory of a block, not of the checkpoint."""

import json
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_qwen35.convert import stream, verify
from mlx_qwen35.convert.journal import Journal
from mlx_qwen35.convert.plan import plan_conversion
from mlx_qwen35.errors import CheckpointError
from mlx_qwen35.hub.headers import read_checkpoint
from tests.convert.support import as_stock, write_source


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source("moe", tmp_path_factory.mktemp("source") / "moe")


class TestVerify:
    """Damage after writing is found before the folder is declared complete."""

    @pytest.fixture
    def written(self, source: Path, tmp_path: Path):
        planned = plan_conversion(source, as_stock(group_size=64))
        with_journal(planned, tmp_path)
        assert verify.check_tensors(planned, tmp_path)
        return planned, tmp_path

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("language_model.model.layers.0.mlp.switch_mlp.up_proj.scales", b"\x80\x7f"),  # infinity
            ("language_model.model.layers.3.self_attn.q_proj.biases", b"\xff\xff"),  # not a number
            ("language_model.model.layers.3.self_attn.q_norm.weight", b"\x00\x00"),
            ("language_model.model.layers.1.linear_attn.A_log", b"\x00\x00\x00\x00"),
        ],
    )
    def test_one_value(self, written, name: str, content: bytes) -> None:
        planned, out = written
        entry = read_checkpoint(out).tensors[name]
        with entry.file.open("r+b") as file:
            file.seek(entry.begin)
            file.write(content)
        with pytest.raises(CheckpointError, match=name):
            verify.check_tensors(planned, out)

    def test_packed_rows_of_another_matrix(self, written) -> None:
        planned, out = written
        entries = read_checkpoint(out).tensors
        ours, other = (entries[f"language_model.model.layers.{i}.linear_attn.out_proj.weight"] for i in (0, 1))
        with ours.file.open("r+b") as file:
            file.seek(other.begin)
            content = file.read(other.nbytes)
            file.seek(ours.begin)
            file.write(content)
        with pytest.raises(CheckpointError, match=r"layers\.0\.linear_attn\.out_proj"):
            verify.check_tensors(planned, out)

    def test_a_missing_file(self, written) -> None:
        planned, out = written
        (out / "mtp" / "model.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"mtp.*missing"):
            verify.check_tensors(planned, out)


def with_journal(planned, out: Path) -> None:
    journal = Journal(planned, out)
    stream.write_files(planned, out, journal)
    journal.remove()


def test_memory_is_bounded_by_the_block_not_by_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """11 MB of weights in blocks of 16,384 weights; whole tensors would take 1 MB and more at once."""
    source = write_wide(tmp_path / "wide")
    monkeypatch.setattr(stream, "BYTES_A_WEIGHT", 64)
    planned = plan_conversion(source, as_stock(group_size=64, block_bytes=1 << 20))
    source_bytes = sum(entry.nbytes for entry in planned.source.survey.files.tensors.values())
    mx.clear_cache()
    start_bytes = mx.get_active_memory()
    mx.reset_peak_memory()
    with_journal(planned, tmp_path)
    peak = mx.get_peak_memory() - start_bytes
    assert source_bytes > 10_000_000
    assert peak < 500_000  # 12 bytes a weight of a block, and room for MLX's own
    verify.check_tensors(planned, tmp_path)


def write_wide(folder: Path) -> Path:
    """The tiny mixture with 128 experts, all tensors the same random bytes."""
    write_source("moe", folder)
    config = json.loads((folder / "config.json").read_text())
    count = config["text_config"]["num_experts"]
    config["text_config"]["num_experts"] = 128
    entries = read_checkpoint(folder).tensors
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {}
    for name, entry in entries.items():
        shape = list(entry.shape)
        if (".mlp.experts." in name and "mtp." not in name) or name.endswith("mlp.gate.weight"):
            shape[0] = shape[0] * 128 // count
        values = mx.random.normal(shape) * 0.1
        tensors[name] = values.astype(mx.float32 if entry.dtype == "F32" else mx.bfloat16)
    for expert in range(128):
        for part in ("gate_proj", "up_proj", "down_proj"):
            at = "mtp.layers.0.mlp.experts"
            tensors[f"{at}.{expert}.{part}.weight"] = tensors[f"{at}.0.{part}.weight"]
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, {"format": "pt"})
    return folder
