"""Packed rows at every quality: the format is stock's, and no error is larger than stock's."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_qwen35.convert.affine_codes import Grouped, packed_words, stock_scales, top_code, unpacked
from mlx_qwen35.convert.compensation import compensated, polish, row_errors
from mlx_qwen35.convert.rounding import QUALITIES, Packing, Statistics, round_rows
from mlx_qwen35.convert.scale_search import search

BITS = (2, 3, 4, 5, 6, 8)
PACKINGS = [Packing(bits, size) for bits in BITS for size in (32, 64, 128)]
DTYPES = (mx.bfloat16, mx.float16, mx.float32)


def weights(rows: int = 24, width: int = 256, seed: int = 0, tails: bool = False) -> mx.array:
    random = np.random.default_rng(seed)
    values = random.standard_t(4, (rows, width)) if tails else random.standard_normal((rows, width))
    return mx.array((0.02 * values).astype(np.float32)).astype(mx.bfloat16)


def inputs(tokens: int, width: int = 256, seed: int = 1) -> np.ndarray:
    """Correlated inputs with a few loud channels, as a network has them."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((tokens, width // 2)) @ np.random.default_rng(99).standard_normal(
        (width // 2, width)
    )
    loud = 1 + 5 * (np.arange(width) % 37 == 0)
    return ((mixed / 8 + random.standard_normal((tokens, width)) * 0.5) * loud).astype(np.float32)


def statistics(x: np.ndarray) -> Statistics:
    hessian = x.T @ x / len(x)
    return Statistics(mx.array(np.diag(hessian)), mx.array(hessian))


def grouped(x: np.ndarray, size: int) -> Statistics:
    """What `good` is given: correlations among neighbours."""
    parts = x.reshape(len(x), -1, size).swapaxes(0, 1)
    blocks = parts.swapaxes(1, 2) @ parts / len(x)
    return Statistics(mx.array((x * x).mean(0)), blocks=mx.array(blocks))


def values(packed: tuple[mx.array, mx.array, mx.array | None], packing: Packing) -> np.ndarray:
    """What stock reads, in float32."""
    weight, scales, biases = packed
    assert biases is not None
    exact = scales.astype(mx.float32), biases.astype(mx.float32)
    return np.array(mx.dequantize(weight, *exact, packing.group_size, packing.bits))


def as_numpy(rows: mx.array) -> np.ndarray:
    return np.array(rows.astype(mx.float32))


def weighted_error(rounded: np.ndarray, rows: mx.array, importance: np.ndarray, size: int) -> np.ndarray:
    """[rows, groups]"""
    squared = ((rounded - as_numpy(rows)).astype(np.float64) ** 2) * importance
    return squared.reshape(len(rounded), -1, size).sum(-1)


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_stock_quality_is_mx_quantize_bit_for_bit(packing: Packing, dtype: mx.Dtype) -> None:
    rows = weights().astype(dtype)
    for ours, stock in zip(
        round_rows(rows, packing, "stock", None), mx.quantize(rows, packing.group_size, packing.bits)
    ):
        assert ours is not None
        assert ours.dtype == stock.dtype
        assert mx.array_equal(ours, stock)


@pytest.mark.parametrize("mode", ["mxfp4", "nvfp4", "mxfp8"])
@pytest.mark.parametrize("quality", QUALITIES)
def test_other_modes_are_stocks_own_at_every_quality(mode: str, quality: str) -> None:
    bits, size = {"mxfp4": (4, 32), "nvfp4": (4, 16), "mxfp8": (8, 32)}[mode]
    weight, scales, biases = round_rows(weights(), Packing(bits, size, mode), quality, statistics(inputs(64)))
    stock = mx.quantize(weights(), size, bits, mode=mode)
    assert biases is None
    assert mx.array_equal(weight, stock[0])
    assert mx.array_equal(scales, stock[1])


