"""Views against numpy, which has memory to look at where our layouts have none."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlx_qwen35.counting.layouts import fresh, views

SHAPES = ((2, 3, 4), (6, 1, 4), (1, 24), (24,), (4, 6), (2, 1, 3, 1, 4), (8, 3), (3, 2, 2, 2), (12, 2))


@given(st.permutations(range(3)), st.sampled_from(SHAPES), st.booleans())
def test_a_reshape_is_a_view_exactly_where_numpy_needs_no_copy(
    axes: list[int], shape: tuple[int, ...], cut: bool
) -> None:
    whole = np.arange(48, dtype=np.int8).reshape(2, 3, 8) if cut else np.arange(24, dtype=np.int8).reshape(2, 3, 4)
    turned = whole[..., :4].transpose(axes)
    ours = fresh(whole.shape, 1)
    ours = ours.viewed(ours.places[..., :4].transpose(axes))
    found = views("Reshape", ours, [shape], [shape])
    wanted = turned.reshape(shape)
    if not np.shares_memory(wanted, whole):
        assert found is None
        return
    assert found is not None
    assert found[0].places.shape == shape
    for n, stride, real in zip(shape, found[0].places.strides, wanted.strides):
        assert n == 1 or stride == real


def test_no_memory_stands_behind_a_layout() -> None:
    huge = fresh((1 << 20, 1 << 20, 64), 2)
    turned = huge.viewed(huge.places.swapaxes(0, 1))
    assert huge.nbytes == turned.nbytes == 2 * math.prod((1 << 20, 1 << 20, 64))
    assert views("Reshape", turned, [(-1,)], [(1 << 46,)]) is None
    assert huge.is_contiguous
    assert turned.is_dense
    assert not turned.is_contiguous
