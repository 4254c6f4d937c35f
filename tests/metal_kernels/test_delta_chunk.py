"""The delta rule in chunks on Metal, against its definition, against float64, and what it costs beside others'."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlx_qwen35.metal_kernels.delta_chunk import CHUNK, delta_chunk
from mlx_qwen35.metal_kernels.delta_rule import gated_delta_stepwise
from mlx_qwen35.metal_kernels.operations import GATED_DELTA
from mlx_qwen35.metal_kernels.selection import shapes_of
from tests.metal_emulator import SCHEDULES, Session
from tests.metal_emulator.support import error
from tests.metal_kernels.delta_costs import CHUNKS_OF_8, of_mlx, ours
from tests.metal_kernels.delta_windows import Window, assert_same, in_float64, random_window

LENGTHS = (1, 7, 8, 9, 15, 16, 17, 63, 64, 65, 200)
SPLITS = (1, 2, 4)
OF_MLX = 102 * 16 * 2 * 8**3 / 8  # matrix FLOPs of a token and head; counted in test_mlx_gated_delta.py


def small(T: int, B: int = 1, Hk: int = 1, Hv: int = 2, Dk: int = 24, Dv: int = 96, seed: int = 0) -> Window:
    """Several simdgroups with each number of splits, so that a missing barrier is a race; Dk != Dv."""
    return random_window(T, B, Hk, Hv, Dk, Dv, seed)


def family(T: int, Hk: int, Hv: int, B: int = 1) -> Window:
    return random_window(T, B, Hk, Hv, Dk=128, Dv=128)


def no_complaints(metal: Session | None) -> None:
    if metal:
        assert all(launch.warnings == () and launch.copied == () for launch in metal.launches)


@pytest.mark.metal
@pytest.mark.parametrize("metal", SCHEDULES, indirect=True)
@pytest.mark.parametrize("T", LENGTHS)
def test_lengths_around_the_chunk(metal: Session | None, T: int) -> None:
    window = small(T)
    assert_same(delta_chunk(*window), gated_delta_stepwise(*window))
    if metal:
        assert metal.total_launches() == 2
    no_complaints(metal)


@pytest.mark.metal
@pytest.mark.parametrize(("Hv", "splits"), [(16, 4), (32, 2), (48, 2), (64, 1)])
def test_the_familys_shapes(metal: Session | None, Hv: int, splits: int) -> None:
    """One layer of 0.8B and 2B, 35B, 27B, 122B and 397B: a full chunk and a ragged one."""
    window = family(CHUNK + 3, 16, Hv)
    assert_same(delta_chunk(*window, splits=splits), gated_delta_stepwise(*window))
    no_complaints(metal)


@pytest.mark.metal
@pytest.mark.parametrize("splits", SPLITS)
@pytest.mark.parametrize("ratio", [1, 2, 3, 4])
def test_value_heads_read_their_key_head(metal: Session | None, ratio: int, splits: int) -> None:
    window = small(19, Hk=3, Hv=3 * ratio)
    assert_same(delta_chunk(*window, splits=splits), gated_delta_stepwise(*window))
    no_complaints(metal)


@pytest.mark.metal
@pytest.mark.parametrize(("Dk", "Dv", "splits"), [(8, 8, 1), (64, 64, 2), (40, 128, 1), (104, 24, 3)])
def test_widths_that_are_not_the_familys(metal: Session | None, Dk: int, Dv: int, splits: int) -> None:
    window = small(21, Dk=Dk, Dv=Dv)
    assert_same(delta_chunk(*window, splits=splits), gated_delta_stepwise(*window))
    no_complaints(metal)


@pytest.mark.metal
@pytest.mark.parametrize("metal", SCHEDULES, indirect=True)
def test_arrays_are_read_where_they_lie(metal: Session | None) -> None:
    """As the layer has them: v is columns of what q and k were made of; and in stranger ways."""
    q, k, v, log_decay, beta, state = window = small(37, B=2, Hk=2, Hv=4)
    B, T, Hv, Dv = v.shape
    columns = mx.concatenate([mx.ones((B, T, 5)), v.reshape(B, T, -1), mx.ones((B, T, 3))], axis=-1)
    strided = (
        mx.contiguous(q.swapaxes(1, 2)).swapaxes(1, 2),  # heads before tokens
        mx.contiguous(k.swapaxes(1, 3)).swapaxes(1, 3),  # elements before tokens
        mx.split(columns, [5, 5 + Hv * Dv], axis=-1)[1].reshape(v.shape),
        mx.repeat(log_decay, 3, axis=1)[:, 1::3],
        mx.concatenate([beta] * 3, axis=2)[..., Hv : 2 * Hv],
        mx.contiguous(mx.concatenate([state] * 2).swapaxes(2, 3)).swapaxes(2, 3)[2:],
    )
    expected = delta_chunk(*window)
    for found in (
        delta_chunk(*strided),
        *[delta_chunk(*window[:i], x, *window[i + 1 :]) for i, x in enumerate(strided)],
    ):
        assert all(mx.array_equal(x, y) for x, y in zip(found, expected))
    no_complaints(metal)


@pytest.mark.metal
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_narrow_inputs_are_computed_in_float32(metal: Session | None, dtype: mx.Dtype) -> None:
    *inputs, state = small(33)
    narrow = [x.astype(dtype) for x in inputs]
    assert_same(
        delta_chunk(*narrow, state=state), gated_delta_stepwise(*[x.astype(mx.float32) for x in narrow], state=state)
    )
    no_complaints(metal)


@pytest.mark.metal
def test_a_row_does_not_depend_on_its_company(metal: Session | None) -> None:
    window = small(35, B=3)
    assert_same(together := delta_chunk(*window), gated_delta_stepwise(*window))
    for row in range(3):
        alone = delta_chunk(*[x[row : row + 1] for x in window])
        assert all(mx.array_equal(one, all_[row : row + 1]) for one, all_ in zip(alone, together))


@pytest.mark.metal
def test_windows_of_one_text_carry_the_state(metal: Session | None) -> None:
    *inputs, state = small(90)
    whole = delta_chunk(*inputs, state=state)
    for lengths, exact in [((32, 16, 42), True), ((29, 1, 60), False)]:  # at the edges of chunks, or not
        outputs, carried, start = [], state, 0
        for length in lengths:
            output, carried = delta_chunk(*[x[:, start : start + length] for x in inputs], state=carried)
            outputs.append(output)
            start += length
        found = mx.concatenate(outputs, axis=1), carried
        assert_same(found, whole)
        assert exact == all(mx.array_equal(x, y) for x, y in zip(found, whole))


@pytest.mark.metal
def test_a_fresh_state_is_zero_and_is_not_read(metal: Session | None) -> None:
    *inputs, state = small(20)
    fresh, zero = delta_chunk(*inputs, state=None), delta_chunk(*inputs, state=mx.zeros_like(state))
    assert all(mx.array_equal(x, y) for x, y in zip(fresh, zero))


@pytest.mark.metal
def test_equal_keys_without_decay_stay_exact(metal: Session | None) -> None:
    """Where a series for the triangular inverse would cancel."""
    q, k, v, log_decay, beta, state = small(48)
    window = (q, mx.broadcast_to(k[:, :1], k.shape), v, mx.zeros_like(log_decay), mx.ones_like(beta), state)
    assert_same(delta_chunk(*window), gated_delta_stepwise(*window))


@pytest.mark.metal
@pytest.mark.parametrize("log_decay", [-1e-7, -20.0, -90.0, -float("inf")])
def test_extreme_decays_stay_finite_and_equal(metal: Session | None, log_decay: float) -> None:
    q, k, v, mixed, beta, state = small(35)
    mixed = mx.where(mx.arange(35)[:, None] % 3 == 1, log_decay, mixed)  # between gentle ones
    for decays in (mixed, mx.full(mixed.shape, log_decay)):
        window = (q, k, v, decays, beta, state)
        assert_same(delta_chunk(*window), gated_delta_stepwise(*window))


@pytest.mark.metal
def test_half_of_mlxs_matrix_products_and_a_fifth_of_its_loads() -> None:
    """Per token and head; S comes in and goes out once a window, which in longer ones is less."""
    for R in (1, 2, 3, 4):
        found = ours(family(4 * CHUNK, 1, R))
        # Tiles: S read by q and k, the two triangles, S written; and the two products of a key head.
        tiles = 16 * (4 * 16 + 2 * 3 + 2 * 16) + 6 * 16 / R
        assert found.matrix_flops == tiles * 2 * 8**3 / CHUNK <= 0.55 * OF_MLX
        assert found.loaded <= 10 * 1024
        assert found.launches == 2


@pytest.mark.metal
def test_threadgroup_memory_and_barriers(metal: Session | None) -> None:
    window = family(3 * CHUNK, 1, 2)
    delta_chunk(*window)
    if metal:
        factors, scan = (launch.counters for launch in metal.launches)
        assert factors.threadgroup_bytes <= 2304
        assert scan.threadgroup_bytes <= 19344  # of 32 KB, so that one core holds more than one threadgroup
        assert factors.threadgroup_barriers == factors.threadgroups  # after the products
        assert scan.threadgroup_barriers == 3 * 2 * scan.threadgroups  # before and after each chunk
        assert factors.simdgroup_barriers == scan.simdgroup_barriers == 0  # nothing is handed over within one


@pytest.mark.slow
@pytest.mark.metal
def test_a_long_window_of_a_layer_of_35b() -> None:
    window = family(1024, 16, 32)
    found, theirs = ours(window), of_mlx(random_window(1024, 1, 1, 2, 128, 128), CHUNKS_OF_8)
    assert theirs.matrix_flops == OF_MLX
    assert found.matrix_flops <= 0.52 * theirs.matrix_flops
    assert found.loaded <= 0.1 * theirs.loaded
    assert found.moved <= 0.8 * theirs.moved


@pytest.mark.slow
@pytest.mark.metal
@pytest.mark.parametrize("splits", SPLITS)
def test_error_against_float64(metal: Session | None, splits: int) -> None:
    window = family(1024, 4, 8)
    for found, expected in zip(delta_chunk(*window, splits=splits), in_float64(window)):
        assert error(found, expected) <= 1e-6  # measured: 4e-7, as of the definition in float32


def test_windows_of_more_than_a_chunk_are_taken() -> None:
    """All of a shape class or none: a choice holds for the class."""
    candidates = [c for c in GATED_DELTA.candidates if c.name.startswith("metal")]
    assert len(candidates) == len(SPLITS)
    for candidate in candidates:
        for T in (1, 8, 9, 15, 16, 17, 32, 8192):
            q, v = mx.zeros((1, T, 16, 128)), mx.zeros((1, T, 48, 128))
            assert candidate.fits(q, q, v) == (T > CHUNK)
            assert candidate.fits(q[..., :64], q[..., :64], v[..., :64]) == (T > CHUNK)
            assert not candidate.fits(q[..., :36], q[..., :36], v)
            assert not candidate.fits(q, q, v[..., :36])
    assert shapes_of(mx.zeros(CHUNK)) != shapes_of(mx.zeros(CHUNK + 1)) == shapes_of(mx.zeros(2 * CHUNK))


def test_arguments_that_do_not_fit_are_named() -> None:
    q, k, v, log_decay, beta, state = window = small(5)
    with pytest.raises(ValueError, match=r"k is \(1, 4, 1, 24\) but must be \(1, 5, 1, 24\)"):
        delta_chunk(q, k[:, :4], v, log_decay, beta, state)
    with pytest.raises(ValueError, match=r"beta is \(1, 5, 1\) but must be \(1, 5, 2\)"):
        delta_chunk(q, k, v, log_decay, beta[..., :1], state)
    with pytest.raises(ValueError, match=r"state is .*float16 but must be \(1, 2, 96, 24\) float32"):
        delta_chunk(q, k, v, log_decay, beta, state.astype(mx.float16))
    with pytest.raises(ValueError, match="with Hv a multiple of Hk"):
        delta_chunk(*small(5, Hk=2, Hv=3))
    with pytest.raises(ValueError, match=r"is \(1, 0, 1, 24\)"):
        delta_chunk(*[x[:, :0] for x in window[:5]], state=state)
    for Dk, Dv, splits in ((20, 96, 1), (136, 96, 1), (24, 96, 5), (24, 72, 1), (24, 144, 1)):
        with pytest.raises(ValueError, match=f"Dk = {Dk} must be .* Dv = {Dv} must give each of the {splits} splits"):
            delta_chunk(*small(5, Dk=Dk, Dv=Dv), splits=splits)
