"""Metal as the emulator speaks it: vectors, simdgroup functions, matrices, memory, odd grids."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from tests.metal_emulator import SCHEDULES, KernelFault, Options
from tests.metal_emulator.compile import Unit
from tests.metal_emulator.kernel import Kernel, Out
from tests.metal_emulator.options import Schedule
from tests.metal_emulator.support import PLACE, error, run


def test_vectors_swizzles_and_casts() -> None:
    source = """
    float4 v = float4(a[i], 1, 2, 3);
    half2 h = half2(v.xy);
    vec<float, 2> w = vec<float, 2>(h.x, h.y);
    uint bits = as_type<uint>(w.x);
    o[i] = dot(v, v) + as_type<float>(bits) + float(ushort(1.0h));
    """
    out, _ = run(PLACE + source)
    a = np.arange(64.0)
    assert np.array_equal(np.array(out), a**2 + 14 + a + 1)


def test_half_and_bfloat_round_after_every_operation() -> None:
    x = mx.array([1.0, 2049.0, 3.3, 0.1] * 16)
    for kind, dtype in (("half", mx.float16), ("bfloat16_t", mx.bfloat16)):
        out, _ = run(PLACE + f"{kind} s = ({kind})b[i] + ({kind})b[i]; o[i] = s * ({kind})3;", a := x, x, dtype=dtype)
        low = a.astype(dtype)
        assert mx.array_equal(out, (low + low) * mx.array(3, dtype))


def test_simdgroup_functions_exchange_values() -> None:
    source = """
    o[i] = simd_prefix_exclusive_sum(a[i]) + 1000 * simd_shuffle_down(a[i], 3) + 1e6f * simd_broadcast(a[i], 7)
         + 1e8f * float(simd_max(a[i]) == 31) + float(simd_any(t == 5)) * 0.5f;
    """
    out, _ = run(PLACE + source, threads=32, threadgroup=32)
    a = np.arange(32.0)
    # Of a shuffle down, lanes without a source keep their own value.
    down = np.where(a < 29, a + 3, a)
    wanted = (np.cumsum(a) - a + 1000 * down + 7e6 + 1e8 + 0.5).astype(np.float32)
    assert error(out, wanted) < 1e-6  # sums of float32 near 1e8


def test_each_arm_of_a_branch_sums_its_own_lanes() -> None:
    out, _ = run(PLACE + "if (t % 32 < 16) o[i] = simd_sum(a[i]); else o[i] = simd_sum(-a[i]);")
    a = np.arange(64.0).reshape(2, 2, 16)
    sums = a.sum(-1, keepdims=True) * np.array([1, -1])[None, :, None]
    assert np.array_equal(np.array(out), np.broadcast_to(sums, a.shape).reshape(-1))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_tree_reduction_through_threadgroup_memory(schedule: Schedule) -> None:
    source = """
    threadgroup float b[64];
    b[t] = a[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint s = 32; s; s /= 2) {
      if (t < s) b[t] += b[t + s];
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    o[i] = b[0];
    """
    out, _ = run(PLACE + source, threads=128, options=Options(schedule=schedule))
    assert np.array_equal(np.array(out), np.repeat([2016.0, 6112.0], 64))


def test_threadgroup_at_the_edge_of_the_grid_is_smaller() -> None:
    source = "o[i] = simdgroups_per_threadgroup * 10000 + threads_per_threadgroup.x * 10 + threadgroups_per_grid.x;"
    out, _ = run(PLACE + source, threads=100, threadgroup=64)
    assert np.array_equal(np.array(out), np.where(np.arange(100) < 64, 20642, 20362))


def test_simdgroup_matrix_loads_multiplies_and_stores() -> None:
    a, b = (np.random.default_rng(seed).standard_normal((8, 8)).astype(np.float32) for seed in (0, 1))
    source = """
    simdgroup_float8x8 x, y, z = make_filled_simdgroup_matrix<float, 8, 8>(1.0f);
    simdgroup_load(x, a, 8);
    simdgroup_load(y, b, 8, ulong2(0, 0), true);
    simdgroup_multiply_accumulate(z, x, y, z);
    z.thread_elements()[0] *= 2;
    simdgroup_store(z, o, 8);
    """
    out, _ = run(source, mx.array(a), mx.array(b), threads=32, threadgroup=32, shape=(8, 8))
    wanted = a @ b.T + 1
    wanted[:, ::2] *= 2  # a lane's first element is in an even column
    assert error(out, wanted) < 1e-6  # float32 sums of 8 products


@pytest.mark.slow
def test_offsets_past_32_bits() -> None:
    text = """
    [[kernel]] void read(const device uchar* a [[buffer(0)]], device uchar* o [[buffer(1)]],
                         uint i [[thread_index_in_simdgroup]]) {
      INDEX at = INDEX(1 << 30) * INDEX(i) + 7;
      o[i] = a[at];
    }
    """
    stack = np.zeros(5 << 30, np.uint8)
    stack[7 :: 1 << 30] = [1, 2, 3, 4, 5]
    buffers = {0: stack, 1: Out((5,), np.uint8)}
    wide = Kernel(Unit(text.replace("INDEX", "size_t"), "read"))
    assert wide.run(buffers, (5, 1, 1), (5, 1, 1)).outputs[1].tolist() == [1, 2, 3, 4, 5]
    narrow = Kernel(Unit(text.replace("INDEX", "int"), "read"))
    with pytest.raises(KernelFault, match="out-of-bounds load: 1 bytes at byte -2147483641"):
        narrow.run(buffers, (5, 1, 1), (5, 1, 1))


def test_threadgroups_see_nothing_of_each_other() -> None:
    source = "threadgroup float b[32]; b[t] = a[i]; simdgroup_barrier(mem_flags::mem_threadgroup); o[i] = b[31 - t];"
    out, _ = run(PLACE + source, threads=96, threadgroup=32)
    assert np.array_equal(np.array(out), np.arange(96.0).reshape(3, 32)[:, ::-1].reshape(-1))
