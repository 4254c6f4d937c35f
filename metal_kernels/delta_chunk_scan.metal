// The gated delta rule over a long window, the second launch: through the chunks one after another, with S in registers.
// It stands behind delta_chunk.metal, and reads what that has made. A simdgroup has 8 * WIDE columns of S as tiles
// s[DK / 8][WIDE], Dk down and Dv across; what it computes of a chunk are tiles [2][WIDE], tokens down.

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

// recalled += k S and output += q S: what the state before the chunk has for its tokens.
template <int DK, int WIDE>
METAL_FUNC void delta_read_state(
    const thread DeltaTile* s,
    const threadgroup float* queries,
    const threadgroup float* keys,
    thread DeltaTile* recalled,
    thread DeltaTile* output) {
  constexpr int PITCH = DK + DELTA_PAD;
#pragma clang loop unroll(full)
  for (int i = 0; i < DK / DELTA_TILE; i++) {
#pragma clang loop unroll(full)
    for (int n = 0; n < 2 * WIDE; n += WIDE) {
      const int corner = (n / WIDE * PITCH + i) * DELTA_TILE;
      DeltaTile q, k;
      simdgroup_load(q, queries + corner, PITCH);
      simdgroup_load(k, keys + corner, PITCH);
#pragma clang loop unroll(full)
      for (int w = 0; w < WIDE; w++) {
        simdgroup_multiply_accumulate(recalled[n + w], k, s[i * WIDE + w], recalled[n + w]);
        simdgroup_multiply_accumulate(output[n + w], q, s[i * WIDE + w], output[n + w]);
      }
    }
  }
}

// S = left * S + k^T written
template <int DK, int WIDE>
METAL_FUNC void delta_write_state(
    thread DeltaTile* s, const threadgroup float* keys, const thread DeltaTile* written, float left) {
  constexpr int PITCH = DK + DELTA_PAD;
#pragma clang loop unroll(full)
  for (int i = 0; i < DK / DELTA_TILE; i++) {
    DeltaTile k[2]; // Dk down, tokens across
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

// sums += the lower triangle at `factors`, 2 by 2 tiles, times `x`.
template <int WIDE>
METAL_FUNC void delta_lower(const threadgroup float* factors, const thread DeltaTile* x, thread DeltaTile* sums) {
#pragma clang loop unroll(full)
  for (int n = 0; n < 3; n++) {
    const int down = n > 0, across = n > 1; // the tile above the diagonal is zero
    DeltaTile factor;
    simdgroup_load(factor, factors + (down * DELTA_FACTORS_PITCH + across) * DELTA_TILE, DELTA_FACTORS_PITCH);
#pragma clang loop unroll(full)
    for (int w = 0; w < WIDE; w++) {
      thread DeltaTile& sum = sums[down * WIDE + w];
      simdgroup_multiply_accumulate(sum, factor, x[across * WIDE + w], sum);
    }
  }
}

// One chunk. v, y: this simdgroup's columns of the chunk's tokens, in y `pitch` apart from token to token.
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
  const threadgroup float* state_left = factors + DELTA_CHUNK * DELTA_FACTORS_PITCH;
  const threadgroup float* token_left = state_left + DELTA_CHUNK;
  // fresh: v, then what of it S does not know   written: what of it comes into S
  DeltaTile fresh[2 * WIDE], recalled[2 * WIDE], written[2 * WIDE], output[2 * WIDE];
#pragma clang loop unroll(full)
  for (int n = 0; n < 2 * WIDE; n++) {
    fresh[n] = delta_tile(v, n / WIDE * DELTA_TILE, n % WIDE * DELTA_TILE, lane);
    recalled[n] = delta_zeros();
    written[n] = delta_zeros();
    output[n] = delta_zeros();
  }
  delta_read_state<DK, WIDE>(s, queries, keys, recalled, output);
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
  delta_write_state<DK, WIDE>(s, keys, written, state_left[DELTA_CHUNK - 1]);
}

template <int DK, int WIDE>
METAL_FUNC void delta_zero(thread DeltaTile* s) {
#pragma clang loop unroll(full)
  for (int n = 0; n < DK / DELTA_TILE * WIDE; n++) {
    s[n] = delta_zeros();
  }
}

// A simdgroup's columns of S, from number `column` on. Memory has S as [B, H, Dv, Dk]: they are rows there.
template <int DK, int WIDE>
METAL_FUNC void delta_load(
    const device float* state,
    const constant int64_t* strides,
    uint row,
    uint head,
    int column,
    thread DeltaTile* s,
    DeltaLane lane) {
  const device float* first = state + row * strides[0] + head * strides[1] + column * strides[2];
  const DeltaRows<float> columns = {first, int(strides[2]), int(strides[3]), WIDE * DELTA_TILE};
#pragma clang loop unroll(full)
  for (int n = 0; n < DK / DELTA_TILE * WIDE; n++) {
    s[n] = delta_tile_across(columns, n % WIDE * DELTA_TILE, n / WIDE * DELTA_TILE, lane);
  }
}

// new_state: this simdgroup's columns
template <int DK, int WIDE>
METAL_FUNC void delta_store(const thread DeltaTile* s, device float* new_state) {
#pragma clang loop unroll(full)
  for (int n = 0; n < DK / DELTA_TILE * WIDE; n++) {
    simdgroup_store(s[n], new_state + (n % WIDE * DK + n / WIDE) * DELTA_TILE, DK, ulong2(0, 0), true);
  }
}
