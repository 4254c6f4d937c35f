"""A small repository and the hub that serves it."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_qwen35.hub.http import Hub, Retry
from tests.support.fake_hub import FakeHub

ID = "Qwen/Tiny"
# Quick enough for a test, yet with the same number of tries as a person gets.
QUICK = Retry(attempts=4, first=0.01, longest=0.02)


def safetensors(tensors: dict[str, tuple[str, list[int], bytes]], metadata: dict[str, str] | None = None) -> bytes:
    """The bytes of a safetensors file: name -> (dtype, shape, data)."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values())


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def repository() -> dict[str, bytes]:
    """Two shards by index in the family's own naming, code and pickles that must stay where they are."""
    shards = {
        "model.safetensors-00001-of-00002.safetensors": {"a": ("F32", [300, 257], noise(300 * 257 * 4, 1))},
        "model.safetensors-00002-of-00002.safetensors": {"b": ("BF16", [1001, 64], noise(1001 * 64 * 2, 2))},
    }
    index = {"weight_map": {name: shard for shard, tensors in shards.items() for name in tensors}}
    return {
        "config.json": json.dumps({"model_type": "qwen3_5", "text_config": {}}).encode(),
        "tokenizer.json": b'{"version": "1.0"}',
        "chat_template.jinja": b"{{ messages }}",
        "LICENSE": b"Apache",
        "model.safetensors.index.json": json.dumps(index).encode(),
        **{name: safetensors(tensors) for name, tensors in shards.items()},
        "modeling_evil.py": b"print('ran')",
        "pytorch_model.bin": b"pickle",
        "weights.pt": b"pickle",
        "model-q4.gguf": b"GGUF",
        ".gitattributes": b"*.bin filter=lfs",
    }


BIG = "model.safetensors-00001-of-00002.safetensors"


@pytest.fixture
def fake() -> Iterator[FakeHub]:
    with FakeHub({ID: repository()}) as hub:
        yield hub


@pytest.fixture
def hub(fake: FakeHub, tmp_path: Path) -> Hub:
    return Hub(fake.endpoint, tmp_path / "cache")
