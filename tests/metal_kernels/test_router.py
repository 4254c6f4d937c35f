"""The router: softmax, top-k, renormalise, shared gate; the kernel against the definition."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen35.metal_kernels.router import columns, route_metal, route_reference
from tests.metal_emulator import SCHEDULES, Session

FAMILY = ((256, 8), (512, 10))  # 35B-A3B and 122B-A10B; 397B-A17B
DTYPES = (mx.float32, mx.float16, mx.bfloat16)


def logits(rows: int, width: int, dtype: mx.Dtype = mx.float32, seed: int = 0) -> mx.array:
    return (2 * mx.random.normal((rows, width), key=mx.random.key(seed))).astype(dtype)


def check(got: tuple[mx.array, mx.array], wanted: tuple[mx.array, mx.array]) -> None:
    """The choice to the last index; weights are float32 whatever the logits are."""
    assert [x.dtype for x in got] == [mx.uint32, mx.float32]
    assert np.array_equal(np.array(got[0]), np.array(wanted[0]))
    # A softmax over all experts, renormalised, against one over the chosen: float32 both.
    assert np.abs(np.array(got[1], np.float64) - np.array(wanted[1])).max() <= 1e-6


@pytest.mark.parametrize(("experts", "chosen"), [(5, 2), *FAMILY])
def test_definition_against_float64(experts: int, chosen: int) -> None:
    x = logits(3, experts + 1)
    indices, weights = (np.array(y) for y in route_reference(x, experts, chosen))
    assert indices.shape == weights.shape == (3, columns(chosen))
    for row, which, how_much in zip(np.array(x, np.float64), indices, weights):
        p = np.exp(row[:-1]) / np.exp(row[:-1]).sum()
        best = sorted(range(experts), key=lambda e: -p[e])[:chosen]
        assert which[:chosen].tolist() == best
        assert how_much[:chosen] == pytest.approx(p[best] / p[best].sum(), rel=1e-5)
        assert how_much[chosen] == pytest.approx(1 / (1 + np.exp(-row[-1])), rel=1e-5)
        assert not how_much[chosen + 1 :].any()
        assert not which[chosen:].any()


@pytest.mark.metal
@pytest.mark.parametrize(("experts", "chosen"), FAMILY)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernel_equals_the_definition_at_the_familys_sizes(
    metal: Session | None, dtype: mx.Dtype, experts: int, chosen: int
) -> None:
    x = logits(8, experts + 1, dtype)
    check(route_metal(x, experts, chosen), route_reference(x, experts, chosen))
    if metal:
        assert metal.total_launches() == 1
        assert metal.last.warnings == ()
        # Rows of 257 or 513 begin and end inside lines of 64 bytes.
        lines = 64 * sum(-(-size // 64) + 1 for size in [x.nbytes // 8, 4 * columns(chosen), 4 * columns(chosen)])
        assert metal.last.counters.device_bytes <= 8 * lines


@pytest.mark.metal
@pytest.mark.parametrize("metal", SCHEDULES, indirect=True)
@pytest.mark.parametrize("sizes", [(1, 7, 1, 8), (1, 8, 2, 9), (3, 31, 31, 32), (2, 33, 5, 40), (1, 1024, 31, 1025)])
def test_kernel_at_sizes_that_fill_no_simdgroup(metal: Session | None, sizes: tuple[int, int, int, int]) -> None:
    rows, experts, chosen, width = sizes
    x = logits(rows, width)
    check(route_metal(x, experts, chosen), route_reference(x, experts, chosen))


@pytest.mark.metal
@pytest.mark.parametrize("metal", SCHEDULES, indirect=True)
def test_of_equal_logits_the_lowest_index_is_chosen(metal: Session | None) -> None:
    """Logits of bfloat16 are equal often; reference and kernel must not differ by it, nor one run from the next."""
    coarse = mx.round(logits(4, 257, seed=3))
    rows = mx.concatenate([coarse, mx.zeros((1, 257)), mx.full((1, 257), -1e30)]).astype(mx.bfloat16)
    got = route_metal(rows, 256, 8)
    check(got, route_reference(rows, 256, 8))
    assert np.array(got[0])[4:, :8].tolist() == [list(range(8))] * 2


@pytest.mark.metal
def test_logits_far_apart_or_infinite_keep_the_choice_valid(metal: Session | None) -> None:
    x = np.full((3, 65), -np.inf, np.float32)
    x[0, [40, 3]] = 1e4, -1e4
    x[1, 7] = np.nan
    x[1, 9] = 5.0
    x[2, 64] = 3.0
    indices, weights = (np.array(y) for y in route_metal(mx.array(x), 64, 4))
    assert indices[:, :4].tolist() == [[40, 3, 0, 1], [9, 0, 1, 2], [0, 1, 2, 3]]
    assert weights[0].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    # What is broken upstream stays visible, and reads no expert that does not exist.
    assert np.isnan(weights[1, :4]).all()
    assert np.isnan(weights[2, :4]).all()


@pytest.mark.metal
def test_rows_of_a_wider_array_and_a_batch_of_windows(metal: Session | None) -> None:
    x = logits(6, 264)
    got = route_metal(x[2:5], 256, 8)
    check(got, route_reference(x[2:5], 256, 8))
    if metal:
        assert metal.last.copied == ()
    check(route_metal(x[::2, :257], 256, 8), route_reference(x[::2, :257], 256, 8))
    batch = x.reshape(2, 3, 264)
    check(route_metal(batch, 256, 8), route_reference(batch, 256, 8))


def test_arguments_that_do_not_fit_are_named() -> None:
    for bad in [(mx.zeros((1, 8)), 8, 2), (mx.zeros((1, 9)), 8, 9), (mx.zeros((1, 40)), 39, 32)]:
        with pytest.raises(ValueError, match=r"\[route\] logits"):
            route_metal(*bad)
