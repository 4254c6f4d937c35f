"""Which tensors of a checkpoint make which parameter of the network. Names and shapes only, no values.

Three spellings are known: original Hugging Face (`model.language_model.…`, fused or per-expert experts), text-only
fine-tunes (`model.…`), and MLX conversions (`language_model.model.…`, experts stacked as `switch_mlp`). The network's
parameters carry the MLX names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from mlx_qwen35.hub.memory import VISION_PREFIXES

_PREFIXES = (
    # Longest first: each original prefix and the network's own.
    ("model.language_model.", "language_model.model."),
    ("language_model.model.", "language_model.model."),
    ("language_model.lm_head.", "language_model.lm_head."),
    ("language_model.mtp.", "mtp."),
    ("model.mtp.", "mtp."),
    ("mtp.", "mtp."),
    ("lm_head.", "language_model.lm_head."),
)
_EXPERT = re.compile(r"(.*\.mlp)\.experts\.(\d{1,6})\.(gate_proj|up_proj|down_proj)\.weight")
_NORMS = (
    ".input_layernorm.weight",
    ".post_attention_layernorm.weight",
    "model.norm.weight",
    "mtp.norm.weight",
    ".q_norm.weight",
    ".k_norm.weight",
    ".pre_fc_norm_embedding.weight",
    ".pre_fc_norm_hidden.weight",
)

Half = Literal["gate", "up"]


class HasShape(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Recipe:
    """How one parameter is made: stack `sources` (or take the only one), cut out `half`, move the conv axis."""

    target: str
    sources: tuple[str, ...]
    stacked: bool = False
    half: Half | None = None  # of fused gate_up_proj [E, 2 * width, C]: gate rows come first
    move_conv_axis: bool = False  # [channels, 1, width] -> [channels, width, 1]


@dataclass(frozen=True)
class TensorPlan:
    """Every tensor of a checkpoint, accounted for."""

    recipes: dict[str, Recipe]  # by target
    vision: tuple[str, ...] = ()
    duplicates: tuple[str, ...] = ()  # tensors that would make a parameter some other tensor makes too
    experts_missing: tuple[str, ...] = field(default=())  # gaps in a stack of per-expert tensors

    @property
    def original_layout(self) -> bool | None:
        """True for a Hugging Face original, whose norms are zero-centred; None where no convolution tells."""
        convs = [r for t, r in self.recipes.items() if t.endswith("conv1d.weight")]
        return any(r.move_conv_axis for r in convs) if convs else None


def is_zero_centred_norm(target: str) -> bool:
    """Whether originals store this parameter as its offset from one (all norms but the DeltaNet's own)."""
    return target.endswith(_NORMS)


def network_name(name: str) -> str:
    """A tensor's name in the network's spelling; unknown prefixes stay as they are."""
    for prefix, own in _PREFIXES:
        if name.startswith(prefix):
            return own + name[len(prefix) :]
    if name.startswith("model."):
        return "language_model." + name
    return name


def plan_tensors(tensors: Mapping[str, HasShape]) -> TensorPlan:
    """Names and shapes of a checkpoint's tensors -> how its parameters are made."""
    recipes: dict[str, Recipe] = {}
    duplicates: list[str] = []
    stacks: dict[str, dict[int, str]] = {}
    vision = tuple(sorted(n for n in tensors if n.startswith(VISION_PREFIXES)))
    skipped = set(vision)

    def add(recipe: Recipe) -> None:
        if recipe.target in recipes:
            duplicates.extend(recipe.sources)
        recipes[recipe.target] = recipe

    for source in sorted(set(tensors) - skipped):
        name = network_name(source)
        if match := _EXPERT.fullmatch(name):
            module, number, matrix = match.groups()
            stack = stacks.setdefault(f"{module}.switch_mlp.{matrix}.weight", {})
            if int(number) in stack:
                duplicates.append(source)
            stack[int(number)] = source
        elif name.endswith(".mlp.experts.gate_up_proj"):
            module = name.removesuffix("experts.gate_up_proj") + "switch_mlp"
            add(Recipe(f"{module}.gate_proj.weight", (source,), half="gate"))
            add(Recipe(f"{module}.up_proj.weight", (source,), half="up"))
        elif name.endswith(".mlp.experts.down_proj"):
            module = name.removesuffix("experts.down_proj") + "switch_mlp"
            add(Recipe(f"{module}.down_proj.weight", (source,)))
        elif name.endswith(".conv1d.weight"):
            shape = tensors[source].shape
            add(Recipe(name, (source,), move_conv_axis=len(shape) == 3 and shape[-1] != 1))
        else:
            add(Recipe(name, (source,)))
    gaps: list[str] = []
    for target, stack in stacks.items():
        count = max(stack) + 1
        gaps += [f"expert {e} of {target}" for e in _gaps(stack, count)]
        add(Recipe(target, tuple(stack[e] for e in sorted(stack)), stacked=True))
    return TensorPlan(recipes, vision, tuple(duplicates), tuple(gaps))


def _gaps(present: Iterable[int], count: int) -> list[int]:
    """The first few numbers below `count` that are not present."""
    have = set(present)
    missing = []
    for e in range(count):
        if e not in have:
            missing.append(e)
        if len(missing) == 8:
            break
    return missing


def made_shape(recipe: Recipe, shapes: list[tuple[int, ...]]) -> tuple[int, ...] | None:
    """The shape a recipe gives, from its sources' shapes; None where they do not fit together."""
    first = shapes[0]
    if recipe.stacked:
        return (len(shapes), *first) if all(s == first for s in shapes) else None
    if recipe.half:
        return (first[0], first[1] // 2, *first[2:]) if len(first) == 3 and first[1] % 2 == 0 else None
    if recipe.move_conv_axis:
        return (first[0], first[2], first[1]) if len(first) == 3 else None
    return first
