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
    """The angles by which the first `dims` of each head turn; pairs are (j, j + dims / 2). Holds no weights."""

    def __init__(self, config: RotaryConfig) -> None:
        self.dims = config.dims
        self.inverse_frequencies = np.array(_inverse_frequencies(config))  # [dims / 2]
        self.axis_of_slot = np.array(_axis_of_slot(config.sections))
        # YaRN sharpens attention by scaling the rotated dims of q and k.
        self.scale = 1.0
        if config.factor > 1:
            self.scale = config.attention_factor or 0.1 * math.log(config.factor) + 1.0

    def angles(self, positions: np.ndarray) -> mx.array:
        """Cosines, then sines, times YaRN's scale: [N, dims], float32.   positions: [3, N]

        Made once a step for all layers, on the host, which knows the positions, so that it is no launch; and in
        float64: in float32 an angle is off by a hundredth of a radian after 200,000 tokens.
        """
        angles = positions[self.axis_of_slot].T * self.inverse_frequencies  # [N, dims / 2]
        return mx.array((self.scale * np.concatenate([np.cos(angles), np.sin(angles)], axis=1)).astype(np.float32))

    def angles_of_rows(self, B: int, T: int, start: int, positions: mx.array | None) -> mx.array:
        """Of B rows of T tokens: [B T, dims].   positions: [3, B, T], None for text that begins at `start`"""
        if positions is None:
            return self.angles(np.concatenate([text_positions(start, T)] * B, axis=1))
        return self.angles(np.array(positions).reshape(3, B * T))


def text_positions(start: int, tokens: int) -> np.ndarray:
    """Those of text tokens start, start + 1, ...: equal on the three axes.   -> [3, tokens]"""
    return np.arange(start, start + tokens)[None].repeat(3, axis=0)


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
