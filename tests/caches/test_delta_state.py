"""What several DeltaNet states do together: rows keep their own, whatever order they come in, and hold no more."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlx_qwen35.caches.delta_state import DeltaState
from mlx_qwen35.caches.kv import KVCache
from mlx_qwen35.metal_kernels.delta_rows import DeltaMemory, HeldWindow
from mlx_qwen35.metal_kernels.delta_rule import gated_delta_stepwise

TAIL, STATE = (3, 10), (2, 5, 7)
W = 4  # tokens of the windows that are held


def moved_together(count: int, held: bool = False) -> list[DeltaState]:
    rows = [DeltaState() for _ in range(count)]
    inputs, states = mx.random.normal((count * (3 + W * held), TAIL[1])), mx.random.normal((count, *STATE))
    window = None
    if held:
        k, v = mx.random.normal((count * W, 1, STATE[2])), mx.random.normal((count * W, *STATE[:2]))
        log_decay, beta = -mx.random.uniform(shape=(count * W, 2)), mx.random.uniform(shape=(count * W, 2))
        window = HeldWindow(k * STATE[2] ** -0.5, v, log_decay, beta)
    DeltaState.move(rows, DeltaMemory(inputs, states, window), [W if held else 1] * count, [held] * count)
    return rows


def together(rows: list[DeltaState]) -> tuple[mx.array, mx.array]:
    """Tails and states of rows that hold no window, row by row."""
    known = DeltaState.together(rows)
    assert known is not None
    return known[0].memory.inputs.reshape(len(rows), *TAIL), known[0].memory.state


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2], [0, 1], [1], [2, 0]])
def test_rows_in_another_order_bring_their_own_states(order: list[int]) -> None:
    rows = moved_together(3)
    tails, states = together([rows[i] for i in order])
    for at, i in enumerate(order):
        tail, state = rows[i].snapshot()
        assert mx.array_equal(tails[at], tail[0])
        assert mx.array_equal(states[at], state[0])


def test_rows_that_stay_together_are_not_copied() -> None:
    rows = moved_together(3, held=True)
    for row, kept in zip(rows, (0, 2, W)):
        row.commit(kept)
    known = DeltaState.together(rows)
    assert known is not None
    moved, kept = known
    assert kept == (0, 2, W)
    assert all(a is b for a, b in zip(moved.arrays, rows[1].state))


def test_a_row_takes_its_own_part_of_a_held_window_along() -> None:
    """What a row holds after a commit does not depend on who it moved with, nor on who it moves with next."""
    rows = moved_together(3, held=True)
    for row, kept in zip(rows, (1, 0, 3)):
        row.commit(kept)
    assert rows[0]._moved is not None
    moved = rows[0]._moved
    tails, states = together([rows[2], rows[0]])
    for at, (i, kept) in enumerate([(2, 3), (0, 1)]):
        start = i * (3 + W) + kept
        assert mx.array_equal(tails[at], moved.memory.inputs[start : start + 3])
        window = moved.memory.window
        assert window is not None
        k, v, log_decay, beta = (x[i * W : i * W + kept][None] for x in vars(window).values())
        wanted = gated_delta_stepwise(k, k, v, log_decay, beta, moved.memory.state[i : i + 1])[1]
        assert mx.allclose(states[at], wanted[0], rtol=1e-5, atol=1e-6)  # two float32 forms of one rule


def test_a_window_is_committed_before_anything_else() -> None:
    (row,) = moved_together(1, held=True)
    with pytest.raises(AssertionError, match="not committed"):
        row.snapshot()
    with pytest.raises(AssertionError, match="not committed"):
        DeltaState.together([row])


def test_a_row_that_never_moved_brings_zeros() -> None:
    rows = [*moved_together(2), DeltaState()]
    tails, states = together(rows)
    assert mx.array_equal(tails[2], mx.zeros(TAIL))
    assert mx.array_equal(states[2], mx.zeros(STATE))


def test_what_is_kept_does_not_hold_the_buffer_it_was_cut_from() -> None:
    """A slice of an MLX array keeps all of it in memory: a checkpoint of one row would cost the whole batch."""
    mx.clear_cache()
    before = mx.get_active_memory()
    rows = [DeltaState() for _ in range(64)]
    DeltaState.move(rows, DeltaMemory(mx.zeros((64 * 3, 1000)), mx.zeros((64, 8, 64, 64))), [1] * 64, [False] * 64)
    cache = KVCache()
    cache.extend(mx.zeros((1, 4, 4096, 64)), mx.zeros((1, 4, 4096, 64)))
    kept = rows[3].snapshot(), cache.segment(10, 20)
    mx.eval(kept)
    nbytes = sum(a.nbytes for part in kept for a in part)
    del rows, cache
    assert mx.get_active_memory() - before < 2 * nbytes
