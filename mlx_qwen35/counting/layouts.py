"""Where the elements of an array lie: what is a view and costs nothing, and what MLX has to copy first.

Strides are tracked by numpy, on arrays without memory behind them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided


@dataclass(frozen=True)
class Layout:
    """Of one array. share: the part of it that a step reads (experts not chosen are not read)   owner: bytes of the
    buffer it lies in"""

    places: np.ndarray  # of int8, so that strides count elements; its values mean nothing
    itemsize: int
    owner: int
    share: float = 1.0

    @property
    def nbytes(self) -> float:
        """Bytes that reading all of it once takes; what is broadcast is read once."""
        distinct = [n for n, stride in zip(self.places.shape, self.places.strides) if stride or n == 0]
        return math.prod(distinct) * self.itemsize * self.share

    @property
    def is_contiguous(self) -> bool:
        return bool(self.places.flags.c_contiguous)

    @property
    def rows_are_contiguous(self) -> bool:
        """Of matrices in the last two axes, wherever each matrix lies."""
        if self.places.ndim < 2:
            return self.is_contiguous
        rows, columns = self.places.shape[-2:]
        row, column = self.places.strides[-2:]
        return (column == 1 or columns == 1) and (row == columns or rows == 1)

    @property
    def is_matrix_either_way(self) -> bool:
        """Rows or columns without gaps, in the last two axes."""
        turned = self.viewed(self.places.swapaxes(-1, -2)) if self.places.ndim > 1 else self
        return self.rows_are_contiguous or turned.rows_are_contiguous

    @property
    def is_scalar(self) -> bool:
        """One value, however often it is repeated."""
        return not any(self.places.strides)

    @property
    def is_dense(self) -> bool:
        """Every element of a span of memory, in whatever order of axes."""
        axes = sorted((s, n) for s, n in zip(self.places.strides, self.places.shape) if n > 1)
        expected = 1
        for stride, n in axes:
            if stride != expected:
                return False
            expected *= n
        return True

    def viewed(self, places: np.ndarray) -> Layout:
        return Layout(places, self.itemsize, self.owner, self.share)


def fresh(shape: Sequence[int], itemsize: int, share: float = 1.0) -> Layout:
    """An array of its own, row after row."""
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    return Layout(_at(shape, strides), itemsize, math.prod(shape) * itemsize, share)


def like(shape: Sequence[int], itemsize: int, other: Layout) -> Layout:
    """A new array whose axes lie as those of `other`."""
    return Layout(_at(shape, other.places.strides), itemsize, math.prod(shape) * itemsize)


def _at(shape: Sequence[int], strides: Sequence[int]) -> np.ndarray:
    return as_strided(np.zeros(1, np.int8), shape, strides, writeable=False)


def _reshaped(places: np.ndarray, shape: Sequence[int]) -> list[int] | None:
    """Strides under which the same memory has another shape, or None. Numpy's own way may copy, so it may read."""
    old = [(n, stride) for n, stride in zip(places.shape, places.strides) if n != 1]
    strides, first, place = [1] * len(shape), 0, 0
    while first < len(old) and place < len(shape) and places.size:
        # The fewest axes of either shape, from here on, that hold equally many elements.
        end, last, held, wanted = first + 1, place + 1, old[first][0], shape[place]
        while held != wanted:
            if wanted < held:
                wanted, last = wanted * shape[last], last + 1
            else:
                held, end = held * old[end][0], end + 1
        if any(old[i][1] != old[i + 1][0] * old[i + 1][1] for i in range(first, end - 1)):
            return None
        step = old[end - 1][1]
        for i in reversed(range(place, last)):
            strides[i], step = step, step * shape[i]
        first, place = end, last
    return strides


def views(name: str, source: Layout, arguments: Any, shapes: Sequence[tuple[int, ...]]) -> list[Layout] | None:
    """The outputs of a primitive that only looks at its input in another way; None where it is none or must copy."""
    places, shape = source.places, shapes[0]
    if name in ("Reshape", "Flatten", "Unflatten", "ExpandDims", "Squeeze", "View"):
        strides = _reshaped(places, shape)
        return None if strides is None else [source.viewed(_at(shape, strides))]
    if name in ("StopGradient", "Copy", "Depends", "CustomTransforms"):
        return [source.viewed(places)]
    if name == "Broadcast":
        return [source.viewed(np.broadcast_to(places, shape))]
    if name == "Transpose":
        return [source.viewed(places.transpose(arguments[0]))]
    if name == "Slice":
        cut = tuple(slice(a, b, c) for a, b, c in zip(*arguments))
        return [source.viewed(places[cut])]
    if name == "Split":
        indices, axis = arguments
        return [source.viewed(part) for part in np.split(places, list(indices), axis)]
    return None
