// The gated delta rule over a long window in chunks of 16 tokens, on simdgroup matrices. delta_chunk.py has the algebra
// and the launches: delta_products and delta_factors are the first, for all chunks at once; DeltaStage and delta_advance
// the second, chunk after chunk. Loops over a thread's own arrays are unrolled whole: only then do they stay in
// registers. Rows in threadgroup memory are 4 floats longer than their content, so that the 8 rows of a tile, and its 8
// columns too, lie in different banks.

using DeltaTile = metal::simdgroup_float8x8;

// No variables: those in `constant` memory may not meet a thread's own in one conditional.
enum : int {
  DELTA_TILE = 8,
  DELTA_CHUNK = 16,
  // What the scan needs of a chunk besides q, k and v. Row i < 16: solve(i, 0..15), scores(i, 0..15); then a row with
  // how much of the state before the chunk is left at token j, and how much of token j is left after the chunk.
  DELTA_FACTORS_WIDTH = 2 * DELTA_CHUNK,
  DELTA_FACTORS = (DELTA_CHUNK + 1) * DELTA_FACTORS_WIDTH,
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
    const device T* array, const constant int64_t* strides, const constant int* shape, uint row, uint head) {
  return {array + row * strides[0] + head * strides[2], int(strides[1]), int(strides[3]), shape[1]};
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
    const DeltaTile columns = delta_tile_across(k, across, i, lane);
    simdgroup_multiply_accumulate(kk, delta_tile(k, down, i, lane), columns, kk);
    simdgroup_multiply_accumulate(qk, delta_tile(q, down, i, lane), columns, qk);
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
  const float my_beta = simd_shuffle(beta, j);
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
      value = solves ? x[i] * my_beta : products[i * PITCH + lane];
    }
    factors[i * WIDTH + lane] = value * left;
  }
  const float state_left = simd_prefix_inclusive_product(decay);
  factors[C * WIDTH + lane] = solves ? state_left : left;
}

// What the next chunk needs, asked for while this one is computed: a thread's share of k, q and the factors.
template <int DK, int THREADS>
struct DeltaStage {
  static constant constexpr const int PER = (DELTA_CHUNK * DK + THREADS - 1) / THREADS;
  static constant constexpr const int FACTORS_PER = (DELTA_FACTORS + THREADS - 1) / THREADS;
  static constant constexpr const int PITCH = DK + DELTA_PAD;
  float q[PER], k[PER], f[FACTORS_PER];

  template <typename Q, typename K>
  void fetch(DeltaRows<Q> queries, DeltaRows<K> keys, const device float* factors, int thread_index) {
#pragma clang loop unroll(full)
    for (int n = 0; n < PER; n++) {
      const int e = n * THREADS + thread_index, row = e / DK;
      q[n] = row < DELTA_CHUNK ? queries.at(row, e % DK) : 0.0f;
      k[n] = row < DELTA_CHUNK ? keys.at(row, e % DK) : 0.0f;
    }
#pragma clang loop unroll(full)
    for (int n = 0; n < FACTORS_PER; n++) {
      const int e = n * THREADS + thread_index;
      f[n] = e < DELTA_FACTORS ? factors[e] : 0.0f;
    }
  }

  void put(threadgroup float* queries, threadgroup float* keys, threadgroup float* factors, int thread_index) const {
#pragma clang loop unroll(full)
    for (int n = 0; n < PER; n++) {
      const int e = n * THREADS + thread_index, row = e / DK;
      if (row < DELTA_CHUNK) {
        queries[row * PITCH + e % DK] = q[n];
        keys[row * PITCH + e % DK] = k[n];
      }
    }
#pragma clang loop unroll(full)
    for (int n = 0; n < FACTORS_PER; n++) {
      const int e = n * THREADS + thread_index;
      if (e < DELTA_FACTORS) {
        factors[e / DELTA_FACTORS_WIDTH * DELTA_FACTORS_PITCH + e % DELTA_FACTORS_WIDTH] = f[n];
      }
    }
  }
};

// out[block] = the lower triangle at `factors`, 2 by 2 tiles, times in[block], added to what `out` holds.
template <int WIDE>
METAL_FUNC void delta_lower(const threadgroup float* factors, const thread DeltaTile* in, thread DeltaTile* out) {
#pragma clang loop unroll(full)
  for (int down = 0; down < 2; down++) {
#pragma clang loop unroll(full)
    for (int across = 0; across <= down; across++) {
      DeltaTile factor;
      simdgroup_load(factor, factors + (down * DELTA_FACTORS_PITCH + across) * DELTA_TILE, DELTA_FACTORS_PITCH);
#pragma clang loop unroll(full)
      for (int w = 0; w < WIDE; w++) {
        thread DeltaTile& sum = out[down * WIDE + w];
        simdgroup_multiply_accumulate(sum, factor, in[across * WIDE + w], sum);
      }
    }
  }
}

