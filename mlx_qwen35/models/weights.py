"""From a checkpoint folder to a network with its weights: originals, community MLX conversions, and our own.

Headers are checked and every tensor is accounted for before MLX reads a byte. Values are read lazily and evaluated
layer by layer, so that peak memory stays at the model's size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_qwen35.errors import CheckpointError
from mlx_qwen35.hub.headers import CheckpointFiles, TensorEntry, read_checkpoint
from mlx_qwen35.metal_kernels.operations import selection
from mlx_qwen35.models import activations, norms, off_metal
from mlx_qwen35.models.config import ModelConfig, Quantization, read_config
from mlx_qwen35.models.context import with_context
from mlx_qwen35.models.joined import join
from mlx_qwen35.models.layers import module_at
from mlx_qwen35.models.model import Model
from mlx_qwen35.models.tensor_names import Recipe, TensorPlan, is_zero_centred_norm, made_shape, plan_tensors

Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True)
class LoadedModel:
    """A network ready to run, and what people should know of how it was loaded."""

    model: Model
    config: ModelConfig
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Survey:
    """A checkpoint whose headers fit its config, before any weight is read; `model` has the right shapes only."""

    model: Model
    config: ModelConfig
    files: CheckpointFiles
    plan: TensorPlan
    conventions: norms.Conventions
    unused: tuple[str, ...]  # tensors that the checkpoint carries and the network has no place for
    notes: tuple[str, ...]


def load_model(
    folder: Path, progress: Progress | None = None, adapt: bool = True, joined: bool = True, context: int = 0
) -> LoadedModel:
    """Load the checkpoint in `folder`.

    adapt: fit the network to the machine; off Metal, computation moves to float32 (see off_metal)
    joined: make one matrix of projections that share an input (see joined.py); else parameters stay as they are named
    context: tokens that a text may have at least, beyond the native ones by YaRN (see context.py)
    Raises ConfigError and CheckpointError, each with one line.
    """
    selection()  # what the environment asks of the kernels is refused here, before anything is read
    found = survey(folder, context)
    _fill(found.model, found.plan, found.files.tensors, found.conventions, progress, joined)
    found.model.eval()
    model = found.model
    if adapt and mx.metal.is_available():
        model = activations.fastest(model)
    elif adapt:
        off_metal.prepare(model)
    return LoadedModel(model, found.config, found.notes)


def survey(folder: Path, context: int = 0) -> Survey:
    """Read the config, the headers and the norm weights of a checkpoint, and check that they fit together.

    context: as in `load_model`

    Raises ConfigError and CheckpointError, each with one line.
    """
    return survey_files(with_context(read_config(folder), context), read_checkpoint(folder))


def survey_files(
    config: ModelConfig, files: CheckpointFiles, read: Callable[[Recipe], mx.array] | None = None
) -> Survey:
    """The same for headers and a config that are read already.

    read: gives a norm as it is stored; by default from the files, which need not be here otherwise
    """
    plan = plan_tensors(files.tensors)
    notes = list(config.notes)
    if plan.vision:
        notes.append(f"{len(plan.vision)} vision tensors were skipped: images and video come in a later release.")
    if config.mtp_layers and not any(t.startswith("mtp.") for t in plan.recipes):
        notes.append("The config promises an MTP layer, but the checkpoint has none; it runs without.")
        config = replace(config, mtp_layers=0)

    model = Model(config)
    quantize_like(model, plan.recipes, files.tensors, config.quantization)
    used = _without_unused(plan, config)
    unused = tuple(s for t, r in plan.recipes.items() if t not in used.recipes for s in r.sources)
    _check_shapes(model, used, files, files.folder)

    conventions = norms.conventions(used, read or TensorReader(files.tensors).read, files.metadata)
    notes += conventions.notes
    return Survey(model, config, files, used, conventions, unused, tuple(notes))


class TensorReader:
    """Reads single tensors, lazily; each file is opened once."""

    def __init__(self, entries: Mapping[str, TensorEntry]) -> None:
        self.entries = entries
        self._open = functools.cache(_open)

    def read(self, recipe: Recipe) -> mx.array:
        """The parameter a recipe makes, in the stored dtype, norms as they are stored."""
        tensors = [self._open(self.entries[s].file)[s] for s in recipe.sources]
        if recipe.stacked:
            return mx.stack(tensors)
        tensor = tensors[0]
        if recipe.half:
            width = tensor.shape[1] // 2
            # A copy, so that the fused tensor does not stay in memory behind two views.
            return mx.contiguous(tensor[:, :width] if recipe.half == "gate" else tensor[:, width:])
        if recipe.move_conv_axis:
            return mx.contiguous(tensor.swapaxes(1, 2))
        return tensor


def _open(file: Path) -> dict[str, mx.array]:
    tensors = mx.load(str(file))
    assert isinstance(tensors, dict)
    return tensors


def quantize_like(
    model: nn.Module,
    recipes: Mapping[str, Recipe],
    entries: Mapping[str, TensorEntry],
    quantization: Quantization | None,
) -> None:
    """Pack the modules of `model` that have scales in the checkpoint, each with its own settings."""

    def settings(path: str, module: nn.Module) -> bool | dict[str, Any]:
        scales, weight = recipes.get(f"{path}.scales"), recipes.get(f"{path}.weight")
        if scales is None or weight is None or not hasattr(module, "to_quantized"):
            return False  # and a tensor without its fellows is then listed as unexpected
        if quantization is None:
            raise CheckpointError(f"{scales.sources[0]} is quantized, but config.json has no quantization settings.")
        own = quantization.per_module.get(path)
        if isinstance(own, dict):
            packing = {"bits": own.get("bits"), "group_size": own.get("group_size"), "mode": own.get("mode", "affine")}
        else:
            inputs = module.weight.shape[-1]  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
            packed, groups = (entries[r.sources[0]].shape[-1:] for r in (weight, scales))
            # Older conversions do not list the router's own bits; the shapes tell.
            bits, group_size = (sum(packed) * 32 // inputs, inputs // (sum(groups) or 1))
            packing = {"bits": bits, "group_size": group_size, "mode": quantization.mode}
        # MLX divides by the group size before it looks at it, which ends the process.
        if packing["bits"] not in (2, 3, 4, 5, 6, 8) or packing["group_size"] not in (16, 32, 64, 128):
            raise CheckpointError(
                f"{scales.sources[0]}: {packing['bits']} bits in groups of {packing['group_size']} is no packing that "
                "MLX has; the checkpoint is damaged or its config.json is another one's."
            )
        return packing

    try:
        nn.quantize(model, class_predicate=settings)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"config.json: quantization settings do not fit the network: {error}") from error


def _without_unused(plan: TensorPlan, config: ModelConfig) -> TensorPlan:
    """Drop what some checkpoints carry and the network does not have: MTP it does not declare, an unused head."""
    unused = () if config.mtp_layers else ("mtp.",)
    if config.tie_embeddings:
        unused += ("language_model.lm_head.",)
    recipes = {t: r for t, r in plan.recipes.items() if not unused or not t.startswith(unused)}
    return replace(plan, recipes=recipes)


def _check_shapes(model: Model, plan: TensorPlan, files: CheckpointFiles, folder: Path) -> None:
    """Compare what the network needs with what the checkpoint gives; list every difference in one error."""
    needed = dict(tree_flatten(model.parameters()))
    missing = sorted(set(needed) - set(plan.recipes))
    unexpected = sorted(s for t, r in plan.recipes.items() if t not in needed for s in r.sources)
    misshaped = []
    for target in sorted(set(needed) & set(plan.recipes)):
        recipe = plan.recipes[target]
        shapes = [files.tensors[s].shape for s in recipe.sources]
        if (made := made_shape(recipe, shapes)) != needed[target].shape:
            found = list(made or shapes[0])
            misshaped.append(f"{recipe.sources[0]} gives {found} where {list(needed[target].shape)} is needed")
    problems = {
        "missing": [*missing, *plan.experts_missing],
        "unexpected": unexpected,
        "of the wrong shape": misshaped,
        "given twice": sorted(plan.duplicates),
    }
    if any(problems.values()):
        told = "; ".join(f"{len(names)} {what}: {', '.join(names)}" for what, names in problems.items() if names)
        raise CheckpointError(f"The weights in {folder} do not fit its config.json. {told}")


def _fill(
    model: Model,
    plan: TensorPlan,
    entries: Mapping[str, TensorEntry],
    conventions: norms.Conventions,
    progress: Progress | None,
    joined: bool,
) -> None:
    """Read, transform, evaluate and join, layer by layer."""
    total = sum(entries[s].nbytes for r in plan.recipes.values() for s in set(r.sources))
    done = 0
    for path, group in _by_layer(plan.recipes).items():
        # A reader a layer: what it opened keeps the evaluated sources of stacked and halved tensors alive.
        reader = TensorReader(entries)
        values = [(t, _as_parameter(t, reader.read(plan.recipes[t]), conventions)) for t in group]
        model.load_weights(values, strict=False)
        mx.eval([v for _, v in values])
        if joined and path:
            layer = module_at(model, path)
            join(layer)
            mx.eval(layer.parameters())
        done += sum(entries[s].nbytes for t in group for s in plan.recipes[t].sources)
        if progress:
            progress(min(done, total), total)


def _as_parameter(target: str, value: mx.array, conventions: norms.Conventions) -> mx.array:
    if is_zero_centred_norm(target):
        return value.astype(mx.float32) + conventions.add[target]
    if target.endswith((".A_log", ".dt_bias", "linear_attn.norm.weight")):
        return value.astype(mx.float32)
    return value


def _by_layer(recipes: Mapping[str, Recipe]) -> dict[str, list[str]]:
    """Parameters by the path of their layer; those outside of layers under an empty one."""
    groups: dict[str, list[str]] = {}
    for target in recipes:
        head, _, tail = target.partition(".layers.")
        groups.setdefault(f"{head}.layers.{tail.split('.')[0]}" if tail else "", []).append(target)
    return groups
