"""A checkpoint's network in float32, on any machine: on a Mac, too, where loading alone keeps bfloat16."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx

import mlx_qwen35
from mlx_qwen35.models import off_metal
from mlx_qwen35.models.weights import LoadedModel, load_model


def load_float32(folder: Path) -> LoadedModel:
    """What `load_model` gives where there is no Metal."""
    loaded = load_model(folder, adapt=False)
    off_metal.prepare(loaded.model)
    return loaded


def write_float32_demo(folder: Path) -> Path:
    """The demo checkpoint with every number in float32: what stock mlx-lm can run off Metal, too."""
    source = Path(mlx_qwen35.__file__).parent / "demo_checkpoint"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.py", "__pycache__"))
    tensors = mx.load(str(source / "model.safetensors"))
    assert isinstance(tensors, dict)
    floats = {name: tensor.astype(mx.float32) for name, tensor in tensors.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), floats, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return folder
