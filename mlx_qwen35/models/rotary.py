"""Rotary positions: partial, with three axes (t, h, w), and YaRN. The one place that knows of angles.

Text is the case where the three axes are equal, and then this is ordinary partial rotary embedding.
YaRN: Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models" (arXiv 2309.00071).
"""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np

from mlx_qwen35.models.config import RotaryConfig


class Rotary:
    """Rotates the first `dims` of each head; pairs are (j, j + dims / 2). Holds no weights."""

    def __init__(self, config: RotaryConfig) -> None:
        self.dims = config.dims
        inverse = np.array(_inverse_frequencies(config), np.float32)
        self.inverse_frequencies = mx.array(inverse)  # [dims / 2], float32
        self.frequencies = mx.array(1 / inverse)  # made once: in every step it would be a launch
        self.axis_of_slot = _axis_of_slot(config.sections)
        # YaRN sharpens attention by scaling the rotated dims of q and k.
        self.scale = 1.0
        if config.factor > 1:
            self.scale = config.attention_factor or 0.1 * math.log(config.factor) + 1.0

    def text(self, x: mx.array, offset: int | mx.array) -> mx.array:
        """Text tokens at positions offset, offset + 1, ...   x: [B, H, T, D]   offset: of all rows, or [B] -> as x"""
        if self.scale != 1.0:
            x = mx.concatenate([x[..., : self.dims] * self.scale, x[..., self.dims :]], axis=-1)
        # `freqs` are wavelengths over 2 pi: mx.fast.rope divides positions by them.
        return mx.fast.rope(
            x,
            self.dims,
            traditional=False,
            base=None,
            scale=1.0,
            offset=offset,
            freqs=self.frequencies,
        )

    def __call__(self, x: mx.array, positions: mx.array) -> mx.array:
        """The definition, for any positions.   x: [B, H, T, D]   positions: [3, B, T] -> the shape of x"""
        angles = positions.astype(mx.float32)[..., None] * self.inverse_frequencies  # [3, B, T, dims / 2]
        slot = mx.arange(self.dims // 2)
        angles = angles[mx.array(self.axis_of_slot), :, :, slot].transpose(1, 2, 0)[:, None]  # [B, 1, T, dims / 2]
        cos, sin = mx.cos(angles) * self.scale, mx.sin(angles) * self.scale
        half = self.dims // 2
        first, second = x[..., :half], x[..., half : self.dims]
        rotated = [first * cos - second * sin, second * cos + first * sin]
        return mx.concatenate([*(r.astype(x.dtype) for r in rotated), x[..., self.dims :]], axis=-1)


def _axis_of_slot(sections: tuple[int, int, int]) -> list[int]:
    """Interleaved sections: slot j turns with h where j % 3 == 1, with w where j % 3 == 2, until each is used up."""
    axes = [0] * sum(sections)
    for axis in (1, 2):
        for slot in range(axis, min(3 * sections[axis], len(axes)), 3):
            axes[slot] = axis
    return axes


def _inverse_frequencies(config: RotaryConfig) -> list[float]:
    """theta^(-2j / dims); YaRN divides the slow ones by `factor` and blends in between."""
    base = [config.theta ** (-2 * j / config.dims) for j in range(config.dims // 2)]
    if config.factor <= 1:
        return base

    def slot_that_turns(rotations: float) -> float:
        """The slot whose angle makes `rotations` turns within the original context."""
        return (
            config.dims * math.log(config.original_context / (rotations * 2 * math.pi)) / (2 * math.log(config.theta))
        )

    low = max(math.floor(slot_that_turns(config.beta_fast)), 0)
    high = min(math.ceil(slot_that_turns(config.beta_slow)), config.dims - 1)
    span = max(high - low, 0.001)
    ramp = [min(max((j - low) / span, 0.0), 1.0) for j in range(len(base))]
    return [f * ((1 - r) + r / config.factor) for f, r in zip(base, ramp)]
