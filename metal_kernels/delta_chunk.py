"""The gated delta rule over long windows on Metal: two launches, 8x8 matrices in float32, 16 tokens at a time.

The definition is `delta_rule.gated_delta_stepwise`. Of the tokens i, j < C of a chunk, with S [Dk, Dv] before it, d(i)
what is left of S at token i, and d(i, j) what is left of token j at token i (the product of the decays behind j):

    M      = I + strictly lower(beta_i k_i k_j)
    solve  = lower(d(i, j) M^-1 beta_j)
    scores = lower(d(i, j) q_i k_j)
    X      = solve (V - d(i) K S)
    Y      = d(i) Q S + scores X
    S'     = d(C - 1) S + K^T (d(C - 1, j) X)

The first launch makes the factors (`solve`, `scores`, d(i) and d(C - 1, j)) of all chunks at once, k k^T and q k^T once
a key head. The second goes through the chunks of a value head with S in registers, each simdgroup with columns of its
own; a threadgroup shares q, k and the factors. Decays are multiplied, never divided: whatever they are, nothing
overflows. `solve` is a triangular system solved row by row, not a series: equal keys do not make it cancel.

Knows nothing of caches; which implementation is used is decided elsewhere. Letters as in delta_rule.py.
"""

from __future__ import annotations

import functools
from typing import Any

import mlx.core as mx

from mlx_qwen35.metal_kernels.source import metal_text

SIMD = 32  # threads of a simdgroup
TILE = 8
CHUNK = 16  # at 32, k, q and what else is shared do not fit threadgroup memory in float32
FACTORS = (CHUNK + 1, 2 * CHUNK)  # of a chunk and value head; laid out in delta_chunk.metal
MOST_KEY_DIM = 128  # wider ones fit neither threadgroup memory nor a simdgroup's registers
MOST_SIMDGROUPS = 8  # of a threadgroup of the scan
SMALLEST = 8  # elements; MLX hands smaller inputs to a kernel in another address space


