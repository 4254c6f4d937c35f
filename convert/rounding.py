"""Rows of a weight matrix in, packed rows out, at one of four qualities. Knows nothing of files or networks.

stock: mx.quantize, bit for bit. fast: scales by least squares, codes against the scales as stored. good: the same,
weighted by the second moments of each group's inputs, from three starts instead of one. best: errors compensated
across a row with the inputs' Hessian, which good does for routers too. Every candidate is measured as stock
mx.dequantize will read it, in float32, and kept only where its error is lower than stock's: per group in fast and
good, per row in best. So no quality is ever worse than stock under its own measure.

It computes with numpy, in pieces that stay in the processor's cache, on all cores, and the GPU stays free. stock and
fast are the same bits on a Mac and on Linux; the others multiply matrices, whose last bits are the library's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property

import mlx.core as mx
import numpy as np

from mlx_qwen35.convert.affine_codes import Floats, Grouped, Weights, as_floats, packed_words, stock
from mlx_qwen35.convert.compensation import carrier, compensated, damped, polish, row_errors
from mlx_qwen35.convert.packing import Packing
from mlx_qwen35.convert.scale_search import search

QUALITIES = ("stock", "fast", "good", "best")
CALIBRATED = ("good", "best")  # the qualities that want statistics
ROUTERS = (".mlp.gate.weight", ".mlp.shared_expert_gate.weight")
PIECE = 1 << 16  # weights at a time: with their temporaries about a core's share of cache
UNSEEN = 0.01  # of the mean second moment

__all__ = ["CALIBRATED", "QUALITIES", "Packing", "Statistics", "quality_of", "round_rows"]


@dataclass(frozen=True, eq=False)
class Statistics:
    """What calibration saw of the inputs that one parameter's rows are multiplied with.

    second_moments: [in], float32, mean of x^2
    hessian: [in, in], float32, mean of x x^T, already shrunk; for best
    blocks: [in / size, size, size], the same among neighbours only, `size` a multiple of the group; for good
    """

    second_moments: mx.array | None = None
    hessian: mx.array | None = None
    blocks: mx.array | None = None

    @cached_property
    def carried(self) -> tuple[Floats, Floats]:
        """The damped Hessian and how errors are carried under it; once for all rows that share these statistics."""
        matrix = damped(np.array(self.hessian))
        return matrix, carrier(matrix)


def quality_of(quality: str, parameter: str) -> str:
    """How one parameter is rounded: routers are few rows, and a choice of experts that flips costs more than any."""
    return "best" if quality == "good" and parameter.endswith(ROUTERS) else quality


def round_rows(
    rows: mx.array, packing: Packing, quality: str, statistics: Statistics | None = None
) -> tuple[mx.array, mx.array, mx.array | None]:
    """Pack rows as mx.quantize lays them out.

    rows: [N, in], any float dtype; scales and biases come out in it
    statistics: for good and best; without it both fall back to what they can do: best to good, good to fast, and
    good without blocks to weights of each channel's own
    -> packed weight [N, words] uint32, scales and biases [N, groups] (biases None where the mode has none)
    Other modes than affine are stock's own at every quality. Rows do not depend on each other.
    """
    if quality not in QUALITIES:
        raise ValueError(f"quality is {quality!r}; known are {', '.join(QUALITIES)}")
    if quality == "stock" or packing.mode != "affine":
        packed, scales, *biases = mx.quantize(rows, packing.group_size, packing.bits, mode=packing.mode)
        return packed, scales, biases[0] if biases else None
    whole = None if statistics is None else statistics.hessian
    compensates = quality == "best" and whole is not None
    moments = statistics.second_moments if statistics and quality in CALIBRATED else None
    weights = _weights(rows, packing)
    if not _all_finite(weights):
        return round_rows(rows, packing, "stock")  # and verification will name the tensor
    importance = None if moments is None else _importance(moments, packing)
    if statistics is not None and compensates:
        rounding = _CompensatedRounding(*statistics.carried, importance, packing, rows.dtype)
    elif quality == "good" and importance is not None and (blocks := _blocks(statistics)) is not None:
        rounding = _GroupedRounding(_whole(importance, blocks), packing, rows.dtype)
    else:
        return _packed(rows, packing, lambda p: search(weights[p], importance, packing, rows.dtype))
    original = stock(rows, packing)
    return _packed(rows, packing, lambda p: rounding(as_floats(weights[p]), original.rows(p)))


class _GroupedRounding:
    """Stock, or searched scales where they are better, for each group under its inputs' second moments."""

    def __init__(self, moments: Floats, packing: Packing, dtype: mx.Dtype) -> None:
        """moments: [groups, size, size]"""
        self.moments, self.packing, self.dtype = moments, packing, dtype

    def __call__(self, weights: Floats, original: Grouped) -> Grouped:
        """weights: [N, groups, size]   original: stock's rounding of them"""
        searched = search(weights, self.moments, self.packing, self.dtype)
        original.take(searched, self._errors(searched, weights) < self._errors(original, weights))
        return original

    def _errors(self, rows: Grouped, weights: Floats) -> Floats:
        """[N, groups]"""
        difference = (rows.values() - weights).swapaxes(0, 1)
        return np.einsum("gns,gns->ng", difference @ self.moments, difference)


