"""Rotary positions: text against MLX's own embedding, the three axes, and YaRN's published numbers."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen35.metal_kernels.attention_prologue import Heads, attention_prologue_reference
from mlx_qwen35.metal_kernels.delta_rows import Columns
from mlx_qwen35.models.config import RotaryConfig
from mlx_qwen35.models.rotary import Rotary, text_positions

RELEASED = RotaryConfig(theta=1e7, dims=64, sections=(11, 11, 10))
YARN = RotaryConfig(theta=1e7, dims=64, sections=(11, 11, 10), factor=4.0, original_context=262144)


def turned(rotary: Rotary, positions: np.ndarray, D: int = 256) -> mx.array:
    """Queries of ones after norm and rotation: [N, 1, D]"""
    N = positions.shape[1]
    heads = Heads(1, 1, mx.ones(D), mx.ones(D), 0.0)
    q, k = Columns(mx.ones((N, 2 * D))), Columns(mx.ones((N, D)))
    return attention_prologue_reference(q, k, heads, rotary.angles(positions))[0]


@pytest.mark.parametrize("start", [0, 1000])
def test_text_turns_as_mlxs_own_rotary_embedding_does(start: int) -> None:
    expected = mx.fast.rope(mx.ones((1, 9, 256)), 64, traditional=False, base=1e7, scale=1.0, offset=start)
    # Angles near 1000 radians carry float32 errors of 6e-5 in MLX's.
    assert mx.allclose(turned(Rotary(RELEASED), text_positions(start, 9))[:, 0], expected[0], atol=5e-4).item()


def test_far_positions_turn_by_exact_angles() -> None:
    """In float32, position times frequency is off by 0.008 at a million tokens, and so would be the cosine."""
    rotary = Rotary(RELEASED)
    for position in (262_143, 1_010_000):
        cosines = rotary.angles(text_positions(position, 1))[0, :32].tolist()
        expected = [math.cos(position * 1e7 ** (-j / 32)) for j in range(32)]
        assert cosines == pytest.approx(expected, abs=1e-6)


def test_each_slot_turns_with_its_axis() -> None:
    rotary, positions = Rotary(RELEASED), np.array([[5, 7], [50, 70], [500, 700]])
    angles = rotary.angles(positions)
    for axis in range(3):
        alone = rotary.angles(np.broadcast_to(positions[axis], (3, 2)))
        slots = [j for j in range(32) if rotary.axis_of_slot[j] == axis]
        for half in (0, 32):
            columns = mx.array([half + j for j in slots])
            assert mx.array_equal(angles[:, columns], alone[:, columns]).item()


def test_rows_of_a_batch_turn_alike() -> None:
    rotary = Rotary(RELEASED)
    rows = rotary.angles_of_rows(2, 3, 4, None)
    assert mx.array_equal(rows[:3], rotary.angles(text_positions(4, 3))).item()
    assert mx.array_equal(rows[3:], rows[:3]).item()
    explicit = mx.array(np.arange(18).reshape(3, 2, 3))
    expected = rotary.angles(np.array([[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 16, 17]]))
    assert mx.array_equal(rotary.angles_of_rows(2, 3, 4, explicit), expected).item()


def test_slots_interleave_the_axes_until_each_is_used_up() -> None:
    axes = Rotary(RELEASED).axis_of_slot.tolist()
    assert axes[:6] == [0, 1, 2, 0, 1, 2]
    assert [axes.count(a) for a in (0, 1, 2)] == [11, 11, 10]
    assert axes[-2:] == [0, 1]


def test_only_the_rotated_dims_change_and_yarn_scales_them() -> None:
    plain = turned(Rotary(RELEASED), text_positions(7, 5))
    assert mx.array_equal(plain[..., 64:], mx.ones((5, 1, 192))).item()
    assert mx.allclose(mx.square(plain[..., :64]).sum(-1), mx.array(64.0)).item()
    stretched = turned(Rotary(YARN), text_positions(7, 5))
    assert mx.array_equal(stretched[..., 64:], plain[..., 64:]).item()
    assert mx.allclose(stretched[..., :10], plain[..., :10] * Rotary(YARN).scale).item()


def test_yarn_keeps_fast_slots_and_stretches_slow_ones() -> None:
    """For the released sizes the ramp runs from slot 14 to slot 22, and attention is scaled by 0.1 ln 4 + 1."""
    plain, stretched = Rotary(RELEASED).inverse_frequencies, Rotary(YARN).inverse_frequencies
    ratio = (plain / stretched).tolist()
    assert ratio[:15] == pytest.approx([1.0] * 15)
    assert ratio[22:] == pytest.approx([4.0] * 10)
    assert 1 < ratio[15] < ratio[18] < 4
    assert Rotary(YARN).scale == pytest.approx(0.1 * math.log(4) + 1)