def delta_chunk(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    log_decay: mx.array,
    beta: mx.array,
    state: mx.array | None,
    splits: int = 2,
) -> tuple[mx.array, mx.array]:
    """A window of any length; worth it from some chunks on. Shapes as in `delta_rule.gated_delta`.

    All but the state may be of any floating dtype and are read where they lie, whatever their strides; results are
    float32. Dk must be a multiple of 8, at most 128; Dv one of 8 * splits.
    splits: threadgroups a value head. More of them fill larger chips, and each reads q and k.
    """
    _check(q, k, v, log_decay, beta, state, splits)
    (B, T, Hk, Dk), (Hv, Dv) = q.shape, v.shape[2:]
    chunks, simdgroups = -(-T // CHUNK), _simdgroups(Dk, Dv, splits)
    (factors,) = _factors_kernel()(
        inputs=[q, k, _padded(log_decay), _padded(beta)],
        template=[("DK", Dk)],
        grid=(3 * SIMD * chunks, Hk, B),
        threadgroup=(3 * SIMD, 1, 1),
        output_shapes=[(B, Hv, chunks, *FACTORS)],
        output_dtypes=[mx.float32],
    )
    threads = simdgroups * SIMD
    y, after = _scan_kernel(state is None)(
        inputs=[q, k, v, factors, *([] if state is None else [state])],
        template=[("DK", Dk), ("WIDE", Dv // (TILE * splits * simdgroups)), ("SIMDGROUPS", simdgroups)],
        grid=(threads * splits, Hv, B),
        threadgroup=(threads, 1, 1),
        output_shapes=[(B, T, Hv, Dv), (B, Hv, Dv, Dk)],
        output_dtypes=[mx.float32, mx.float32],
    )
    return y, after


def fits(splits: int, q: mx.array, k: mx.array, v: mx.array, *_: Any) -> bool:
    """Whether `delta_chunk` takes such a window, and is for it: a single chunk is never worth two launches."""
    return q.shape[1] > CHUNK and _simdgroups(q.shape[-1], v.shape[-1], splits) > 0


def _simdgroups(Dk: int, Dv: int, splits: int) -> int:
    """Of a threadgroup of the scan, with S one tile wide or two: wider does not fit registers. 0 where nothing fits."""
    tiles, rest = divmod(Dv, TILE * splits)
    simdgroups = tiles if tiles <= MOST_SIMDGROUPS else tiles // 2
    even = not rest and tiles in (simdgroups, 2 * simdgroups) and simdgroups <= MOST_SIMDGROUPS
    return simdgroups if even and Dk % TILE == 0 and Dk <= MOST_KEY_DIM else 0


def _check(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    log_decay: mx.array,
    beta: mx.array,
    state: mx.array | None,
    splits: int,
) -> None:
    """The kernel trusts every shape: what does not fit is named here."""
    if q.ndim != 4 or v.ndim != 4 or not q.size or v.shape[2] % q.shape[2]:
        raise ValueError(
            f"[delta_chunk] q is {q.shape} and v is {v.shape} but must be [B, T, Hk, Dk] and [B, T, Hv, Dv], "
            "with Hv a multiple of Hk"
        )
    (B, T, _, Dk), (Hv, Dv) = q.shape, v.shape[2:]
    if not _simdgroups(Dk, Dv, splits):
        raise ValueError(
            f"[delta_chunk] Dk = {Dk} must be a multiple of {TILE}, at most {MOST_KEY_DIM}, and Dv = {Dv} must give "
            f"each of the {splits} splits up to {MOST_SIMDGROUPS} times {TILE}, or twice that"
        )
    for name, array, shape in (
        ("k", k, q.shape),
        ("v", v, (B, T, Hv, Dv)),
        ("log_decay", log_decay, (B, T, Hv)),
        ("beta", beta, (B, T, Hv)),
    ):
        if array.shape != shape:
            raise ValueError(f"[delta_chunk] {name} is {array.shape} but must be {shape}")
    if state is not None and (state.shape != (B, Hv, Dv, Dk) or state.dtype != mx.float32):
        raise ValueError(f"[delta_chunk] state is {state.shape} {state.dtype} but must be {(B, Hv, Dv, Dk)} float32")


def _padded(x: mx.array) -> mx.array:
    """Longer, where it is very short. x: [B, T, Hv]"""
    return x if x.size >= SMALLEST else mx.pad(x, [(0, 0), (0, SMALLEST), (0, 0)])


# The kernels' bodies; PLACE begins both.
PLACE = """
const uint row = threadgroup_position_in_grid.z, lane = thread_index_in_simdgroup;
const uint simdgroup = simdgroup_index_in_threadgroup, tokens = q_shape[1];
"""
FACTORS_BODY = """
const uint chunk = threadgroup_position_in_grid.x, chunks = threadgroups_per_grid.x;
const uint key_head = threadgroup_position_in_grid.y, heads = beta_shape[2], ratio = heads / threadgroups_per_grid.y;
threadgroup float products[DELTA_CHUNK * DELTA_FACTORS_PITCH];
auto queries = delta_tokens(q, q_strides, row, key_head, tokens);
auto keys = delta_tokens(k, k_strides, row, key_head, tokens);
queries.skip(chunk * DELTA_CHUNK);
keys.skip(chunk * DELTA_CHUNK);
delta_products<DK>(queries, keys, products, DeltaLane(lane), simdgroup);
threadgroup_barrier(mem_flags::mem_threadgroup);
const uint t = chunk * DELTA_CHUNK + lane;
const bool has_token = lane < DELTA_CHUNK && t < tokens;
for (uint head = key_head * ratio + simdgroup; head < (key_head + 1) * ratio; head += 3) {
  const float log_d = has_token ? delta_gate(log_decay, log_decay_strides, row, t, head) : 0.0f;
  const float rate = has_token ? delta_gate(beta, beta_strides, row, t, head) : 0.0f;
  device float* mine = factors + (size_t(row * heads + head) * chunks + chunk) * DELTA_FACTORS;
  delta_factors(products, metal::precise::exp(log_d), rate, mine, lane);
}
"""
SCAN_BEGIN = """
const uint head = threadgroup_position_in_grid.y, heads = threadgroups_per_grid.y;
const uint key_head = head / (heads / q_shape[2]), row_and_head = row * heads + head;
const uint thread_index = thread_position_in_threadgroup.x;
const int column = (threadgroup_position_in_grid.x * SIMDGROUPS + simdgroup) * (WIDE * DELTA_TILE);
const int DV = v_shape[3], chunks = (tokens + DELTA_CHUNK - 1) / DELTA_CHUNK;
threadgroup float shared_q[DELTA_CHUNK * (DK + DELTA_PAD)];
threadgroup float shared_k[DELTA_CHUNK * (DK + DELTA_PAD)];
threadgroup float shared_factors[(DELTA_CHUNK + 1) * DELTA_FACTORS_PITCH];
auto queries = delta_tokens(q, q_strides, row, key_head, tokens);
auto keys = delta_tokens(k, k_strides, row, key_head, tokens);
auto values = delta_tokens(v, v_strides, row, head, tokens);
values.first += column * v_strides[3];
factors += size_t(row_and_head) * chunks * DELTA_FACTORS;
y += (size_t(row) * tokens * heads + head) * DV + column;
DeltaTile s[DK / DELTA_TILE * WIDE];
"""
# S before the window: of a fresh one nothing is read.
STATE = {
    True: "delta_zero<DK, WIDE>(s);\n",
    False: "delta_load<DK, WIDE>(state, state_strides, row, head, column, s, DeltaLane(lane));\n",
}
SCAN = """
DeltaStage<DK, SIMDGROUPS * 32> stage;
stage.fetch(queries, keys, factors, thread_index);
for (int chunk = 0; chunk < chunks; chunk++) {
  stage.put(shared_q, shared_k, shared_factors, thread_index);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  queries.skip(DELTA_CHUNK);
  keys.skip(DELTA_CHUNK);
  factors += DELTA_FACTORS;
  if (chunk + 1 < chunks) {
    stage.fetch(queries, keys, factors, thread_index);
  }
  delta_advance<DK, WIDE>(s, shared_q, shared_k, shared_factors, values, y, heads * DV, DeltaLane(lane));
  values.skip(DELTA_CHUNK);
  y += size_t(DELTA_CHUNK) * heads * DV;
  threadgroup_barrier(mem_flags::mem_threadgroup);  // before the next chunk takes this one's place
}
delta_store<DK, WIDE>(s, new_state + (size_t(row_and_head) * DV + column) * DK);
"""


@functools.cache
def _factors_kernel() -> Any:
    return mx.fast.metal_kernel(
        name="delta_chunk_factors",
        input_names=["q", "k", "log_decay", "beta"],
        output_names=["factors"],
        header=metal_text("delta_chunk"),
        source=PLACE + FACTORS_BODY,
        ensure_row_contiguous=False,
    )


@functools.cache
def _scan_kernel(fresh: bool) -> Any:
    """fresh: S is zero before the window"""
    return mx.fast.metal_kernel(
        name="delta_chunk_scan" + "_fresh" * fresh,
        input_names=["q", "k", "v", "factors", *([] if fresh else ["state"])],
        output_names=["y", "new_state"],
        header=metal_text("delta_chunk") + metal_text("delta_chunk_scan"),
        source=PLACE + SCAN_BEGIN + STATE[fresh] + SCAN,
        ensure_row_contiguous=False,
    )
