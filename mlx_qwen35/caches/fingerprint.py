"""Which model, settings and formats a stored prefix belongs to, in 40 hexadecimal digits.

Reads the small files of a checkpoint folder in full and samples the weights, so that a folder of hundreds of
gigabytes takes a second or less. Knows nothing of what a setting means.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from mlx_qwen35.hub.headers import CheckpointFiles, TensorEntry, header_length, read_checkpoint
from mlx_qwen35.hub.jsonfile import file_size

SMALL_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
_VERSION = b"mlx_qwen35 fingerprint 1"
_EDGE = 64 << 10  # bytes read at the start and the end of each shard's data
_SPOTS = 16  # evenly spaced over each shard
_SPOT = 4 << 10
_TENSOR_SPOT = 1 << 10
_LARGE_TENSOR = 1 << 20
_TENSORS = 256  # of each shard, the largest, are looked into


def fingerprint(folder: Path, **settings: str | int | float) -> str:
    """Identity of a checkpoint folder's content together with `settings` (KV format, dtypes, versions, ...).

    Equal for a copy of the folder elsewhere, whatever its files' times. Weights are sampled: another training run,
    quantization or merge changes nearly every byte and is seen for certain, as is any change of a header or size; a
    single altered byte inside a large tensor is not. Raises CheckpointError where the folder holds no sound
    checkpoint, OSError where it cannot be read.
    """
    digest = hashlib.blake2b(_VERSION, digest_size=20)

    def add(label: str, content: bytes) -> None:
        for part in (label.encode(), content):
            digest.update(len(part).to_bytes(8, "little") + part)

    add("settings", json.dumps(settings, sort_keys=True).encode())
    for name in SMALL_FILES:
        path = folder / name
        if name == "config.json" or os.path.lexists(path):
            file_size(path)  # refuses what is not a regular file
            add(name, path.read_bytes())
    files = read_checkpoint(folder)
    for path in files.files:
        label = path.relative_to(folder).as_posix()
        for content in _samples(path, [tensor for tensor in _of(files, path) if tensor.nbytes >= _LARGE_TENSOR]):
            add(label, content)
    return digest.hexdigest()


def _of(files: CheckpointFiles, path: Path) -> Iterator[TensorEntry]:
    return (tensor for tensor in files.tensors.values() if tensor.file == path)


def _samples(path: Path, large: list[TensorEntry]) -> Iterator[bytes]:
    """Size and header of a shard, and bytes of it at places that depend on nothing else."""
    size = file_size(path)
    with path.open("rb", buffering=0) as file:
        yield size.to_bytes(8, "little")
        start = 8 + header_length(file.read(8), size, path)
        file.seek(0)
        yield file.read(start)
        places = [(start, _EDGE), (max(start, size - _EDGE), _EDGE)]
        places += [(start + (size - start) * spot // _SPOTS, _SPOT) for spot in range(1, _SPOTS)]
        largest = sorted(large, key=lambda tensor: (-tensor.nbytes, tensor.begin))[:_TENSORS]
        places += [((tensor.begin + tensor.end) // 2, _TENSOR_SPOT) for tensor in largest]
        for at, count in sorted(places):
            file.seek(at)
            yield file.read(count)
