"""Error-compensated rounding: what one column's rounding does to a row's output, the columns after it make good.

For rows w with inputs of second-moment matrix H the error is (q - w) H (q - w)^T. Columns are rounded in order, and
each one's error is carried into those not rounded yet (GPTQ, Frantar et al., arXiv 2210.17323), with scales searched
group by group on the carried weights. Then sweeps of coordinate descent revisit every scale and every code against
the whole of H, taking only what lowers the error. Rows do not depend on each other. Knows nothing of where H is from.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_qwen35.convert.affine_codes import Floats, Grouped, stored, top_code
from mlx_qwen35.convert.packing import Packing
from mlx_qwen35.convert.scale_search import searched_scales

DAMPING = 0.01  # of the mean diagonal: columns that calibration never saw still cost something
SWEEPS = 2


def damped(hessian: Floats) -> Floats:
    """H with a little added to its diagonal, so that it can be inverted. [in, in], float32"""
    mean = max(float(np.diag(hessian).mean()), 1e-12)
    added = np.eye(len(hessian), dtype=np.float32) * np.float32(DAMPING * mean)
    return (hessian + added).astype(np.float32, copy=False)


def carrier(hessian: Floats) -> Floats:
    """U, upper triangular, of inverse(H) = U^T U: row j says how column j's error is carried on."""
    # float64: a poorly conditioned H loses its positive definiteness in float32.
    inverse = np.linalg.inv(hessian.astype(np.float64))
    return np.linalg.cholesky((inverse + inverse.T) / 2).T.astype(np.float32)


def row_errors(difference: Floats, hessian: Floats) -> Floats:
    """difference: [N, in] -> (q - w) H (q - w)^T of each row, [N]"""
    return np.einsum("ni,ni->n", difference @ hessian, difference)


def compensated(weights: Floats, upper: Floats, packing: Packing, dtype: mx.Dtype) -> Grouped:
    """Round column after column, carrying errors on. weights: [N, groups, size] (not changed), upper: [in, in]"""
    N, groups, size = weights.shape
    top = top_code(packing)
    carried = weights.reshape(N, -1).copy()
    result = Grouped(np.empty((N, groups, size), np.uint8), *np.empty((2, N, groups), np.float32))
    importance = np.asarray(1 / np.diag(upper) ** 2, np.float32).reshape(groups, size)
    for g in range(groups):
        first, last = g * size, (g + 1) * size
        block = carried[:, None, first:last]
        found = searched_scales(block, importance[g : g + 1], packing, dtype)
        scales, biases = found[0][:, 0], found[1][:, 0]
        result.scales[:, g], result.biases[:, g] = scales, biases
        # Columns as rows, so that each one is contiguous.
        columns, errors = block[:, 0].T.copy(), np.empty((size, N), np.float32)
        back, inverse = upper[first:last, first:last].T.copy(), 1 / scales
        for j in range(size):
            column = columns[j]
            if j:
                column -= back[j, :j] @ errors[:j]
            codes = np.rint((column - biases) * inverse)
            np.minimum(np.maximum(codes, 0, out=codes), top, out=codes)
            result.codes[:, g, j] = codes
            errors[j] = (column - codes * scales - biases) / back[j, j]
        if last < carried.shape[1]:
            carried[:, last:] -= errors.T @ upper[first:last, last:]
    return result


def polish(rows: Grouped, weights: Floats, hessian: Floats, packing: Packing, dtype: mx.Dtype) -> None:
    """Coordinate descent, in place: scale and bias, then the codes, group by group. No row gets worse."""
    N, groups, size = weights.shape
    flat = weights.reshape(N, -1)
    difference = rows.values().reshape(N, -1) - flat
    gradient: Floats = (difference @ hessian).astype(np.float32, copy=False)  # half of it: [N, in]
    for _ in range(SWEEPS):
        for g in range(groups):
            place = slice(g * size, (g + 1) * size)
            within = hessian[place, place]
            _refit(rows, g, weights[:, g], gradient[:, place], within, dtype)
            moved = rows.scales[:, g, None] * rows.codes[:, g] + rows.biases[:, g, None] - flat[:, place]
            pull = gradient[:, place] + (moved - difference[:, place]) @ within
            _recode(rows, g, pull.astype(np.float32, copy=False), within, top_code(packing))
            moved = rows.scales[:, g, None] * rows.codes[:, g] + rows.biases[:, g, None] - flat[:, place]
            gradient += (moved - difference[:, place]) @ hessian[place]
            difference[:, place] = moved


def _refit(rows: Grouped, g: int, weights: Floats, gradient: Floats, within: Floats, dtype: mx.Dtype) -> None:
    """The best scale and bias of one group for its codes as they are, where they still help once rounded.

    gradient: [N, size]   within: [size, size], the group's own part of H
    """
    codes, scales, biases = rows.codes[:, g].astype(np.float32), rows.scales[:, g], rows.biases[:, g]
    slope, level = (gradient * codes).sum(1), gradient.sum(1)
    on_codes = codes @ within
    cc, c1, one = (on_codes * codes).sum(1), on_codes.sum(1), within.sum()
    determinant = cc * one - c1 * c1
    usable = determinant > 1e-6 * cc * one
    step = np.where(usable, (c1 * level - one * slope) / np.where(usable, determinant, 1), 0)
    new_scales = stored(scales + step, dtype)
    # The best bias for the scale as it will be stored.
    new_biases = stored(biases - (level + c1 * (new_scales - scales)) / one, dtype)
    move = (new_scales - scales)[:, None] * codes + (new_biases - biases)[:, None]
    change = 2 * (move * gradient).sum(1) + ((move @ within) * move).sum(1)
    better = usable & (change < 0) & (new_scales != 0)
    rows.scales[better, g], rows.biases[better, g] = new_scales[better], new_biases[better]


def _recode(rows: Grouped, g: int, gradient: Floats, within: Floats, top: int) -> None:
    """Each column's best code while the others stay, column after column; exact, so never worse."""
    scales, size = rows.scales[:, g], len(within)
    inverse = 1 / scales
    pull, codes = gradient.T.copy(), rows.codes[:, g].T.astype(np.float32)
    moves = np.zeros_like(pull)
    for j in range(size):
        pulled = pull[j] + within[j, :j] @ moves[:j] if j else pull[j]
        wanted = np.rint(codes[j] - pulled * inverse / within[j, j])
        np.minimum(np.maximum(wanted, 0, out=wanted), top, out=wanted)
        moves[j] = (wanted - codes[j]) * scales
        codes[j] = wanted
    rows.codes[:, g] = codes.T