@given(st.sampled_from(BITS), st.integers(1, 5), st.integers(1, 6), st.integers(0, 1 << 30))
def test_packing_and_unpacking_are_inverse_at_every_width(bits: int, rows: int, words: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (rows, 32 * words), np.uint8)
    packed = packed_words(codes, bits)
    assert packed.shape == (rows, words * bits)
    assert np.array_equal(unpacked(packed, bits), codes)


@pytest.mark.parametrize("bits", BITS)
def test_codes_lie_where_stock_reads_them(bits: int) -> None:
    codes = np.random.default_rng(0).integers(0, 1 << bits, (3, 128), np.uint8)
    one, zero = mx.ones((3, 2)), mx.zeros((3, 2))
    assert np.array_equal(np.array(mx.dequantize(mx.array(packed_words(codes, bits)), one, zero, 64, bits)), codes)


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_first_candidate_has_stocks_own_scales(packing: Packing, dtype: mx.Dtype) -> None:
    """Without them no quality could promise to be no worse."""
    odd = mx.array([[0.0] * 128, [0.7] * 128, [1e-30] * 128, [-0.25, 0.0] * 64, list(np.linspace(-1e-6, 300, 128))])
    for rows in (weights(tails=True), mx.concatenate([odd, odd], 1)):
        rows = rows.astype(dtype)
        plain = as_numpy(rows).reshape(len(rows), -1, packing.group_size)
        ours = stock_scales(plain.min(-1), plain.max(-1), top_code(packing), dtype)
        for found, expected in zip(ours, mx.quantize(rows, packing.group_size, packing.bits)[1:]):
            assert np.array_equal(found, as_numpy(expected))


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
@pytest.mark.parametrize("tails", [False, True])
def test_no_group_is_worse_than_stocks_under_the_measure_of_fast_and_good(packing: Packing, tails: bool) -> None:
    moments = (inputs(300) ** 2).mean(0)
    rows, seen = weights(tails=tails), Statistics(mx.array(moments))
    stock = values(round_rows(rows, packing, "stock"), packing)
    for quality, importance in (("fast", np.ones(256)), ("good", moments + 0.01 * moments.mean())):
        found = values(round_rows(rows, packing, quality, seen), packing)
        ours, theirs = (weighted_error(v, rows, importance, packing.group_size) for v in (found, stock))
        # float32 sums of up to 128 squares decide between candidates: 1e-4 is their rounding.
        assert (ours <= theirs * (1 + 1e-4) + 1e-12).all()
        assert ours.sum() < theirs.sum()


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
@pytest.mark.parametrize("size", [128, 256])
def test_no_group_is_worse_than_stocks_under_the_moments_of_its_inputs(packing: Packing, size: int) -> None:
    """Blocks as large as the group or larger; stock's own codes, not only its scales, are what must be beaten."""
    rows, x = weights(tails=True), inputs(300)
    seen = grouped(x, size)
    found, stock = (values(round_rows(rows, packing, q, seen), packing) - as_numpy(rows) for q in ("good", "stock"))
    hessian = (x.T @ x / len(x)).astype(np.float64)
    hessian += 0.01 * np.diag(hessian).mean() * np.eye(256)
    ours, theirs = (
        np.stack([np.einsum("ni,ij,nj->n", off[:, g], hessian[g, g], off[:, g]) for g in groups_of(packing)])
        for off in (found, stock)
    )
    assert (ours <= theirs * (1 + 1e-4) + 1e-12).all()  # float32 sums decide between candidates
    assert ours.sum() < 0.95 * theirs.sum()


