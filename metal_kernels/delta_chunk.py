"""The gated delta rule over long windows on Metal: two launches, matrices of 8x8 in float32, 16 tokens at a time.

The definition is `delta_rule.gated_delta_stepwise`. For the tokens i, j < C of a chunk, with d(i, j) what is left of
token j at token i (the product of the decays after j up to i), d(i) what is left at token i of the state S before the
chunk, and S written [Dk, Dv]:

    M = I + strictly lower(beta_i k_i k_j)      solve = lower(d(i, j) M^-1 beta_j)      scores = lower(d(i, j) q_i k_j)
    X = solve (V - d(i) K S)                    Y = d(i) Q S + scores X                 S' = d(C-1) S + K^T (d(C-1, j) X)

The first launch makes the factors, `solve` and `scores` and the two rows of decays, of all chunks at once: k k^T and
q k^T once a key head. The second goes through the chunks of a value head with S in registers, each simdgroup with
columns of its own, and reads k, q, factors and v once a threadgroup. The chunked form of delta_rule.py multiplies
M^-1 with V and K apart; that is 2 C Dk products a token and column more.

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

Arrays = tuple[mx.array, mx.array, mx.array, mx.array, mx.array, mx.array | None]


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
    simdgroups = _check(q, k, v, log_decay, beta, state, splits)
    B, T, Hk, Dk = q.shape
    Hv, Dv = v.shape[2:]
    chunks = -(-T // CHUNK)
    (factors,) = _factors_kernel()(
        inputs=[q, k, _padded(log_decay), _padded(beta)],
        template=[("DK", Dk), ("GROUP", Hv // Hk)],
        grid=(3 * SIMD * chunks, Hk, B),
        threadgroup=(3 * SIMD, 1, 1),
        output_shapes=[(B, Hv, chunks, *FACTORS)],
        output_dtypes=[mx.float32],
    )
    threads = simdgroups * SIMD
    y, after = _scan_kernel(state is None)(
        inputs=[q, k, v, factors, *([] if state is None else [state])],
        template=[("DK", Dk), ("DV", Dv), ("GROUP", Hv // Hk), ("SPLITS", splits), ("SIMDGROUPS", simdgroups)],
        grid=(threads * splits, Hv, B),
        threadgroup=(threads, 1, 1),
        output_shapes=[(B, T, Hv, Dv), (B, Hv, Dv, Dk)],
        output_dtypes=[mx.float32, mx.float32],
    )
    return y, after


def takes(q: mx.array, k: mx.array, v: mx.array, *_: Any) -> bool:
    """Whether `delta_chunk` is for such a window, in any number of splits up to 4. One chunk alone is never worth it."""
    Dk, Dv = q.shape[-1], v.shape[-1]
    return q.shape[1] > CHUNK and Dk % TILE == 0 and Dk <= MOST_KEY_DIM and Dv % (4 * TILE) == 0 and Dv <= 128


def _check(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    log_decay: mx.array,
    beta: mx.array,
    state: mx.array | None,
    splits: int,
) -> int:
    """The kernel trusts every shape: what does not fit is named here. -> simdgroups of a threadgroup of the scan"""
    if q.ndim != 4 or v.ndim != 4 or not all(q.shape) or v.shape[2] % q.shape[2]:
        raise ValueError(f"[delta_chunk] q is {q.shape} and v is {v.shape}; [B, T, Hk, Dk] and [B, T, Hv, Dv] are needed")
    (B, T, _, Dk), (Hv, Dv) = q.shape, v.shape[2:]
    tiles = Dv // (TILE * splits)
    if Dk % TILE or Dk > MOST_KEY_DIM or Dv % (TILE * splits):
        raise ValueError(
            f"[delta_chunk] Dk = {Dk} must be a multiple of 8, at most {MOST_KEY_DIM}, and Dv = {Dv} one of 8 for "
            f"each of the {splits} splits"
        )
    wanted = {"k": (k, q.shape), "v": (v, (B, T, Hv, Dv)), "log_decay": (log_decay, (B, T, Hv)), "beta": (beta, (B, T, Hv))}
    for name, (array, shape) in wanted.items():
        if array.shape != shape:
            raise ValueError(f"[delta_chunk] {name} is {array.shape} but must be {shape}")
    if state is not None and (state.shape != (B, Hv, Dv, Dk) or state.dtype != mx.float32):
        raise ValueError(f"[delta_chunk] state is {state.shape} {state.dtype} but must be {(B, Hv, Dv, Dk)} float32")
    # Of 16 tiles a simdgroup takes two: more columns would not fit its registers.
    return next(n for n in range(MOST_SIMDGROUPS, 0, -1) if tiles % n == 0)


def _padded(x: mx.array) -> mx.array:
    """Longer, where it is very short. x: [B, T, Hv]"""
    return x if x.size >= SMALLEST else mx.pad(x, [(0, 0), (0, SMALLEST), (0, 0)])


FACTORS_SOURCE = """
const uint chunk = threadgroup_position_in_grid.x, key_head = threadgroup_position_in_grid.y;
const uint row = threadgroup_position_in_grid.z, lane = thread_index_in_simdgroup;
const uint simdgroup = simdgroup_index_in_threadgroup;
threadgroup float products[DELTA_CHUNK * DELTA_FACTORS_PITCH];
auto queries = delta_tokens(q, q_strides, q_shape, row, key_head);
auto keys = delta_tokens(k, k_strides, q_shape, row, key_head);
queries.skip(chunk * DELTA_CHUNK);
keys.skip(chunk * DELTA_CHUNK);
delta_products<DK>(queries, keys, products, DeltaLane(lane), simdgroup);
threadgroup_barrier(mem_flags::mem_threadgroup);
for (uint n = simdgroup; n < GROUP; n += 3) {
  const uint head = key_head * GROUP + n, heads = threadgroups_per_grid.y * GROUP;
  const size_t t = chunk * DELTA_CHUNK + lane;
  float decay = 1, write = 0;
  if (lane < DELTA_CHUNK && t < uint(q_shape[1])) {
    decay = metal::precise::exp(
        float(log_decay[row * log_decay_strides[0] + t * log_decay_strides[1] + head * log_decay_strides[2]]));
    write = float(beta[row * beta_strides[0] + t * beta_strides[1] + head * beta_strides[2]]);
  }
  const uint chunks = threadgroups_per_grid.x;
  delta_factors(products, decay, write, factors + ((row * heads + head) * size_t(chunks) + chunk) * DELTA_FACTORS, lane);
}
"""
SCAN_SOURCE = """
constexpr int THREADS = SIMDGROUPS * 32, COLUMNS = DV / SPLITS, MINE = COLUMNS / SIMDGROUPS, WIDE = MINE / DELTA_TILE;
threadgroup float queries[DELTA_CHUNK * (DK + DELTA_PAD)];
threadgroup float keys[DELTA_CHUNK * (DK + DELTA_PAD)];
threadgroup float shared_factors[(DELTA_CHUNK + 1) * DELTA_FACTORS_PITCH];
const uint split = threadgroup_position_in_grid.x, head = threadgroup_position_in_grid.y;
const uint row = threadgroup_position_in_grid.z, heads = threadgroups_per_grid.y;
const uint thread_index = thread_position_in_threadgroup.x;
const DeltaLane lane(thread_index_in_simdgroup);
const int tokens = q_shape[1], chunks = (tokens + DELTA_CHUNK - 1) / DELTA_CHUNK;
const int column = split * COLUMNS + simdgroup_index_in_threadgroup * MINE;
auto q_rows = delta_tokens(q, q_strides, q_shape, row, head / GROUP);
auto k_rows = delta_tokens(k, k_strides, q_shape, row, head / GROUP);
auto v_rows = delta_tokens(v, v_strides, q_shape, row, head);
v_rows.first += column * v_strides[3];
const device float* my_factors = factors + (row * heads + head) * size_t(chunks) * DELTA_FACTORS;
device float* my_y = y + (row * size_t(tokens) * heads + head) * DV + column;
device float* my_state = new_state + ((row * heads + head) * size_t(DV) + column) * DK;
DeltaTile s[DK / DELTA_TILE * WIDE];
LOAD
DeltaStage<DK, THREADS> stage;
stage.fetch(q_rows, k_rows, my_factors, thread_index);
for (int chunk = 0; chunk < chunks; chunk++) {
  stage.put(queries, keys, shared_factors, thread_index);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  q_rows.skip(DELTA_CHUNK);
  k_rows.skip(DELTA_CHUNK);
  my_factors += DELTA_FACTORS;
  if (chunk + 1 < chunks) {
    stage.fetch(q_rows, k_rows, my_factors, thread_index);
  }
  delta_advance<DK, WIDE>(s, queries, keys, shared_factors, v_rows, my_y, heads * DV, lane);
  v_rows.skip(DELTA_CHUNK);
  my_y += DELTA_CHUNK * size_t(heads) * DV;
  threadgroup_barrier(mem_flags::mem_threadgroup);
}
delta_store<DK, WIDE>(s, my_state);
"""
LOAD = """
delta_load<DK, WIDE>(
    {state + row * state_strides[0] + head * state_strides[1] + column * state_strides[2], int(state_strides[2]),
     int(state_strides[3]), MINE}, s, lane);
"""
FRESH = """
#pragma clang loop unroll(full)
for (int n = 0; n < DK / DELTA_TILE * WIDE; n++) {
  s[n] = delta_zeros();
}
"""


@functools.cache
def _factors_kernel() -> Any:
    return mx.fast.metal_kernel(
        name="delta_chunk_factors",
        input_names=["q", "k", "log_decay", "beta"],
        output_names=["factors"],
        header=metal_text("delta_chunk"),
        source=FACTORS_SOURCE,
        ensure_row_contiguous=False,
    )


@functools.cache
def _scan_kernel(fresh: bool) -> Any:
    """fresh: S is zero at first, and not read"""
    return mx.fast.metal_kernel(
        name="delta_chunk_scan" + "_fresh" * fresh,
        input_names=["q", "k", "v", "factors", *([] if fresh else ["state"])],
        output_names=["y", "new_state"],
        header=metal_text("delta_chunk"),
        source=SCAN_SOURCE.replace("LOAD", FRESH if fresh else LOAD),
        ensure_row_contiguous=False,
    )
