"""The table of launches, by hand for small graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import pytest

from mlx_qwen35.counting.graph import record
from mlx_qwen35.counting.launches import Tally, tally
from mlx_qwen35.metal_kernels.delta_chunk import delta_chunk
from mlx_qwen35.metal_kernels.rms_norm import add_rms_norm_metal
from mlx_qwen35.models import attention

X = mx.zeros((4, 16, 32), mx.bfloat16)


def counted(function: Callable[..., mx.array | Sequence[mx.array]], *inputs: mx.array, **shares: float) -> Tally:
    def listed(arrays: Sequence[mx.array]) -> list[mx.array]:
        result = function(*arrays)
        return [result] if isinstance(result, mx.array) else list(result)

    graph = record(listed, list(inputs))
    return tally(graph, {v.key: share for v, share in zip(graph.inputs, shares.values())})


@pytest.mark.parametrize(
    ("launches", "function"),
    [
        (0, lambda x: x.reshape(64, 32)[None].swapaxes(1, 2)[..., 3:5]),
        (1, lambda x: x.swapaxes(0, 1).reshape(-1)),
        (0, lambda x: x[:1].swapaxes(0, 1).reshape(-1)),  # turning an axis of one moves nothing
        (1, lambda x: x.swapaxes(0, 1) * 2),
        (1, lambda x: (x.swapaxes(0, 1) * 2).swapaxes(0, 1).reshape(-1)),  # a result lies as its input did
        (2, lambda x: (x[:, ::2] * x[:, 1::2]).reshape(-1) + 1),  # but not where there are gaps
        (2, lambda x: mx.concatenate([x, x], axis=1)),
        (3, lambda x: mx.stack([x, x, x])),
        (2, lambda x: mx.pad(x, [(0, 1), (0, 0), (0, 0)])),
        (0, lambda x: mx.split(x, [3], axis=1)),
        (1, lambda x: mx.fast.rms_norm(x, None, 1e-6)),
        (2, lambda x: mx.fast.rms_norm(x[..., :16], None, 1e-6)),  # rows with gaps are copied first
        (1, lambda x: mx.fast.rope(x, 32, traditional=False, base=1e4, scale=1, offset=3)),
        (2, lambda x: mx.fast.rope(x, 8, traditional=False, base=1e4, scale=1, offset=3)),
        (1, lambda x: mx.argpartition(x, 3, axis=-1)),
        (1, lambda x: mx.softmax(x, axis=-1, precise=True)),
        (1, lambda x: x.sum(-1)),
        (0, lambda x: x.astype(mx.bfloat16)),
        (1, lambda x: x[..., :8] @ x[..., 8:16].swapaxes(1, 2)),  # products skip gaps between rows
        (3, lambda x: x[..., ::2] @ x[..., 1::2].swapaxes(1, 2)),  # but not within
        (2, lambda x: x[:, 0, None, ::2] @ x.swapaxes(1, 2)[:, 16:]),
    ],
)
def test_launches_of(launches: int, function: Callable[..., mx.array]) -> None:
    assert counted(function, X).launches == launches


def test_a_cache_write_moves_what_is_new() -> None:
    def write(cache: mx.array, new: mx.array) -> mx.array:
        cache[:, 3:4] = new
        return cache

    seen = counted(write, X, X[:, :1])
    assert (seen.launches, seen.nbytes) == (1, 2 * 4 * 32 * 2)


def test_a_kernel_that_is_given_strided_inputs_costs_their_copies() -> None:
    weight = mx.ones(32)
    assert counted(lambda x, w: add_rms_norm_metal(x, x, w, 1e-6), X, weight).launches == 1
    assert counted(lambda x, w: add_rms_norm_metal(x[:, ::2], x[:, ::2], w, 1e-6), X, weight).launches == 3


def test_a_kernel_that_reads_by_strides_costs_none() -> None:
    q, v, gates = mx.zeros((1, 40, 2, 16)), mx.zeros((1, 40, 8, 16)), mx.zeros((1, 40, 4))
    seen = counted(lambda q, v, g: delta_chunk(q, q, v[:, :, ::2], g, g, None), q, v, gates)
    assert seen.names == {"delta_chunk_factors": 1, "delta_chunk_scan_fresh": 1}
    # Three chunks of four heads, [17, 32] each, written and read; q twice, half of v and the gates once; y and S.
    assert seen.nbytes == 4 * (2 * 3 * 4 * 17 * 32 + 2 * q.size + v.size // 2 + gates.size + v.size // 2 + 4 * 16 * 16)


@pytest.mark.parametrize(
    ("launches", "query"),
    [
        (1, lambda x: x[:1]),
        (1, lambda x: x[:1].swapaxes(1, 2)),  # tokens before heads in memory
        (2, lambda x: x.swapaxes(1, 2)),  # but not of two sequences
        (2, lambda x: x[:1, :, :2]),  # some of each head's tokens
        (2, lambda x: x[:1, :, :, :16]),  # a part of each
    ],
)
def test_queries_are_copied_where_attention_cannot_read_them(
    launches: int, query: Callable[[mx.array], mx.array]
) -> None:
    def attend(x: mx.array, keys: mx.array) -> mx.array:
        q = query(x)
        k = keys[: q.shape[0], :, :, : q.shape[3]]
        return mx.fast.scaled_dot_product_attention(q, k, k, scale=1.0)

    assert counted(attend, mx.zeros((2, 8, 4, 32)), mx.zeros((2, 1, 64, 32))).launches == launches


def test_a_compiled_function_reads_what_lies_with_gaps() -> None:
    """Attention's gate: a column of what one matmul made."""
    x, gates = mx.zeros((1, 4, 32), mx.bfloat16), mx.zeros((1, 4, 2, 32), mx.bfloat16)
    seen = counted(lambda x, g: attention._gated(x, g[:, :, 1]).reshape(1, -1), x, gates)
    assert (seen.launches, seen.nbytes) == (1, 3 * x.nbytes)


def test_bytes_of_a_product_of_which_a_part_is_read() -> None:
    x, w = mx.zeros((1, 64), mx.bfloat16), mx.zeros((32, 64), mx.bfloat16)
    assert counted(lambda x, w: x @ w.T, x, w).nbytes == 2 * (64 + 32 * 64 + 32)
    assert counted(lambda x, w: x @ w.T, x, w, x=1.0, w=0.25).nbytes == 2 * (64 + 8 * 64 + 32)


def test_what_is_broadcast_is_read_once() -> None:
    assert counted(lambda x, y: x * y, X, mx.zeros((1, 1, 32), mx.bfloat16)).nbytes == 2 * (2 * 4 * 16 * 32 + 32)


def test_what_is_given_twice_is_read_once() -> None:
    assert counted(lambda x: x * x, X).nbytes == 2 * X.nbytes


def test_a_lookup_reads_the_rows_it_wants() -> None:
    assert counted(lambda w, i: w[i], mx.zeros((1000, 32), mx.bfloat16), mx.zeros(2, mx.int32)).nbytes == 2 * 128 + 8
