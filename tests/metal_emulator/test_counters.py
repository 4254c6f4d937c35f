"""What a launch cost, against kernels small enough to count by hand."""

from __future__ import annotations

import mlx.core as mx

from tests.metal_emulator import Options
from tests.metal_emulator.support import PLACE, run


def test_a_copy_moves_each_byte_once() -> None:
    _, session = run(PLACE + "o[i] = a[i];", threads=128, threadgroup=64)
    cost = session.last.counters
    assert cost.loaded == {"a": 512}
    assert cost.stored == {"o": 512}
    assert cost.unique == cost.threadgroup_unique == {"a": 512, "o": 512}
    assert (cost.device_loaded, cost.device_stored, cost.device_bytes) == (512, 512, 1024)
    assert (cost.threads, cost.threadgroups) == (128, 2)
    assert (cost.flops, cost.special, cost.simd_ops, cost.atomics) == (0, 0, 0, 0)


def test_what_every_threadgroup_reads_counts_once_for_each() -> None:
    # 4 threadgroups of 32 threads read all 64 floats: 4 lines, each by every thread 16 times.
    source = PLACE + "float s = 0; for (int j = 0; j < 64; j++) s += a[j]; o[i] = s;"
    _, session = run(source, mx.zeros(64), threads=128, threadgroup=32)
    cost = session.last.counters
    assert cost.loaded["a"] == 128 * 64 * 4
    assert cost.threadgroup_unique["a"] == 4 * 256
    assert cost.unique["a"] == 256


def test_half_precision_counts_half_the_bytes() -> None:
    x = mx.zeros(64, dtype=mx.bfloat16)
    _, session = run(PLACE + "o[i] = a[i];", x, dtype=mx.bfloat16)
    assert session.last.counters.device_bytes == 2 * 128


def test_flops_count_a_fused_multiply_add_as_two() -> None:
    # The loop bound is data, so that the compiler cannot do the arithmetic ahead of time.
    body = "float s = a[i]; for (int j = 0; j < b[0]; j++) s = fma(s, s, a[i]); o[i] = s;"
    _, session = run(PLACE + body, mx.ones(64), mx.array([10], dtype=mx.int32))
    assert session.last.counters.flops == 64 * 10 * 2
    _, session = run(PLACE + "o[i] = (a[i] + 1.5f) * a[i] - b[i];", mx.ones(64), mx.ones(64))
    assert session.last.counters.flops == 64 * 3


def test_special_functions_are_counted_apart() -> None:
    _, session = run(PLACE + "o[i] = exp(a[i]) + rsqrt(a[i] + 1.0f);")
    cost = session.last.counters
    assert cost.special == 64 * 2
    assert cost.flops == 64 * 3  # two additions, and the division in rsqrt


def test_simdgroup_operations_and_barriers_count_once_a_group() -> None:
    source = """
    threadgroup float b[64];
    b[t] = simd_sum(a[i]) + simd_shuffle_xor(a[i], 1);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    o[i] = b[63 - t];
    """
    _, session = run(PLACE + source, threads=128, threadgroup=64)
    cost = session.last.counters
    assert cost.simd_ops == 2 * 4  # 4 simdgroups
    assert cost.simdgroup_barriers == 4
    assert cost.threadgroup_barriers == 2  # 2 threadgroups
    assert cost.threadgroup_bytes == 256
    assert (cost.threadgroup_loaded, cost.threadgroup_stored) == (512, 512)


def test_matrix_products_count_their_flops() -> None:
    source = """
    simdgroup_float8x8 x, y, z = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    simdgroup_load(x, a, 8);
    simdgroup_load(y, b, 8);
    simdgroup_multiply_accumulate(z, x, y, z);
    simdgroup_multiply_accumulate(z, x, y, z);
    simdgroup_store(z, o, 8);
    """
    _, session = run(source, mx.ones((8, 8)), mx.ones((8, 8)), threads=32, threadgroup=32, shape=(8, 8))
    cost = session.last.counters
    assert cost.matrix_ops == 2
    assert cost.matrix_flops == 2 * 2 * 8 * 8 * 8
    assert cost.loaded == {"a": 256, "b": 256}


def test_atomics_are_counted() -> None:
    source = PLACE + "atomic_fetch_add_explicit(&o[i / 8], a[i], memory_order_relaxed);"
    out, session = run(source, shape=(8,), atomic_outputs=True, init_value=0.0)
    assert session.last.counters.atomics == 64
    assert mx.array_equal(out, mx.arange(64).astype(mx.float32).reshape(8, 8).sum(1))


def test_nothing_is_counted_where_nothing_is_checked() -> None:
    out, session = run(PLACE + "o[i] = a[i] + 1.0f;", options=Options(check=False))
    assert out[63].item() == 64
    assert session.last.counters.device_bytes == session.last.counters.flops == 0
