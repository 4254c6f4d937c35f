// The feed-forward of a few tokens through the experts they chose: two kernels, gate_up and down. After
// packed_rows.metal; expert_mlp.py has the definition and the launches.

// No variables: those in `constant` memory may not meet a thread's own in one conditional.
enum : uint { NO_EXPERT = 0xffffffff, NOT_CHOSEN = 32 };

// C model's width; E_WIDTH, S_WIDTH of a routed and of the shared expert; K experts a token in rows of P; N tokens.
template <int C, int E_WIDTH, int S_WIDTH, int K, int P, int N>
struct Sizes {
  enum : int { model = C, routed = E_WIDTH, shared = S_WIDTH, chosen = K, columns = P, tokens = N };
  enum : int { hidden = K * E_WIDTH + S_WIDTH };
};

// held[m]: in lane k, the k-th choice of token m.
template <typename Z>
METAL_FUNC void load_choices(const device uint* chosen, thread uint* held, uint lane) {
#pragma clang loop unroll(full)
  for (int m = 0; m < Z::tokens; m++) {
    held[m] = lane < uint(Z::chosen) ? chosen[m * Z::columns + lane] : NO_EXPERT;
  }
}

// slots[m] = which choice of token m the expert is, or NOT_CHOSEN.   -> the tokens that chose it, as bits.
template <typename Z>
METAL_FUNC uint tokens_of(uint expert, const thread uint* held, thread uint* slots, uint lane) {
  uint who = 0;
#pragma clang loop unroll(full)
  for (int m = 0; m < Z::tokens; m++) {
    slots[m] = simd_min(held[m] == expert ? lane : NOT_CHOSEN);
    who |= slots[m] == NOT_CHOSEN ? 0 : 1u << m;
  }
  return who;
}

// The lowest expert any token chose, of those from `first` on; or NO_EXPERT.
template <typename Z>
METAL_FUNC uint next_expert(uint first, const thread uint* held) {
  uint lowest = NO_EXPERT;
#pragma clang loop unroll(full)
  for (int m = 0; m < Z::tokens; m++) {
    lowest = metal::min(lowest, held[m] < first ? NO_EXPERT : held[m]);
  }
  return simd_min(lowest);
}

// WIDTH rows of gate and up, PER of each by this simdgroup, and SwiGLU over them. hidden: from the slots' first on.
template <typename T, typename F, typename Z, int WIDTH, int PER, typename W, typename S>
METAL_FUNC void swiglu_rows(
    const device T* x,
    Stack<W, S> gate,
    Stack<W, S> up,
    device T* hidden,
    const thread uint* slots,
    uint who,
    uint expert,
    uint row,
    uint lane) {
  static_assert(WIDTH % PER == 0, "no simdgroup has fewer rows");
  if (row >= uint(WIDTH)) {
    return;
  }
  constexpr int N = Z::tokens;
  const Rows<S> matrices[2] = {rows_of<F, Z::model>(gate, expert, row), rows_of<F, Z::model>(up, expert, row)};
  uint from[N];
  float factor[N];
  float sums[N * 2 * PER] = {0};
#pragma clang loop unroll(full)
  for (int m = 0; m < N; m++) {
    from[m] = m * Z::model;
    factor[m] = 1;
  }
  add_rows<F, Z::model, 2, PER, N>(matrices, x, from, factor, who, sums, lane);
#pragma clang loop unroll(full)
  for (int m = 0; m < N; m++) {
    if (who >> m & 1) {
#pragma clang loop unroll(full)
      for (int r = 0; r < PER; r++) {
        const float g = simd_sum(sums[(m * 2) * PER + r]);
        const float u = simd_sum(sums[(m * 2 + 1) * PER + r]);
        if (lane == 0) {
          hidden[m * Z::hidden + slots[m] * WIDTH + row + r] = T(g / (1 + metal::precise::exp(-g)) * u);
        }
      }
    }
  }
}