class _CompensatedRounding:
    """Stock, searched scales and compensated rounding: the best of the three for each row, under H."""

    def __init__(
        self, hessian: Floats, upper: Floats, importance: Floats | None, packing: Packing, dtype: mx.Dtype
    ) -> None:
        self.hessian, self.upper = hessian, upper
        self.importance, self.packing, self.dtype = importance, packing, dtype

    def __call__(self, weights: Floats, original: Grouped) -> Grouped:
        """weights: [N, groups, size]   original: stock's rounding of them"""
        searched = search(weights, self.importance, self.packing, self.dtype)
        rounded = compensated(weights, self.upper, self.packing, self.dtype)
        polish(rounded, weights, self.hessian, self.packing, self.dtype)
        best, lowest = original, self._errors(original, weights)
        for candidate in (searched, rounded):
            errors = self._errors(candidate, weights)
            best.take(candidate, errors < lowest)
            lowest = np.fmin(errors, lowest)
        return best

    def _errors(self, rows: Grouped, weights: Floats) -> Floats:
        return row_errors((rows.values() - weights).reshape(len(weights), -1), self.hessian)


def _weights(rows: mx.array, packing: Packing) -> Weights:
    """[N, groups, size]"""
    known = rows.view(mx.uint16) if rows.dtype == mx.bfloat16 else rows.astype(mx.float32)
    return np.asarray(known).reshape(len(rows), -1, packing.group_size)


def _all_finite(weights: Weights) -> bool:
    if weights.dtype == np.uint16:
        return bool((weights.view(np.uint16) & 0x7F80).max() < 0x7F80)  # the exponent of infinity and NaN
    return bool(np.isfinite(weights).all())


def _importance(moments: mx.array, packing: Packing) -> Floats:
    """[groups, size]. A channel that calibration never saw still weighs a little."""
    values = np.array(moments.astype(mx.float32))
    return (values + max(float(values.mean()), 1e-12) * UNSEEN).astype(np.float32).reshape(-1, packing.group_size)


def _blocks(statistics: Statistics | None) -> mx.array | None:
    """[blocks, size, size]: a whole Hessian is one block."""
    if statistics is None or statistics.hessian is None:
        return statistics.blocks if statistics else None
    return statistics.hessian[None]


def _whole(importance: Floats, blocks: mx.array) -> Floats:
    """[groups, size, size]: of each group the second moments, `importance` [groups, size] on the diagonal."""
    groups, size = importance.shape
    given = np.array(blocks.astype(mx.float32))
    parts = given.shape[-1] // size
    given = given.reshape(-1, parts, size, parts, size)
    own = np.stack([given[:, part, :, part] for part in range(parts)], 1).reshape(groups, size, size)
    own[:, range(size), range(size)] = importance
    return np.ascontiguousarray(own)


def _packed(rows: mx.array, packing: Packing, work: Callable[[slice], Grouped]) -> tuple[mx.array, mx.array, mx.array]:
    """`work` on slices of rows, on all cores: numpy lets go of the interpreter while it computes."""
    N, width = rows.shape
    words = np.empty((N, width * packing.bits // 32), np.uint32)
    scales, biases = np.empty((2, N, width // packing.group_size), np.float32)

    def piece(part: slice) -> None:
        found = work(part)
        words[part] = packed_words(found.codes, packing.bits).reshape(len(found.codes), -1)
        scales[part], biases[part] = found.scales, found.biases

    step = max(1, PIECE // width)
    for _ in _threads().map(piece, [slice(first, first + step) for first in range(0, N, step)]):
        pass
    return mx.array(words), mx.array(scales).astype(rows.dtype), mx.array(biases).astype(rows.dtype)


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, "rounding")