def groups_of(packing: Packing) -> list[slice]:
    return [slice(first, first + packing.group_size) for first in range(0, 256, packing.group_size)]


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_correlations_among_neighbours_are_worth_more_than_each_channels_own_weight(bits: int) -> None:
    """Inputs that are not zero on average, as behind a norm with its factors: errors of one sign add up."""
    average = np.random.default_rng(5).standard_normal(256).astype(np.float32)
    rows, packing, unseen, x = weights(64), Packing(bits, 64), inputs(500, seed=2) + average, inputs(2000) + average
    whole = grouped(x, 128)
    errors = []
    for seen in (whole, Statistics(whole.second_moments)):
        off = values(round_rows(rows, packing, "good", seen), packing) - as_numpy(rows)
        errors.append(float(((unseen @ off.T) ** 2).sum()))
    assert errors[0] < 0.95 * errors[1]


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_no_row_is_worse_than_stocks_under_the_measure_of_best(packing: Packing) -> None:
    rows, seen = weights(tails=True), statistics(inputs(300))
    hessian = seen.carried[0].astype(np.float64)
    errors = {}
    for quality in ("stock", "good", "best"):
        off = values(round_rows(rows, packing, quality, seen), packing) - as_numpy(rows)
        errors[quality] = np.einsum("ni,ij,nj->n", off, hessian, off)
    assert (errors["best"] <= errors["stock"] * (1 + 1e-4)).all()
    assert (errors["best"] <= errors["good"] * (1 + 1e-4)).all()


