"""Every parameter of the output, with the source rows it is made of; formats are not chosen yet.

The trunk, the MTP layer (the source's own, or another checkpoint's) and the vision tower, from headers alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from mlx_qwen35.convert.options import Options
from mlx_qwen35.convert.reading import RowSpan
from mlx_qwen35.convert.roles import VISION, Place, place_of
from mlx_qwen35.convert.source import Source
from mlx_qwen35.errors import CheckpointError
from mlx_qwen35.hub.headers import TensorEntry
from mlx_qwen35.hub.memory import VISION_PREFIXES
from mlx_qwen35.models.config import ModelConfig
from mlx_qwen35.models.tensor_names import Recipe, is_zero_centred_norm, made_shape

_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True)
class Parameter:
    """One parameter: `rows` of `width` values, made of `spans` of source rows in order.

    dtype: of the values before packing   add: 1.0 turns a norm's stored offset into its factor
    patches: a convolution over [channels, frames, y, x] whose channels move to the end of each row
    """

    target: str
    shape: tuple[int, ...]
    width: int
    dtype: str
    spans: tuple[RowSpan, ...]
    place: Place
    packable: bool = False
    add: float = 0.0
    patches: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        return prod(self.shape) // self.width

    @property
    def path(self) -> str:
        """Of the module."""
        return self.target.removesuffix(".weight")

    @property
    def expert_rows(self) -> int:
        """Rows of one expert, or of the whole matrix where there are none."""
        return self.shape[-2] if self.place.role in ("experts_in", "experts_down", "mtp_experts") else self.rows

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(span.entry.name for span in self.spans))


@dataclass(frozen=True)
class Dropped:
    """Source tensors that have no place in the output, and why."""

    names: tuple[str, ...]
    nbytes: int
    reason: str


def parameters_of(source: Source, mtp: Source | None, options: Options) -> tuple[list[Parameter], list[Dropped]]:
    """In the order of the network, and what is left out. mtp: where the MTP layer comes from, if not from `source`.

    Raises CheckpointError where the two do not belong together, or no MTP layer is where one was promised.
    """
    trunk = [p for p in network(source) if not p.place.mtp]
    dropped = list(_unused(source))
    own = [p for p in network(source) if p.place.mtp]
    layer = own
    if mtp is not None:
        _check_samenetwork(source, mtp)
        layer = [p for p in network(mtp) if p.place.mtp]
        if not layer:
            raise CheckpointError(f"{mtp.folder} has no MTP layer to give. Name the original checkpoint.")
        dropped += _left_out(own, "MTP layer: another checkpoint's takes its place")
    elif options.mtp == "drop":
        dropped += _left_out(own, "MTP layer, as asked")
        layer = []
    tower = list(_vision(source))
    if options.vision == "drop":
        dropped += _left_out(tower, "vision tower, as asked")
        tower = []
    return [*sorted(trunk, key=_order), *sorted(layer, key=_order), *tower], dropped


def activation_dtype(config: dict[str, Any]) -> str:
    """The dtype that stock mlx-lm casts to while converting: the config's, bfloat16 where it has none."""
    text = config.get("text_config", config)
    stated = config.get("torch_dtype") or text.get("dtype") or config.get("dtype") or "bfloat16"
    return _DTYPES.get(stated, "BF16") if isinstance(stated, str) else "BF16"


