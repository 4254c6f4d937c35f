"""A checkpoint's network in float32, on any machine: on a Mac, too, where loading alone keeps bfloat16."""

from __future__ import annotations

from pathlib import Path

from mlx_qwen35.models import off_metal
from mlx_qwen35.models.weights import LoadedModel, load_model


def load_float32(folder: Path) -> LoadedModel:
    """What `load_model` gives where there is no Metal."""
    loaded = load_model(folder, adapt=False)
    off_metal.prepare(loaded.model)
    return loaded