// One chunk through 8 * WIDE columns of the state, held by one simdgroup as tiles s[DK / 8][WIDE], Dk down and Dv across.
// v, y: those columns of v and of the output, `pitch` apart from token to token.
template <int DK, int WIDE, typename V>
METAL_FUNC void delta_advance(
    thread DeltaTile* s,
    const threadgroup float* queries,
    const threadgroup float* keys,
    const threadgroup float* factors,
    DeltaRows<V> v,
    device float* y,
    int pitch,
    DeltaLane lane) {
  constexpr int PITCH = DK + DELTA_PAD;
  const threadgroup float* state_left = factors + DELTA_CHUNK * DELTA_FACTORS_PITCH;
  const threadgroup float* token_left = state_left + DELTA_CHUNK;
  // Tiles [2][WIDE], tokens down. `fresh` is v, then what is new in it, then what is written of it.
  DeltaTile fresh[2 * WIDE], recalled[2 * WIDE], written[2 * WIDE], output[2 * WIDE];
#pragma clang loop unroll(full)
  for (int n = 0; n < 2 * WIDE; n++) {
    fresh[n] = delta_tile(v, n / WIDE * DELTA_TILE, n % WIDE * DELTA_TILE, lane);
    recalled[n] = written[n] = output[n] = delta_zeros();
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < DK / DELTA_TILE; i++) {
#pragma clang loop unroll(full)
    for (int block = 0; block < 2; block++) {
      DeltaTile q, k;
      simdgroup_load(q, queries + (block * PITCH + i) * DELTA_TILE, PITCH);
      simdgroup_load(k, keys + (block * PITCH + i) * DELTA_TILE, PITCH);
#pragma clang loop unroll(full)
      for (int w = 0; w < WIDE; w++) {
        const int n = block * WIDE + w;
        simdgroup_multiply_accumulate(recalled[n], k, s[i * WIDE + w], recalled[n]);
        simdgroup_multiply_accumulate(output[n], q, s[i * WIDE + w], output[n]);
      }
    }
  }
#pragma clang loop unroll(full)
  for (int n = 0; n < 2 * WIDE; n++) {
    const float left = state_left[n / WIDE * DELTA_TILE + lane.down];
#pragma clang loop unroll(full)
    for (int e = 0; e < 2; e++) {
      fresh[n].thread_elements()[e] -= left * recalled[n].thread_elements()[e];
      output[n].thread_elements()[e] *= left;
    }
  }
  delta_lower<WIDE>(factors, fresh, written);
  delta_lower<WIDE>(factors + DELTA_CHUNK, written, output);
#pragma clang loop unroll(full)
  for (int n = 0; n < 2 * WIDE; n++) {
    const int token = n / WIDE * DELTA_TILE + lane.down, column = n % WIDE * DELTA_TILE + lane.across;
    const float left = token_left[token];
#pragma clang loop unroll(full)
    for (int e = 0; e < 2; e++) {
      if (token < v.count) {
        y[token * pitch + column + e] = output[n].thread_elements()[e];
      }
      written[n].thread_elements()[e] *= left;
    }
  }
  const float left = state_left[DELTA_CHUNK - 1];
#pragma clang loop unroll(full)
  for (int i = 0; i < DK / DELTA_TILE; i++) {
    DeltaTile k[2]; // transposed: Dk down, tokens across
    simdgroup_load(k[0], keys + i * DELTA_TILE, PITCH, ulong2(0, 0), true);
    simdgroup_load(k[1], keys + (PITCH + i) * DELTA_TILE, PITCH, ulong2(0, 0), true);
#pragma clang loop unroll(full)
    for (int w = 0; w < WIDE; w++) {
      thread DeltaTile& tile = s[i * WIDE + w];
      tile.thread_elements()[0] *= left;
      tile.thread_elements()[1] *= left;
      simdgroup_multiply_accumulate(tile, k[0], written[w], tile);
      simdgroup_multiply_accumulate(tile, k[1], written[WIDE + w], tile);
    }
  }
}

// A simdgroup's columns of S, which memory has as rows [Dv, Dk], into its tiles and back.
template <int DK, int WIDE>
METAL_FUNC void delta_load(DeltaRows<float> state, thread DeltaTile* s, DeltaLane lane) {
#pragma clang loop unroll(full)
  for (int n = 0; n < DK / DELTA_TILE * WIDE; n++) {
    s[n] = delta_tile_across(state, n % WIDE * DELTA_TILE, n / WIDE * DELTA_TILE, lane);
  }
}

template <int DK, int WIDE>
METAL_FUNC void delta_store(const thread DeltaTile* s, device float* state) {
#pragma clang loop unroll(full)
  for (int n = 0; n < DK / DELTA_TILE * WIDE; n++) {
    simdgroup_store(s[n], state + (n % WIDE * DK + n / WIDE) * DELTA_TILE, DK, ulong2(0, 0), true);
  }
}