def network(source: Source) -> Iterator[Parameter]:
    """The trunk and the MTP layer of a source."""
    survey = source.survey
    packable = {path for path, module in survey.model.named_modules() if hasattr(module, "to_quantized")}
    dtype = activation_dtype(source.config)
    for target, recipe in survey.plan.recipes.items():
        entries = [survey.files.tensors[s] for s in recipe.sources]
        shape = made_shape(recipe, [entry.shape for entry in entries])
        assert shape, "survey checks shapes"
        # [channels, 1, 4] and [channels, 4, 1] are the same bytes, so moving the axis moves nothing.
        width = shape[-2] if recipe.move_conv_axis else shape[-1] if len(shape) > 1 else 1
        own = "F32" if target.endswith(".A_log") else entries[0].dtype if source.is_packed else dtype
        yield Parameter(
            target,
            shape,
            width,
            own,  # decays near one need more than eight bits of mantissa
            tuple(_spans(source, recipe, entries, prod(shape) // width)),
            place_of(target),
            packable=not source.is_packed and target.removesuffix(".weight") in packable,
            add=survey.conventions.add[target] if is_zero_centred_norm(target) else 0.0,
        )


def _spans(source: Source, recipe: Recipe, entries: Sequence[TensorEntry], rows: int) -> Iterator[RowSpan]:
    """Where the rows of a parameter lie in its sources, in order."""
    if not recipe.half:
        for entry in entries:
            yield _span(source, entry, 0, rows // len(entries))
        return
    experts, fused, _ = entries[0].shape  # gate_up_proj [E, 2 * width, C]
    half = fused // 2
    start = 0 if recipe.half == "gate" else half
    for e in range(experts):
        yield _span(source, entries[0], e * fused + start, half)


def _span(source: Source, entry: TensorEntry, first: int, count: int) -> RowSpan:
    return RowSpan(entry, first, count, source.scales.by_weight.get(entry.name), source.scales.block)


def _vision(source: Source) -> Iterator[Parameter]:
    """Under the names, and in the layout, of MLX conversions that keep the tower."""
    dtype = activation_dtype(source.config)
    for name in source.survey.plan.vision:
        entry = source.survey.files.tensors[name]
        prefix = next(p for p in VISION_PREFIXES if name.startswith(p))
        target, shape = VISION + name.removeprefix(prefix), entry.shape
        kept = Parameter(target, shape, shape[-1] if len(shape) > 1 else 1, dtype, (), place_of(target))
        if source.is_packed:
            kept = replace(kept, dtype=entry.dtype)
        elif target.endswith("patch_embed.proj.weight") and len(shape) == 5 and shape[-1] == shape[-2]:
            width = prod(shape[1:])
            kept = replace(kept, shape=(shape[0], *shape[2:], shape[1]), width=width, patches=shape[1:])
        yield replace(kept, spans=(_span(source, entry, 0, kept.rows),))


def _unused(source: Source) -> Iterator[Dropped]:
    survey = source.survey
    if survey.unused:
        reason = "not part of the network: a head tied to the embedding, or MTP that the config does not declare"
        yield Dropped(survey.unused, sum(survey.files.tensors[n].nbytes for n in survey.unused), reason)


def _left_out(parameters: Iterable[Parameter], reason: str) -> Iterator[Dropped]:
    entries = {span.entry.name: span.entry for p in parameters for span in p.spans}
    if entries:
        yield Dropped(tuple(entries), sum(entry.nbytes for entry in entries.values()), reason)


def _order(parameter: Parameter) -> tuple[int, int, str]:
    """Embedding, layers by number, the rest: about the order in which shards come."""
    place = parameter.place
    before = place.role == "embedding"
    return (0 if before else 2 if place.layer is None else 1, place.layer or 0, parameter.target)


def _check_samenetwork(source: Source, mtp: Source) -> None:
    def shape(config: ModelConfig) -> ModelConfig:
        alike = {"mtp_layers": 0, "quantization": None, "later_release": False, "notes": (), "tie_embeddings": False}
        return replace(config, **alike)

    if shape(source.model_config) != shape(mtp.model_config):
        raise CheckpointError(
            f"The MTP layer of {mtp.folder} belongs to another network than {source.folder}: their configs differ in "
            f"{_first_difference(shape(source.model_config), shape(mtp.model_config))}. Name the original of this one."
        )


def _first_difference(a: ModelConfig, b: ModelConfig) -> str:
    return next(name for name, value in vars(a).items() if value != vars(b)[name])