@pytest.mark.parametrize(("bits", "share"), [(2, 0.75), (3, 0.85), (4, 0.9), (6, 0.95), (8, 0.7)])
def test_fast_takes_a_known_share_off_the_weights_error(bits: int, share: float) -> None:
    """Measured 0.69, 0.79, 0.86, 0.89 and 0.61 on Gaussian weights; a tenth of the gain or so is left for luck."""
    rows, packing = weights(64, 1024), Packing(bits, 64)
    stock, fast = (values(round_rows(rows, packing, q), packing) - as_numpy(rows) for q in ("stock", "fast"))
    assert (fast**2).sum() < share * (stock**2).sum()


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_each_quality_has_less_output_error_than_the_one_before_on_inputs_it_has_not_seen(bits: int) -> None:
    rows, packing, unseen = weights(64), Packing(bits, 64), inputs(500, seed=2)
    seen, errors = statistics(inputs(2000)), []
    for quality in QUALITIES:
        off = values(round_rows(rows, packing, quality, seen), packing) - as_numpy(rows)
        errors.append(float(((unseen @ off.T) ** 2).sum()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.6 * errors[0]


def test_carrying_errors_on_gains_by_itself_and_polishing_gains_again() -> None:
    """Apart, since either of the two would hide what is wrong in the other."""
    rows, packing, seen = weights(64), Packing(3, 64), statistics(inputs(2000))
    hessian, upper = seen.carried
    plain = as_numpy(rows).reshape(64, -1, 64)

    def error(found: Grouped) -> float:
        return float(row_errors((found.values() - plain).reshape(64, -1), hessian).sum())

    searched = error(search(plain, None, packing, mx.bfloat16))
    carried = compensated(plain, upper, packing, mx.bfloat16)
    before = error(carried)
    polish(carried, plain, hessian, packing, mx.bfloat16)
    assert before < 0.75 * searched
    assert error(carried) < 0.97 * before


@pytest.mark.parametrize("quality", ["fast", "good"])
def test_rows_do_not_depend_on_who_is_rounded_with_them(quality: str) -> None:
    rows, packing, seen = weights(), Packing(4, 64), statistics(inputs(300))
    together = values(round_rows(rows, packing, quality, seen), packing)
    apart = [values(round_rows(part, packing, quality, seen), packing) for part in (rows[:1], rows[1:7], rows[7:])]
    assert np.array_equal(together, np.concatenate(apart))


@pytest.mark.parametrize("importance", [False, True])
def test_a_group_is_rounded_alike_beside_any_number_of_others(importance: bool) -> None:
    """Numpy adds in another order where an array has one column, and computes leftover columns in another loop."""
    rows, packing = as_numpy(weights(64, 64)).reshape(64, 1, 64), Packing(4, 64)
    weighing = np.abs(inputs(1, 64)).astype(np.float32) if importance else None
    together = search(rows, weighing, packing, mx.bfloat16)
    for count in (1, 2, 3, 15, 16, 17, 33):
        few = search(rows[:count], weighing, packing, mx.bfloat16)
        assert np.array_equal(few.values(), together.values()[:count]), count


def test_rows_of_best_depend_on_their_neighbours_in_near_ties_only() -> None:
    """A matrix product of another height may add in another order, which moves a code where two are equally good."""
    rows, packing, seen = weights(), Packing(4, 64), statistics(inputs(300))
    together = values(round_rows(rows, packing, "best", seen), packing)
    apart = [values(round_rows(part, packing, "best", seen), packing) for part in (rows[:1], rows[1:7], rows[7:])]
    off = [(v - as_numpy(rows)) @ seen.carried[0] for v in (together, np.concatenate(apart))]
    assert np.isclose(*((o * o).sum() for o in off), rtol=0.02)


@pytest.mark.parametrize("quality", QUALITIES)
def test_the_same_rows_give_the_same_bits_again(quality: str) -> None:
    first, again = (round_rows(weights(), Packing(4, 64), quality, statistics(inputs(300))) for _ in range(2))
    assert all(mx.array_equal(a, b) for a, b in zip(first, again) if a is not None and b is not None)


@pytest.mark.parametrize("quality", QUALITIES)
@pytest.mark.parametrize("bits", BITS)
def test_rows_without_range_without_size_or_with_one_giant_are_rounded_like_any(quality: str, bits: int) -> None:
    odd = np.zeros((6, 128), np.float32)
    odd[1], odd[2, 5], odd[3], odd[4, ::2] = 0.7, 300.0, np.linspace(-1e-6, 1e-6, 128), -0.25
    odd[5] = np.where(np.arange(128) % 2, 1e-30, -1e-30)
    rows, packing = mx.array(odd).astype(mx.bfloat16), Packing(bits, 64)
    seen = statistics(inputs(200, 128))
    found, stock = (values(round_rows(rows, packing, q, seen), packing) for q in (quality, "stock"))
    assert np.isfinite(found).all()
    # Between the twelve values of two groups a row's error may move, but never grow past stock's under its measure.
    assert np.abs(found[0]).max() == 0
    assert np.abs(found - as_numpy(rows))[1:4].max() <= max(np.abs(stock - as_numpy(rows))[1:4].max() * 2, 0.01)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("quality", QUALITIES)
def test_what_is_not_finite_comes_out_as_stock_leaves_it_for_verification_to_find(quality: str, bad: float) -> None:
    values_ = as_numpy(weights(4))
    values_[1, 7] = bad
    rows = mx.array(values_).astype(mx.bfloat16)
    ours = round_rows(rows, Packing(4, 64), quality, statistics(inputs(100)))
    assert mx.array_equal(ours[0], mx.quantize(rows, 64, 4)[0])


def test_statistics_of_inputs_that_were_always_zero_do_not_stop_rounding() -> None:
    seen = Statistics(mx.zeros(256), mx.zeros((256, 256)))
    found = values(round_rows(weights(), Packing(4, 64), "best", seen), Packing(4, 64))
    assert np.abs(found - as_numpy(weights())).max() < 0.02  # a step of these weights' scales


def test_calibrated_qualities_without_statistics_do_what_they_can() -> None:
    rows, packing = weights(), Packing(4, 64)
    fast = round_rows(rows, packing, "fast")
    for quality in ("good", "best"):
        assert mx.array_equal(round_rows(rows, packing, quality)[0], fast[0])
    moments = Statistics(statistics(inputs(300)).second_moments)
    assert mx.array_equal(round_rows(rows, packing, "best", moments)[0], round_rows(rows, packing, "good", moments)[0])


def test_an_unknown_quality_is_named() -> None:
    with pytest.raises(ValueError, match="quality is 'finest'"):
        round_rows(weights(), Packing(4, 64), "finest")
