"""Rotary positions: the fast text path against the definition, and YaRN's published numbers."""

from __future__ import annotations

import math

import mlx.core as mx
import pytest

from mlx_qwen35.models.config import RotaryConfig
from mlx_qwen35.models.rotary import Rotary

RELEASED = RotaryConfig(theta=1e7, dims=64, sections=(11, 11, 10))
YARN = RotaryConfig(theta=1e7, dims=64, sections=(11, 11, 10), factor=4.0, original_context=262144)


@pytest.mark.parametrize("config", [RELEASED, YARN], ids=["default", "yarn"])
@pytest.mark.parametrize("offset", [0, 1000])
def test_text_path_equals_the_definition(config: RotaryConfig, offset: int) -> None:
    rotary = Rotary(config)
    x = mx.random.normal((2, 3, 9, 256), key=mx.random.key(0))
    positions = mx.broadcast_to(mx.arange(offset, offset + 9), (3, 2, 9))
    # Angles near 1000 radians carry float32 errors of 6e-5, on both sides.
    assert mx.allclose(rotary.text(x, offset), rotary(x, positions), atol=5e-4).item()


def test_slots_interleave_the_axes_until_each_is_used_up() -> None:
    axes = Rotary(RELEASED).axis_of_slot
    assert axes[:6] == [0, 1, 2, 0, 1, 2]
    assert [axes.count(a) for a in (0, 1, 2)] == [11, 11, 10]
    assert axes[-2:] == [0, 1]


def test_only_the_rotated_dims_change() -> None:
    x = mx.random.normal((1, 1, 5, 256), key=mx.random.key(0))
    turned = Rotary(YARN).text(x, 7)
    assert mx.array_equal(turned[..., 64:], x[..., 64:]).item()
    assert not mx.array_equal(turned[..., :64], x[..., :64]).item()


def test_yarn_keeps_fast_slots_and_stretches_slow_ones() -> None:
    """For the released sizes the ramp runs from slot 14 to slot 22, and attention is scaled by 0.1 ln 4 + 1."""
    plain, stretched = Rotary(RELEASED).inverse_frequencies, Rotary(YARN).inverse_frequencies
    ratio = (plain / stretched).tolist()
    assert ratio[:15] == pytest.approx([1.0] * 15)
    assert ratio[22:] == pytest.approx([4.0] * 10)
    assert 1 < ratio[15] < ratio[18] < 4
    assert Rotary(YARN).scale == pytest.approx(0.1 * math.log(4) + 1)
