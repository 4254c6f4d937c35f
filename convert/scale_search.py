"""Better scales at the same bits: least squares from a few starts, measured as they will be stored.

For each group of weights w whose inputs have second moments V, find scale s and bias b that minimise d^T V d with
d = s * code + b - w; V is the identity, a diagonal (an importance for each weight), or whole. s and b are rounded to
the stored dtype *before* the codes are chosen; stock picks codes against unrounded scales, which at 8 bits costs a
third of the error. Knows nothing of other groups, rows or activations.

Groups are columns here, [size, groups]: what a group shares lies along rows, so that numpy's loops are long and its
sums over a group are plain additions of rows. The sums are then the same whatever other groups are there.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_qwen35.convert.affine_codes import Codes, Floats, Grouped, Weights, stock_scales, stored, top_code
from mlx_qwen35.convert.packing import Packing

# The shares of a group's range to start from: few bits gain from giving up the extremes. Without calibration only the
# first is tried, for speed; refitted twice it is worth three refitted once. Calibration costs more than the other two.
STARTS = {
    2: (0.68, 0.6, 0.8),
    3: (0.86, 0.76, 0.94),
    4: (0.96, 0.9, 1.0),
    5: (0.985, 0.96, 1.0),
    6: (0.995, 0.98, 1.005),
    8: (1.003, 0.998, 1.0075),
}
TINY = np.float32(1e-30)
LANES = 16  # floats in the widest register: no group is ever computed in the leftover loop, which may round otherwise
_kept = threading.local()


def search(weights: Weights, importance: Floats | None, packing: Packing, dtype: mx.Dtype) -> Grouped:
    """The best of all candidates for each group.

    weights: [N, groups, size]   importance: [groups, size], [groups, size, size] (whole); None for all equal
    Stock's own scales are among the candidates. Codes nearest to the weights cannot have a larger error than stock's
    own codes, so the result is never worse than stock, unless `importance` is whole.
    """
    columns = _Columns(weights, importance, packing, dtype)
    line, (N, groups, size) = columns.best(), weights.shape
    codes = columns.nearest(line)[:, : N * groups]
    if not columns.by_group:
        return Grouped(codes.T.reshape(N, groups, size), *_rows(line, N, groups))
    scales, biases = (part.T.copy() for part in _rows(line, groups, N))
    return Grouped(codes.reshape(size, groups, N).transpose(2, 1, 0).copy(), scales, biases)


def searched_scales(
    weights: Floats, importance: Floats | None, packing: Packing, dtype: mx.Dtype
) -> tuple[Floats, Floats]:
    """The scales and biases [N, groups] of `search`, without the codes."""
    N, groups, _ = weights.shape
    scales, biases = _rows(_Columns(weights, importance, packing, dtype).best(), N, groups)
    return scales, biases


class _Columns:
    """Groups as columns, and room to round them in: the thread's own, so one at a time."""

    def __init__(self, weights: Weights, importance: Floats | None, packing: Packing, dtype: mx.Dtype) -> None:
        N, groups, size = weights.shape
        self.dtype, self.top = dtype, np.float32(top_code(packing))
        self.shares = STARTS[packing.bits][: 1 if importance is None else None]
        columns = -(-N * groups // LANES) * LANES
        self.weights, self.codes, self.off, *more = _room(size, columns, 3 if importance is None else 5)
        # One matrix for all columns of a group, where there is one: then they lie side by side.
        self.by_group = importance is not None and importance.ndim == 3
        # Of the gain at 8 bits hardly any is left for a second, unless errors of one sign add up.
        self.refits = 1 if packing.bits == 8 and not self.by_group else 2
        rows: Any = np.ascontiguousarray(weights.swapaxes(0, 1)) if self.by_group else weights
        _transpose(rows.reshape(-1, size), self.weights, self.codes)
        self.importance, self.total = importance, np.float32(size)
        if importance is not None and self.by_group:
            self.weighted, self.shape = more[1], (size, groups, N)
            self.weighted[:, N * groups :] = 0
            self.total = np.ones(columns, np.float32)
            self.total[: N * groups] = np.repeat(importance.sum((1, 2)), N)
        elif importance is not None:
            self.importance, self.weighted = more
            self.importance[:, N * groups :] = 1
            self.importance[:, : N * groups].reshape(size, N, groups)[...] = importance.T[:, None]
            self.total = self.importance.sum(0)

    def best(self) -> Floats:
        """Scales and biases as stored, [2, columns]"""
        low, high = self.weights.min(0), self.weights.max(0)
        middle, half = (low + high) / 2, (high - low) / 2
        stock = stock_scales(low, high, int(self.top), self.dtype)
        best, lowest = stock.copy(), self._error_of(stock)
        # A scale that float16 cannot hold divides by zero; the error is then no number, and never the lowest.
        with np.errstate(all="ignore"):
            for share in self.shares:
                found = np.stack([np.maximum(half * (2 * share) / self.top, TINY), middle - half * share])
                self._round(found)
                for _ in range(self.refits):
                    found = self._refitted(found)
                    error = self._error_of(found)
                    np.copyto(best, found, where=error < lowest)
                    np.fmin(lowest, error, out=lowest)
        return best

    def nearest(self, line: Floats) -> Codes:
        self._round(line)
        return self.codes.astype(np.uint8)

    def _round(self, line: Floats) -> None:
        """Set `codes` to those nearest to the weights, and `off` to what they miss, in steps of the scale."""
        scales, biases = line
        off = np.subtract(self.weights, biases, out=self.off)
        off *= 1 / scales
        codes = np.rint(off, out=self.codes)
        np.clip(codes, 0, self.top, out=codes)
        off -= codes

    def _error_of(self, line: Floats) -> Floats:
        self._round(line)
        return np.einsum("jn,jn->n", self._important(self.off), self.off) * np.square(line[0])

    def _refitted(self, line: Floats) -> Floats:
        """The best scales and biases for the codes as they are, as stored.

        What codes miss is regressed on codes, which loses no digits to cancellation as weights on codes would.
        """
        codes, off, total = self.codes, self.off, self.total
        important = self._important(codes)
        sum_c, sum_cc = np.add.reduce(important), np.einsum("jn,jn->n", important, codes)
        sum_co, sum_o = np.einsum("jn,jn->n", important, off), np.add.reduce(self._important(off))
        # Where all codes are equal the slope is noise; what comes of it is measured like any candidate.
        total_cc = total * sum_cc
        slope = (total * sum_co - sum_c * sum_o) / np.maximum(total_cc - sum_c * sum_c, total_cc * 1e-6 + TINY)
        return stored(line + line[0] * np.stack([slope, (sum_o - slope * sum_c) / total]), self.dtype)

    def _important(self, values: Floats) -> Floats:
        """V times each column."""
        if self.importance is None:
            return values
        if not self.by_group:
            return np.multiply(values, self.importance, out=self.weighted)
        # BLAS takes these views as they are.
        given, out = (a[:, : self.shape[1] * self.shape[2]].reshape(self.shape) for a in (values, self.weighted))
        np.matmul(self.importance, given.swapaxes(0, 1), out=out.swapaxes(0, 1))
        return self.weighted


def _transpose(rows: Weights, columns: Floats, scratch: Floats) -> None:
    """rows [M, size] into columns [size, M and a few more], which become zeros. Both others are the latter's shape."""
    M, size = rows.shape
    columns[:, M:] = 0
    if rows.dtype != np.uint16:
        columns[:, :M] = rows.T
        return
    # Two by two: half as many strides.
    pairs, bits = scratch.view(np.uint32)[: size // 2, :M], columns.view(np.uint32)[:, :M]
    pairs[...] = np.ascontiguousarray(rows).view(np.uint32).T
    np.left_shift(pairs, 16, out=bits[::2])
    np.bitwise_and(pairs, 0xFFFF0000, out=bits[1::2])


def _room(size: int, columns: int, count: int) -> Iterator[Floats]:
    """`count` arrays [size, columns], the same ones in every call from a thread: new memory costs more than the sums.

    They begin at full vector registers, and where their places in the cache differ.
    """
    stride = size * columns + LANES * 4
    if getattr(_kept, "floats", np.empty(0)).size < count * stride + LANES:
        _kept.floats = np.empty(count * stride + LANES, np.float32)
    first = -(_kept.floats.ctypes.data // 4) % LANES
    for place in range(first, first + count * stride, stride):
        yield _kept.floats[place : place + size * columns].reshape(size, columns)


def _rows(columns: Floats, N: int, groups: int) -> Floats:
    return columns[..., : N * groups].reshape(-1, N, groups)
