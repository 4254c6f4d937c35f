"""A checkpoint one module at a time: what is live is a layer, never the model. Knows nothing of quantizing or texts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_qwen35.models import off_metal
from mlx_qwen35.models.config import ModelConfig
from mlx_qwen35.models.layers import module_at
from mlx_qwen35.models.model import DecoderLayer
from mlx_qwen35.models.tensor_names import Recipe
from mlx_qwen35.models.weights import Survey, TensorReader, _as_parameter, survey

Read = Callable[[Recipe], mx.array]
TRUNK = "language_model.model."
EMBEDDING, NORM, HEAD = f"{TRUNK}embed_tokens", f"{TRUNK}norm", "language_model.lm_head"
MTP = "mtp"


class LayerwiseModel:
    """The parts of one checkpoint. Each part is loaded, used, and released; then its memory is free again.

    What is loaded is this object's own: several may read one Survey, in any order.
    """

    def __init__(self, source: Path | Survey, read: Read | None = None) -> None:
        """`read` makes a parameter from its sources, where plain tensors are not what the checkpoint stores.

        Raises ConfigError and CheckpointError, as loading would.
        """
        self.found = source if isinstance(source, Survey) else survey(source)
        self.read = read

    @property
    def config(self) -> ModelConfig:
        return self.found.config

    @property
    def layer_paths(self) -> list[str]:
        return [f"{TRUNK}layers.{i}" for i in range(len(self.config.layer_types))]

    @property
    def head_path(self) -> str:
        return EMBEDDING if self.config.tie_embeddings else HEAD

    @property
    def has_mtp(self) -> bool:
        return bool(self.config.mtp_layers)

    def load(self, path: str) -> nn.Module:
        """The module at `path` with its weights, off Metal prepared to compute in float32."""
        # The survey's own module has shapes only, and others who load from it would overwrite each other's weights.
        module = copy.deepcopy(self._at(path))
        # A reader a part: an open file keeps every tensor that was evaluated from it.
        read = self.read or TensorReader(self.found.files.tensors).read
        recipes, conventions = self.found.plan.recipes, self.found.conventions
        targets = [t for t in recipes if t.startswith(f"{path}.")]
        values = [(t.removeprefix(f"{path}."), _as_parameter(t, read(recipes[t]), conventions)) for t in targets]
        holder = nn.Module()
        holder.part = module
        module.load_weights(values, strict=False)
        mx.eval([v for _, v in values])
        if not mx.metal.is_available():
            off_metal.prepare(holder)
        return holder.part

    def layer(self, path: str) -> DecoderLayer:
        """The decoder layer at `path`, loaded."""
        loaded = self.load(path)
        assert isinstance(loaded, DecoderLayer)
        return loaded

    def release(self, module: nn.Module) -> None:
        """Drop a loaded part's weights, whoever still holds it."""
        nothing = mx.zeros(())
        module.update(tree_unflatten([(name, nothing) for name, _ in tree_flatten(module.parameters())]))
        mx.clear_cache()

    def _at(self, path: str) -> nn.Module:
        return module_at(self.found.model, path)


def mixer(layer: DecoderLayer, normed: mx.array) -> mx.array:
    """The layer's DeltaNet or attention over whole texts. [B, T, C] -> [B, T, C]"""
    return layer.linear_attn(normed) if layer.is_linear else layer.self_attn(normed)


def run(layer: DecoderLayer, windows: Sequence[mx.array]) -> list[mx.array]:
    """Each [B, T, C] through one layer, evaluated one by one."""
    outputs = []
    for x in windows:
        y = layer(x)
        mx.eval(y)
        outputs.append(y)
        mx.clear_cache()
    return outputs
