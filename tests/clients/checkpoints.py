"""What clients are served with. Float32 for both servers: the peer's experts know nothing else off Metal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx

import mlx_qwen35


def write_demo(folder: Path) -> Path:
    """The bundled demo checkpoint, its numbers in float32."""
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
