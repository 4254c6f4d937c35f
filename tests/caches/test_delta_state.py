"""What several DeltaNet states do together: rows keep their own, whatever order they come in, and hold no more."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlx_qwen35.caches.delta_state import DeltaState
from mlx_qwen35.caches.kv import KVCache

TAIL, STATE = (3, 10), (2, 5, 7)


def moved_together(count: int) -> list[DeltaState]:
    rows = [DeltaState() for _ in range(count)]
    tails, states = mx.random.normal((count, *TAIL)), mx.random.normal((count, *STATE))
    DeltaState.advance_together(rows, tails, states, 1)
    return rows


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2], [0, 1], [1], [2, 0]])
def test_rows_in_another_order_bring_their_own_states(order: list[int]) -> None:
    rows = moved_together(3)
    tails, states = DeltaState.together([rows[i] for i in order])
    assert tails is not None
    assert states is not None
    for at, i in enumerate(order):
        tail, state = rows[i].snapshot()
        assert mx.array_equal(tails[at], tail[0])
        assert mx.array_equal(states[at], state[0])


def test_a_row_that_never_moved_brings_zeros() -> None:
    rows = [*moved_together(2), DeltaState()]
    tails, states = DeltaState.together(rows)
    assert tails is not None
    assert states is not None
    assert mx.array_equal(tails[2], mx.zeros(TAIL))
    assert mx.array_equal(states[2], mx.zeros(STATE))


def test_what_is_kept_does_not_hold_the_buffer_it_was_cut_from() -> None:
    """A slice of an MLX array keeps all of it in memory: a checkpoint of one row would cost the whole batch."""
    mx.clear_cache()
    before = mx.get_active_memory()
    rows = [DeltaState() for _ in range(64)]
    DeltaState.advance_together(rows, mx.zeros((64, 3, 1000)), mx.zeros((64, 8, 64, 64)), 1)
    cache = KVCache()
    cache.extend(mx.zeros((1, 4, 4096, 64)), mx.zeros((1, 4, 4096, 64)))
    kept = rows[3].snapshot(), cache.segment(10, 20)
    mx.eval(kept)
    nbytes = sum(a.nbytes for part in kept for a in part)
    del rows, cache
    assert mx.get_active_memory() - before < 2 * nbytes
