"""Better scales at the same bits: weighted least squares over candidate ranges, measured as they will be stored.

For each group of weights w with importance v, find scale s and bias b that minimise sum(v * (s * code + b - w)^2),
where s and b are rounded to the stored dtype *before* the codes are chosen; stock picks codes against unrounded
scales, which at 8 bits costs a third of the error. Knows nothing of other groups, rows or activations.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_qwen35.convert.affine_codes import Floats, Grouped, stored, top_code
from mlx_qwen35.convert.packing import Packing

# Shares of a group's range to start from. Few bits gain from giving up the extremes, many bits do not.
RANGES = {
    2: (0.9, 0.75, 0.6),
    3: (1.0, 0.88, 0.76),
    4: (1.0, 0.92, 0.84),
    5: (1.0, 0.95, 0.9),
    6: (1.0, 0.97),
    8: (1.0,),
}
TINY = np.float32(1e-30)


def search(
    weights: Floats, importance: Floats | None, start: tuple[Floats, Floats], packing: Packing, dtype: mx.Dtype
) -> Grouped:
    """The best of all candidates for each group, by sum(importance * (value - weight)^2).

    weights: [N, groups, size]   importance: broadcasts to it; None for all equal
    start: scales and biases [N, groups] that are candidates as they are, such as stock's. Codes nearest to the weights
    cannot have a larger error than stock's own codes, so the result is never worse than stock.
    """
    top = top_code(packing)
    low, high = weights.min(-1), weights.max(-1)
    middle, half = (low + high) / 2, (high - low) / 2
    sums = _Sums(weights, importance)
    best = start
    best_error = squared_error(weights, importance, nearest(weights, *best, top), *best)
    for share in RANGES[packing.bits]:
        scales, biases = np.maximum(half * (2 * share / top), TINY), middle - half * share
        scales, biases = sums.refitted(nearest(weights, scales, biases, top), scales, biases)
        scales, biases = stored(scales, dtype), stored(biases, dtype)
        errors = squared_error(weights, importance, nearest(weights, scales, biases, top), scales, biases)
        better = errors < best_error
        best = np.where(better, scales, best[0]), np.where(better, biases, best[1])
        best_error = np.where(better, errors, best_error)
    # Codes are made again rather than kept: moving them for every candidate costs more.
    return Grouped(nearest(weights, *best, top).astype(np.uint8), *best)


def full_range(weights: Floats, top: int, dtype: mx.Dtype) -> tuple[Floats, Floats]:
    """Scales and biases [N, groups] that span each group from its lowest to its highest weight, as stored."""
    low = stored(weights.min(-1), dtype)
    return stored(np.maximum((weights.max(-1) - low) / top, TINY), dtype), low


def nearest(weights: Floats, scales: Floats, biases: Floats, top: int) -> Floats:
    """The codes nearest to the weights, as floats. Scales may be negative, as stock's are, but not zero."""
    codes = weights - biases[..., None]
    codes *= (1 / scales)[..., None]
    np.rint(codes, out=codes)
    np.maximum(codes, 0, out=codes)
    return np.minimum(codes, top, out=codes)


def squared_error(weights: Floats, importance: Floats | None, codes: Floats, scales: Floats, biases: Floats) -> Floats:
    """[N, groups]"""
    difference = codes * scales[..., None]
    difference += biases[..., None]
    difference -= weights
    if importance is None:
        return np.einsum("ngj,ngj->ng", difference, difference)
    weighted = difference * importance
    return np.einsum("ngj,ngj->ng", weighted, difference)


class _Sums:
    """What least squares needs of the weights, whatever their codes."""

    def __init__(self, weights: Floats, importance: Floats | None) -> None:
        self.importance = importance
        # Centred on nothing: float32 sums of 64 products are exact enough for a start that is measured afterwards.
        self.weighted = weights if importance is None else weights * importance
        self.of_weights = self.weighted.sum(-1)
        self.of_importance = np.float32(weights.shape[-1]) if importance is None else importance.sum(-1)

    def refitted(self, codes: Floats, scales: Floats, biases: Floats) -> tuple[Floats, Floats]:
        """The best scale and bias for given codes; where all codes of a group are equal, the ones it had."""
        important = codes if self.importance is None else codes * self.importance
        total, sum_c = self.of_importance, important.sum(-1)
        sum_cc, sum_cw = np.einsum("ngj,ngj->ng", important, codes), np.einsum("ngj,ngj->ng", codes, self.weighted)
        spread = total * sum_cc - sum_c * sum_c
        usable = spread > 1e-6 * total * sum_cc
        fitted = (total * sum_cw - sum_c * self.of_weights) / np.where(usable, spread, 1)
        fitted = np.where(usable & (fitted != 0), fitted, scales)
        return fitted, np.where(usable, (self.of_weights - fitted * sum_c) / total, biases)
