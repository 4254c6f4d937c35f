"""Which convention a checkpoint's norm weights follow: the offset w from one, or the factor 1 + w.

Originals store w, MLX conversions 1 + w; the convolution's layout tells which it should be. Conversions in the wild
have shifted twice or not at all (mlx-lm #1197, #1320, #1442; oMLX #1507), which gives garbage from the first
token. So the values are looked at too: in trained checkpoints the mean of w lies near 0, thus that of 1 + w near 1,
and after a double shift near 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import mlx.core as mx

from mlx_qwen35.models.tensor_names import Recipe, TensorPlan, is_zero_centred_norm

METADATA_KEY = "norm_convention"  # in the safetensors metadata of our own conversions
PLUS_ONE = "plus_one"
DECISIVE = 0.4  # how near to 0, 1 or 2 the median of the means must lie to overrule the layout
STORED_AS = {0: "as offsets (zero-centred)", 1: "as factors (1 + w)", 2: "shifted twice (2 + w)"}


@dataclass(frozen=True)
class Conventions:
    """What to add to each stored norm weight to get its factor, and what people should know."""

    add: dict[str, float]
    notes: tuple[str, ...]


def conventions(plan: TensorPlan, read: Callable[[Recipe], mx.array], metadata: Mapping[str, str]) -> Conventions:
    """Decide for the trunk as a whole, and for each norm of the MTP layer, which conversions often treat apart."""
    targets = [t for t in plan.recipes if is_zero_centred_norm(t)]
    means = {t: read(plan.recipes[t]).astype(mx.float32).mean() for t in targets}
    mx.eval(list(means.values()))
    values = {t: _number(m) for t, m in means.items()}

    declared = metadata.get(METADATA_KEY)
    expected = 1 if declared == PLUS_ONE or plan.original_layout is False else 0
    trunk = [v for t, v in values.items() if t.endswith("layernorm.weight") and not t.startswith("mtp.")]
    found = _decide(trunk, expected)
    notes = []
    if found != expected:
        notes.append(
            f"WARNING: this checkpoint's norm weights are stored {STORED_AS[found]} where its layout says "
            f"{STORED_AS[expected]}; corrected while loading. It is a faulty conversion."
        )
    add = {t: 1.0 - found for t in targets if not t.startswith("mtp.")}
    mtp = {t: v for t, v in values.items() if t.startswith("mtp.")}
    sure = plan.original_layout or declared == PLUS_ONE
    mtp_found = {t: expected if sure else _nearest(v) for t, v in mtp.items()}
    add |= {t: 1.0 - n for t, n in mtp_found.items()}
    if odd := sorted(t for t, n in mtp_found.items() if n != expected):
        notes.append(
            f"WARNING: {len(odd)} of {len(mtp)} norm weights of the MTP layer are not stored "
            f"{STORED_AS[expected]} like the others ({odd[0]}, ...); corrected while loading."
        )
    return Conventions(add, tuple(notes))


def _number(scalar: mx.array) -> float:
    value = scalar.item()
    assert isinstance(value, float)
    return value


def _decide(means: list[float], expected: int) -> int:
    """0, 1 or 2: what the stored weights centre on; the layout's word where the values are not decisive."""
    if not means:
        return expected
    middle = median(means)
    nearest = min((0, 1, 2), key=lambda n: abs(middle - n))
    return nearest if abs(middle - nearest) <= DECISIVE else expected


def _nearest(mean: float) -> int:
    """The same for one MTP norm. Published means of w reach from -0.44 (pre_fc_norm_embedding) to about 0.4."""
    return 0 if mean < 0.5 else 1 if mean < 1.6 else 2