// hidden[n] = silu(gate_e x[n]) * up_e x[n], expert by expert, then the same of the shared expert.
// index: which choice of which token, or the shared expert after them.   row: the simdgroup's first.
template <typename T, typename F, typename SF, typename Z, int PER, typename W, typename S, typename SW, typename SS>
METAL_FUNC void gate_up(
    const device T* x,
    const device uint* chosen,
    Stack<W, S> gate,
    Stack<W, S> up,
    Stack<SW, SS> shared_gate,
    Stack<SW, SS> shared_up,
    device T* hidden,
    uint index,
    uint row,
    uint lane) {
  uint slots[Z::tokens];
  if (index < uint(Z::tokens * Z::chosen)) {
    const uint token = index / Z::chosen;
    const uint expert = chosen[token * Z::columns + index % Z::chosen];
    uint held[Z::tokens];
    load_choices<Z>(chosen, held, lane);
    const uint who = tokens_of<Z>(expert, held, slots, lane);
    // The first token that chose it has the threadgroups that work for all of them.
    if ((who & ((1u << token) - 1)) == 0) {
      swiglu_rows<T, F, Z, Z::routed, PER>(x, gate, up, hidden, slots, who, expert, row, lane);
    }
  } else {
#pragma clang loop unroll(full)
    for (int m = 0; m < Z::tokens; m++) {
      slots[m] = 0;
    }
    hidden += Z::chosen * Z::routed;
    swiglu_rows<T, SF, Z, Z::shared, PER>(
        x, shared_gate, shared_up, hidden, slots, (1u << Z::tokens) - 1, 0, row, lane);
  }
}

// y[n] = the sum over its experts of weight * down_e hidden, and the same of the shared expert; PER rows, from `row`.
template <typename T, typename F, typename SF, typename Z, int PER, typename W, typename S, typename SW, typename SS>
METAL_FUNC void down(
    const device T* hidden,
    const device uint* chosen,
    const device float* weights,
    Stack<W, S> routed,
    Stack<SW, SS> shared,
    device T* y,
    uint row,
    uint lane) {
  static_assert(Z::model % PER == 0, "no simdgroup has fewer rows");
  if (row >= uint(Z::model)) {
    return;
  }
  constexpr int N = Z::tokens;
  uint held[N], slots[N], from[N];
  float factor[N];
  float sums[N * PER] = {0};
  load_choices<Z>(chosen, held, lane);
  // In rising order, whoever else is there: so a token's sum does not depend, to the bit, on its company.
  for (uint expert = next_expert<Z>(0, held); expert != NO_EXPERT; expert = next_expert<Z>(expert + 1, held)) {
    const uint who = tokens_of<Z>(expert, held, slots, lane);
#pragma clang loop unroll(full)
    for (int m = 0; m < N; m++) {
      const bool takes = who >> m & 1;
      from[m] = takes ? m * Z::hidden + slots[m] * Z::routed : 0;
      factor[m] = takes ? weights[m * Z::columns + slots[m]] : 0;
    }
    const Rows<S> rows = rows_of<F, Z::routed>(routed, expert, row);
    add_rows<F, Z::routed, 1, PER, N>(&rows, hidden, from, factor, who, sums, lane);
  }
#pragma clang loop unroll(full)
  for (int m = 0; m < N; m++) {
    from[m] = m * Z::hidden + Z::chosen * Z::routed;
    factor[m] = weights[m * Z::columns + Z::chosen];
  }
  const Rows<SS> rows = rows_of<SF, Z::shared>(shared, 0, row);
  add_rows<SF, Z::shared, 1, PER, N>(&rows, hidden, from, factor, (1u << N) - 1, sums, lane);
#pragma clang loop unroll(full)
  for (int m = 0; m < N; m++) {
#pragma clang loop unroll(full)
    for (int r = 0; r < PER; r++) {
      const float sum = simd_sum(sums[m * PER + r]);
      if (lane == 0) {
        y[m * Z::model + row + r] = T(sum);
      }
    }
  }
}
