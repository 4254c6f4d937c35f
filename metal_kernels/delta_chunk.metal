// The gated delta rule over a long window, in chunks of 16 tokens, on simdgroup matrices: what its two launches share,
// and the first of them, which makes the factors of all chunks at once. delta_chunk.py has the algebra and the launches,
// delta_chunk_scan.metal the second. Loops over a thread's own arrays are unrolled whole: only then do the arrays stay
// in registers.

using DeltaTile = metal::simdgroup_float8x8;

// No variables: those in `constant` memory may not meet a thread's own in one conditional.
enum : int {
  DELTA_TILE = 8,
  DELTA_CHUNK = 16,
  // What the scan needs of a chunk besides q, k and v. Row i < 16: solve(i, 0..15), scores(i, 0..15); then a row with
  // how much of the state before the chunk is left at token j, and how much of token j is left after the chunk.
  DELTA_FACTORS_WIDTH = 2 * DELTA_CHUNK,
  DELTA_FACTORS = (DELTA_CHUNK + 1) * DELTA_FACTORS_WIDTH,
  // Rows in threadgroup memory are longer than their content: then the 8 rows of a tile lie in different banks, and so do
  // its 8 columns.
  DELTA_PAD = 4,
  DELTA_FACTORS_PITCH = DELTA_FACTORS_WIDTH + DELTA_PAD,
};

// The two elements of a tile that a lane holds: (down, across) and (down, across + 1), as MLX's own kernels have it.
struct DeltaLane {
  int down, across;
  DeltaLane(uint lane) : down((lane / 4 & 4) + lane / 2 % 4), across((lane / 4 & 2) * 2 + lane % 2 * 2) {}
};

// Vectors that are read where they lie, `pitch` apart. Those past the end are zeros.
template <typename T>
struct DeltaRows {
  const device T* first;
  int pitch, step; // from vector to vector, from element to element
  int count; // how many there are
  float at(int row, int i) const {
    return row < count ? float(first[row * pitch + i * step]) : 0.0f;
  }
  void skip(int rows) {
    first += size_t(rows) * pitch;
    count -= rows;
  }
};

// One head's tokens in an array [B, T, H, D].
template <typename T>
METAL_FUNC DeltaRows<T> delta_tokens(
    const device T* array, const constant int64_t* strides, uint row, uint head, int tokens) {
  return {array + row * strides[0] + head * strides[2], int(strides[1]), int(strides[3]), tokens};
}

// One number in an array [B, T, H].
template <typename T>
METAL_FUNC float delta_gate(const device T* array, const constant int64_t* strides, uint row, uint t, uint head) {
  return float(array[row * strides[0] + t * strides[1] + head * strides[2]]);
}

// 8 vectors from number `row` on, 8 elements of each from element i on: a vector is a row of the tile.
template <typename T>
METAL_FUNC DeltaTile delta_tile(DeltaRows<T> x, int row, int i, DeltaLane lane) {
  DeltaTile tile;
  tile.thread_elements()[0] = x.at(row + lane.down, i + lane.across);
  tile.thread_elements()[1] = x.at(row + lane.down, i + lane.across + 1);
  return tile;
}

// The same, but a vector is a column of the tile.
template <typename T>
METAL_FUNC DeltaTile delta_tile_across(DeltaRows<T> x, int row, int i, DeltaLane lane) {
  DeltaTile tile;
  tile.thread_elements()[0] = x.at(row + lane.across, i + lane.down);
  tile.thread_elements()[1] = x.at(row + lane.across + 1, i + lane.down);
  return tile;
}

METAL_FUNC DeltaTile delta_zeros() {
  return metal::make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
}

// k k^T and q k^T of a chunk, side by side as in the factors. Only the three tiles that reach the lower triangle: each
// of three simdgroups takes the same one of both products.
template <int DK, typename Q, typename K>
METAL_FUNC void delta_products(
    DeltaRows<Q> q, DeltaRows<K> k, threadgroup float* products, DeltaLane lane, uint simdgroup) {
  const int down = simdgroup > 0 ? DELTA_TILE : 0, across = simdgroup > 1 ? DELTA_TILE : 0;
  DeltaTile kk = delta_zeros(), qk = delta_zeros();
  for (int i = 0; i < DK; i += DELTA_TILE) {
    const DeltaTile k_across = delta_tile_across(k, across, i, lane);
    simdgroup_multiply_accumulate(kk, delta_tile(k, down, i, lane), k_across, kk);
    simdgroup_multiply_accumulate(qk, delta_tile(q, down, i, lane), k_across, qk);
  }
  products += down * DELTA_FACTORS_PITCH + across;
  simdgroup_store(kk, products, DELTA_FACTORS_PITCH);
  simdgroup_store(qk, products + DELTA_CHUNK, DELTA_FACTORS_PITCH);
}

// A chunk's factors for one value head, by one simdgroup. Lane j < 16 has token j, its decay and beta, and column j of
// `solve`; lane 16 + j has column j of `scores`. Tokens past the end have decay 1 and beta 0. What is handed from lane to
// lane goes through registers, not through memory.
METAL_FUNC void delta_factors(
    const threadgroup float* products, float decay, float beta, device float* factors, uint lane) {
  constexpr int C = DELTA_CHUNK, PITCH = DELTA_FACTORS_PITCH, WIDTH = DELTA_FACTORS_WIDTH;
  const int j = lane % C;
  const bool solves = lane < uint(C);
  // Forward substitution: (I + strictly lower(beta k k^T)) x = column j of I. An element is the sum over those above it
  // until its turn comes. The decays follow below: with them in the matrix the solution is the same but scaled.
  float x[C];
#pragma clang loop unroll(full)
  for (int i = 0; i < C; i++) {
    x[i] = 0;
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < C; i++) {
    x[i] = (i == j ? 1.0f : 0.0f) - simd_broadcast(beta, i) * x[i];
#pragma clang loop unroll(full)
    for (int below = i + 1; below < C; below++) {
      x[below] += products[below * PITCH + i] * x[i];
    }
  }
  float left = 1; // of token j at token i. A product: neither decays of 0 nor sums of many logarithms spoil it.
#pragma clang loop unroll(full)
  for (int i = 0; i < C; i++) {
    const float decay_i = simd_broadcast(decay, i);
    left = i > j ? left * decay_i : 1.0f;
    float value = 0;
    if (i >= j) {
      value = solves ? x[i] * beta : products[i * PITCH + lane];
    }
    factors[i * WIDTH + lane] = value * left;
  }
  const float state_left = simd_prefix_inclusive_product(decay);
  factors[C * WIDTH + lane] = solves ? state_left : left;
}
