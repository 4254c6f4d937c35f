"""The fingerprint: the same for a copy, another one for whatever changes what a stored prefix means."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from mlx_qwen35.caches import fingerprint as module
from mlx_qwen35.caches.fingerprint import fingerprint
from mlx_qwen35.errors import CheckpointError
from tests.hub.conftest import noise, safetensors

SETTINGS = {"kv": "plain", "rope_factor": 1.0, "layout": 1}
# A small tensor, one that is looked into because it is large, and more after it.
SHARDS = {
    "model.safetensors-00001-of-00002.safetensors": {"norm": ("F32", [300], noise(1200, 1))},
    "model.safetensors-00002-of-00002.safetensors": {
        "a": ("BF16", [1024, 1001], noise(1024 * 1001 * 2, 2)),
        "b": ("U8", [300_001], noise(300_001, 3)),
    },
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen3_5"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    for name, tensors in SHARDS.items():
        (folder / name).write_bytes(safetensors(tensors))
    return folder


def test_a_copy_elsewhere_is_the_same_whatever_its_times_and_other_files(checkpoint: Path, tmp_path: Path) -> None:
    expected = fingerprint(checkpoint, **SETTINGS)
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(checkpoint, copy)
    (copy / "README.md").write_text("new")
    os.utime(copy / "config.json", (1, 1))
    links = tmp_path / "links"  # as in the hub's cache
    links.mkdir()
    for path in checkpoint.iterdir():
        (links / path.name).symlink_to(path)
    assert fingerprint(copy, **SETTINGS) == fingerprint(links, **SETTINGS) == expected
    assert len(expected) == 40


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja"])
def test_small_files_count_to_the_last_byte(checkpoint: Path, name: str) -> None:
    before = fingerprint(checkpoint, **SETTINGS)
    path = checkpoint / name
    path.write_bytes(path.read_bytes() + b" ")
    assert fingerprint(checkpoint, **SETTINGS) != before


def test_a_small_file_more_or_less_counts(checkpoint: Path) -> None:
    before = fingerprint(checkpoint, **SETTINGS)
    (checkpoint / "tokenizer_config.json").write_text("{}")
    assert fingerprint(checkpoint, **SETTINGS) != before


@pytest.mark.parametrize(
    "changed", [{"kv": "8-bit"}, {"rope_factor": 4.0}, {"rope_factor": 1}, {"layout": 2}, {"more": 1}]
)
def test_every_setting_counts(checkpoint: Path, changed: dict[str, str | float]) -> None:
    assert fingerprint(checkpoint, **SETTINGS | changed) != fingerprint(checkpoint, **SETTINGS)
    reordered = dict(reversed(SETTINGS.items()))
    assert fingerprint(checkpoint, **reordered) == fingerprint(checkpoint, **SETTINGS)


@pytest.mark.parametrize(("tensor", "shard"), [("norm", 1), ("a", 2), ("b", 2)])
def test_other_values_of_one_tensor_count(checkpoint: Path, tensor: str, shard: int) -> None:
    """What another training run, quantization or merge does: sizes and headers stay, the bytes of a tensor change."""
    before = fingerprint(checkpoint, **SETTINGS)
    name = f"model.safetensors-0000{shard}-of-00002.safetensors"
    dtype, shape, data = SHARDS[name][tensor]
    (checkpoint / name).write_bytes(safetensors(SHARDS[name] | {tensor: (dtype, shape, noise(len(data), 99))}))
    assert fingerprint(checkpoint, **SETTINGS) != before


def test_a_renamed_tensor_counts(checkpoint: Path) -> None:
    before = fingerprint(checkpoint, **SETTINGS)
    name = "model.safetensors-00001-of-00002.safetensors"
    (checkpoint / name).write_bytes(safetensors({"mron": SHARDS[name]["norm"]}))
    assert fingerprint(checkpoint, **SETTINGS) != before


def test_little_is_read_of_large_weights(checkpoint: Path) -> None:
    """Bytes, not seconds: the edges, the spots and the large tensor of each shard."""
    from mlx_qwen35.hub.headers import read_checkpoint

    files = read_checkpoint(checkpoint)
    for path in files.files:
        large = [tensor for tensor in files.tensors.values() if tensor.file == path and tensor.nbytes > 1 << 20]
        assert sum(len(sample) for sample in module._samples(path, large)) < 250_000


def test_a_folder_without_a_checkpoint_is_refused(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        fingerprint(checkpoint)
