"""MLX's own quantized, gather, GEMM and attention kernels, unmodified, against float64.

Tolerances: float32 sums of up to 2,048 terms (1e-6 of the largest); float16 and bfloat16 outputs round once, and their
inner sums are float32.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from tests.metal_emulator.mlx_headers import (
    QUANTIZED,
    Quantized,
    bits,
    from_bits,
    in_every_order,
    int32,
    int64,
    kernel,
    output,
    random,
)
from tests.metal_emulator.support import error, written_for

pytestmark = [pytest.mark.metal, written_for("mlx", "0.32.")]


def test_quantized_matrix_times_vector() -> None:
    K, N = 2048, 64
    w, x = Quantized(N, K), random(1, K, seed=1)
    buffers = {
        0: w.packed,
        1: w.scales,
        2: w.biases,
        3: x,
        4: output((1, N)),
        5: int32(K),
        6: int32(N),
        7: int32(0),
        8: int32(1, K),
        9: int64(K, 1),
        10: int32(0),
        11: int32(N, K // 8),
        12: int64(K // 8, 1),
        13: int64(K // 64, 1),
        14: int64(K // 64, 1),
    }
    made = kernel(QUANTIZED, "affine_qmv_fast", "float, 64, 4, false")
    done = in_every_order(made, buffers, 4, (32, 2 * N // 8, 1), (32, 2, 1))
    assert error(done.outputs[4], x @ w.meant.T) < 1e-6
    assert done.faults == ()
    # Each weight is read once: 4 bits and its share of a scale and a bias, whole lines.
    assert done.counters.unique["w"] == N * K // 2
    assert done.counters.loaded["w"] == N * K // 2


def test_quantized_matrix_times_vector_where_the_last_rows_overlap() -> None:
    K, N = 256, 250
    w, x = Quantized(N, K, dtype=mx.float16), random(1, K, seed=1).astype(np.float16)
    buffers = {
        0: w.packed,
        1: w.scales,
        2: w.biases,
        3: x,
        4: output((1, N), np.float16),
        5: int32(K),
        6: int32(N),
        7: int32(0),
        8: int32(1, K),
        9: int64(K, 1),
        10: int32(0),
        11: int32(N, K // 8),
        12: int64(K // 8, 1),
        13: int64(K // 64, 1),
        14: int64(K // 64, 1),
    }
    made = kernel(QUANTIZED, "affine_qmv", "half, 64, 4, false")
    done = in_every_order(made, buffers, 4, (32, 2 * ((N + 7) // 8), 1), (32, 2, 1))
    # Its own sums are float16 in part; float16 rounds at 2^-11.
    assert error(done.outputs[4], x.astype(np.float64) @ w.meant.T) < 2 * 2.0**-11
    assert done.faults == ()
    # 250 rows by fours: the last simdgroup repeats two rows of the one before, with the same values.
    assert {w.kind for w in done.warnings} == {"device location written by two threads"}


def test_gather_of_experts_times_vector() -> None:
    E, K, N, chosen = 8, 512, 64, 4
    w, x = Quantized(E, N, K, dtype=mx.bfloat16), bits(mx.array(random(1, K, seed=1)).astype(mx.bfloat16))
    experts = np.random.default_rng(2).permutation(E)[:chosen].astype(np.uint32)
    buffers = {
        0: w.packed,
        1: w.scales,
        2: w.biases,
        3: x,
        4: np.zeros(chosen, np.uint32),
        5: experts,
        6: output((chosen, 1, N), np.uint16),
        7: int32(K),
        8: int32(N),
        9: int32(1),
        10: int32(1, 1, K),
        11: int64(K, K, 1),
        12: int32(1),
        13: int32(E, N, K // 8),
        14: int64(N * K // 8, K // 8, 1),
        15: int64(N * K // 64, K // 64, 1),
        16: int64(N * K // 64, K // 64, 1),
        17: int32(1),
        18: int32(chosen),
        19: int64(1),
        20: int64(1),
    }
    made = kernel(QUANTIZED, "affine_gather_qmv_fast", "bfloat16_t, 64, 4")
    done = in_every_order(made, buffers, 6, (32, 2 * N // 8, chosen), (32, 2, 1))
    wanted = np.stack([from_bits(x)[0] @ w.meant[e].T for e in experts])
    # One rounding to bfloat16, 2^-9 of each value, and the scales' own.
    assert error(from_bits(done.outputs[6])[:, 0], wanted) < 2.0**-7
    assert done.faults == ()


def test_quantized_matrix_product_with_ragged_rows() -> None:
    M, K, N = 45, 256, 64
    w, x = Quantized(N, K), random(M, K, seed=1)
    buffers = {
        0: w.packed,
        1: w.scales,
        2: w.biases,
        3: x,
        4: output((M, N)),
        5: int32(K),
        6: int32(N),
        7: int32(M),
        8: int32(0),
        9: int32(M, K),
        10: int64(K, 1),
        11: int32(0),
        12: int32(N, K // 8),
        13: int64(K // 8, 1),
        14: int64(K // 64, 1),
        15: int64(K // 64, 1),
    }
    made = kernel(QUANTIZED, "affine_qmm_t", "float, 64, 4, true, false")
    done = in_every_order(made, buffers, 4, (32 * (N // 32), 2 * ((M + 31) // 32), 2), (32, 2, 2))
    assert error(done.outputs[4], x @ w.meant.T) < 1e-6
    assert done.faults == ()
    assert done.counters.matrix_flops == 2 * 64 * N * K  # rows in whole tiles of 32


def test_sorted_gather_of_experts_times_matrix() -> None:
    E, M, K, N = 6, 70, 256, 64
    w, x = Quantized(E, N, K), random(M, K, seed=1)
    expert = np.sort(np.random.default_rng(2).integers(0, E, M))
    starts = np.concatenate([[0], np.cumsum(np.bincount(expert, minlength=E))]).astype(np.int32)
    made = kernel(
        QUANTIZED, "affine_gather_qmm_rhs", "float, 64, 4, 16, 32, 32, 1, 2, true", {200: False, 201: True, 202: True}
    )
    buffers = {
        0: x,
        1: w.packed,
        2: w.scales,
        3: w.biases,
        4: starts,
        5: output((M, N)),
        6: int32(M),
        7: int32(N),
        8: int32(K),
        9: int32(E),
    }
    done = in_every_order(made, buffers, 5, (32 * (N // 32), 2 * (M // 16 + E), 1), (32, 2, 1))
    assert error(done.outputs[5], np.stack([x[i] @ w.meant[expert[i]].T for i in range(M)])) < 1e-6
    assert done.faults == ()


def test_half_precision_matrix_product() -> None:
    M, N, K = 70, 96, 128
    a, b = random(M, K).astype(np.float16), random(K, N, seed=1).astype(np.float16)
    headers = ("utils.h", "steel/gemm/gemm.h", "steel/gemm/kernels/steel_gemm_fused.h")
    constants = {10: False, 100: False, 110: False, 200: False, 201: True, 202: True}
    made = kernel(headers, "gemm", "half, 32, 32, 16, 2, 2, false, false, float", constants)
    sizes = (int32(M, N, K, K, N, N, N // 32, (M + 31) // 32), int64(0, 0, 0), int32(0, K // 16, 0, 0))
    packed = np.frombuffer(b"".join(part.tobytes() for part in sizes), np.uint8)
    buffers = {0: a, 1: b, 3: output((M, N), np.float16), 4: packed}
    done = in_every_order(made, buffers, 3, (32 * (N // 32), 2 * ((M + 31) // 32), 2), (32, 2, 2))
    assert error(done.outputs[3], a.astype(np.float64) @ b) < 2.0**-11
    assert done.faults == ()


def test_attention_of_one_query() -> None:
    H, Hk, N, D = 8, 2, 100, 128
    q, k, v = random(H, D), random(Hk, N, D, seed=1), random(Hk, N, D, seed=2)
    made = kernel(
        ("utils.h", "sdpa_vector.h"), "sdpa_vector", "float, 128, 128", dict.fromkeys(range(20, 26), False) | {26: 1}
    )
    one = [np.array([value], np.uint64) for value in (N * D, D, N * D, D)]
    buffers = {
        0: q,
        1: k,
        2: v,
        3: output((H, D)),
        4: int32(H // Hk),
        5: int32(N),
        6: one[0],
        7: one[1],
        8: one[2],
        9: one[3],
        10: np.array([D**-0.5], np.float32),
    }
    done = in_every_order(made, buffers, 3, (1024 * H, 1, 1), (1024, 1, 1))
    wanted = []
    for h in range(H):
        weights = k[h // 4].astype(np.float64) @ q[h] * D**-0.5
        weights = np.exp(weights - weights.max())
        wanted.append(weights / weights.sum() @ v[h // 4])
    assert error(done.outputs[3], np.stack(wanted)) < 1e-6
    assert done.faults == ()
