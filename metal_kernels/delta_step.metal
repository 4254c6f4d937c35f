// One Gated DeltaNet layer between its projections, for windows of a few tokens. delta_step.py has the definition and
// the launch. A threadgroup takes one row of the batch and one value head, or a share of the head's Dv rows of S.
// Loops over a thread's own arrays are unrolled whole: only then do the arrays stay in registers.

template <int HK_, int HV_, int DK_, int DV_, int WIDTH_, int TOKENS_, int SPLITS_>
struct DeltaShape {
  static constant constexpr const int HK = HK_;
  static constant constexpr const int HV = HV_;
  static constant constexpr const int DK = DK_;
  static constant constexpr const int DV = DV_;
  static constant constexpr const int WIDTH = WIDTH_; // of the convolution
  static constant constexpr const int TOKENS = TOKENS_; // no window is longer
  static constant constexpr const int SPLITS = SPLITS_; // threadgroups a value head
  static constant constexpr const int SHARE = DV_ / SPLITS_; // rows of S a threadgroup holds
  static constant constexpr const int PER = (DK_ + 15) / 16; // float4s of a row that a thread holds
  static constant constexpr const int CHANNELS = 2 * HK_ * DK_ + HV_ * DV_;
};

// Columns of a projection's output that are read where they lie: element (n, c) is at n * pitch + first + c.
struct DeltaColumns {
  int pitch;
  int first;
  DeltaColumns(const device int* columns, int which) : pitch(columns[2 * which]), first(columns[2 * which + 1]) {}
  size_t at(int n, int c) const {
    return size_t(n) * pitch + first + c;
  }
};

// What a threadgroup works on.
struct DeltaPlace {
  int row, head, key_head, split;
  int start, tokens; // the row's window among all tokens of the step
  int held, kept; // where its last window begins among the held ones, and how much of that came to stay
  bool leads; // of the threadgroups that share a key head, the one that writes what is the key head's
};

template <typename Shape>
METAL_FUNC DeltaPlace delta_place(const device int* rows, uint head_and_split, uint row) {
  const int head = head_and_split / Shape::SPLITS, split = head_and_split % Shape::SPLITS;
  const int heads_a_key = Shape::HV / Shape::HK;
  const device int* mine = rows + row * 4;
  const bool leads = split == 0 && head % heads_a_key == 0;
  return {int(row), head, head / heads_a_key, split, mine[0], mine[1], mine[2], mine[3], leads};
}

METAL_FUNC float delta_silu(float x) {
  return x / (1 + metal::precise::exp(-x));
}

// log(1 + e^x). A small e^x must keep its digits: they add up over a long text.
METAL_FUNC float delta_softplus(float x) {
  const float e = metal::precise::exp(-metal::abs(x)), sum = 1 + e;
  return metal::max(x, 0.0f) + (sum == 1 ? e : e * (metal::precise::log(sum) / (sum - 1)));
}

// Convolution and SiLU of this head's channels: q, k [tokens, DK] and v [tokens, SHARE]. A thread slides along a
// channel, so that each input is read once. What comes to be held is written on the way: the inputs from number `skip`.
template <typename Shape, bool DRAFT, typename T, typename Weight>
METAL_FUNC void delta_convolve(
    const device T* qkv,
    DeltaColumns columns,
    const device Weight* weight,
    const device T* held_inputs,
    DeltaPlace place,
    threadgroup float* q,
    threadgroup float* k,
    threadgroup float* v,
    device T* inputs,
    device float* held_v,
    uint thread_index,
    uint threads) {
  constexpr int DK = Shape::DK, SHARE = Shape::SHARE, CHANNELS = Shape::CHANNELS, TAIL = Shape::WIDTH - 1;
  const int skip = DRAFT ? 0 : place.tokens;
  const size_t from = place.held + place.row * TAIL + place.kept;
  const size_t to = (DRAFT ? place.start : 0) + place.row * TAIL;
  for (int c = thread_index; c < 2 * DK + SHARE; c += threads) {
    const int in_v = c - 2 * DK; // which of the threadgroup's value rows; negative in q and k
    const int value = place.head * Shape::DV + place.split * SHARE + in_v;
    const int channel = c < DK ? place.key_head * DK + c
        : in_v < 0             ? (Shape::HK - 1 + place.key_head) * DK + c
                               : 2 * Shape::HK * DK + value;
    float taps[Shape::WIDTH], window[Shape::WIDTH];
#pragma clang loop unroll(full)
    for (int w = 0; w <= TAIL; w++) {
      taps[w] = float(weight[channel * Shape::WIDTH + w]);
    }
    for (int i = 0; i < TAIL + place.tokens; i++) {
      const int t = i - TAIL;
      const T input = t < 0 ? held_inputs[(from + i) * CHANNELS + channel] : qkv[columns.at(place.start + t, channel)];
      if (i >= skip && (place.leads || in_v >= 0)) {
        inputs[(to + i - skip) * CHANNELS + channel] = input;
      }
#pragma clang loop unroll(full)
      for (int w = 0; w < TAIL; w++) {
        window[w] = i == 0 ? 0.0f : window[w + 1];
      }
      window[TAIL] = float(input);
      if (t < 0) {
        continue;
      }
      float sum = 0;
#pragma clang loop unroll(full)
      for (int w = 0; w <= TAIL; w++) {
        sum += taps[w] * window[w];
      }
      const float mixed = delta_silu(sum);
      if (in_v < 0) {
        (c < DK ? q : k)[t * DK + (c < DK ? c : c - DK)] = mixed;
      } else {
        v[t * SHARE + in_v] = mixed;
        if (DRAFT) {
          held_v[size_t(place.start + t) * (Shape::HV * Shape::DV) + value] = mixed;
        }
      }
    }
  }
}

// q and k to length 1, q scaled by DK^-1/2; a simdgroup takes a vector at a time. gates: decay and beta of each token.
template <typename Shape, bool DRAFT, typename T>
METAL_FUNC void delta_prepare(
    const device T* a,
    const device T* b,
    DeltaColumns a_columns,
    DeltaColumns b_columns,
    const device float* A_log,
    const device float* dt_bias,
    DeltaPlace place,
    threadgroup float* q,
    threadgroup float* k,
    threadgroup float* gates,
    device float* held_k,
    device float* held_log_decay,
    device float* held_beta,
    uint thread_index,
    uint lane,
    uint simdgroup,
    uint simdgroups) {
  constexpr int DK = Shape::DK;
  for (int n = simdgroup; n < 2 * place.tokens; n += simdgroups) {
    const int t = n / 2;
    const bool is_key = n % 2;
    threadgroup float* x = (is_key ? k : q) + t * DK;
    float squares = 0;
    for (int i = lane; i < DK; i += 32) {
      squares += x[i] * x[i];
    }
    const float scale = metal::precise::rsqrt(simd_sum(squares) + 1e-6f);
    for (int i = lane; i < DK; i += 32) {
      x[i] *= is_key ? scale : scale * metal::precise::rsqrt(float(DK));
      if (DRAFT && is_key && place.leads) {
        held_k[size_t(place.start + t) * (Shape::HK * DK) + place.key_head * DK + i] = x[i];
      }
    }
  }
  if (int(thread_index) < place.tokens) {
    const int n = place.start + thread_index, h = place.head;
    const float rate = metal::precise::exp(A_log[h]);
    const float log_decay = -rate * delta_softplus(float(a[a_columns.at(n, h)]) + dt_bias[h]);
    const float beta = 1 / (1 + metal::precise::exp(-float(b[b_columns.at(n, h)])));
    gates[2 * thread_index] = metal::precise::exp(log_decay);
    gates[2 * thread_index + 1] = beta;
    if (DRAFT && place.split == 0) {
      held_log_decay[size_t(n) * Shape::HV + h] = log_decay;
      held_beta[size_t(n) * Shape::HV + h] = beta;
    }
  }
}

// One token into this thread's quarter of a row of S. `key` is the quarter too, 0 where DK ends.
template <int PER>
METAL_FUNC void delta_write(thread float4* s, const thread float4* key, float v, float decay, float beta) {
  float recalled = 0;
#pragma clang loop unroll(full)
  for (int j = 0; j < PER; j++) {
    s[j] *= decay;
    recalled += metal::dot(s[j], key[j]);
  }
  const float correction = beta * (v - quad_sum(recalled));
#pragma clang loop unroll(full)
  for (int j = 0; j < PER; j++) {
    s[j] += correction * key[j];
  }
}

// A thread's quarter of a vector of DK / 4 float4s: every fourth of them, so that neighbours read neighbours.
template <int DK, int PER, typename Pointer>
METAL_FUNC void delta_quarter(Pointer vector, uint quarter, bool active, thread float4* out) {
#pragma clang loop unroll(full)
  for (int j = 0; j < PER; j++) {
    const int i = j * 4 + quarter;
    out[j] = active && i < DK / 4 ? vector[i] : float4(0);
  }
}

template <int DK, int PER>
METAL_FUNC void delta_store(const thread float4* s, uint quarter, bool active, device float4* row) {
#pragma clang loop unroll(full)
  for (int j = 0; j < PER; j++) {
    const int i = j * 4 + quarter;
    if (active && i < DK / 4) {
      row[i] = s[j];
    }
  }
}

// Which part of S a thread holds: a quarter of a row, so that a simdgroup holds eight rows.
template <typename Shape>
struct DeltaPart {
  uint quarter;
  int mine; // of the threadgroup's rows
  int value; // of all heads' rows
  bool active;
  size_t row; // where it begins in memory
  DeltaPart(DeltaPlace place, uint thread_index)
      : quarter(thread_index % 4),
        mine(thread_index / 4),
        value(place.head * Shape::DV + place.split * Shape::SHARE + mine),
        active(mine < Shape::SHARE),
        row((size_t(place.row) * (Shape::HV * Shape::DV) + value) * Shape::DK) {}
};

template <typename Shape>
METAL_FUNC void delta_load(const device float* state, DeltaPart<Shape> part, thread float4* s) {
  delta_quarter<Shape::DK, Shape::PER>((const device float4*)(state + part.row), part.quarter, part.active, s);
}

// The kept tokens of the last window into S, then this window. S is written once: after the window, or before it if
// that is a draft, and not at all without a new_state. y: this threadgroup's rows, `pitch` apart from token to token.
template <typename Shape, bool DRAFT, typename Out>
METAL_FUNC void delta_recur(
    thread float4* s,
    const device float* held_k,
    const device float* held_v,
    const device float* held_log_decay,
    const device float* held_beta,
    DeltaPlace place,
    DeltaPart<Shape> part,
    const threadgroup float4* q,
    const threadgroup float4* k,
    const threadgroup float* v,
    const threadgroup float* gates,
    device float* new_state,
    Out y,
    int pitch) {
  constexpr int DK = Shape::DK, HV = Shape::HV, PER = Shape::PER;
  float4 key[PER];
  for (int t = 0; t < place.kept; t++) {
    const size_t n = place.held + t;
    const device float* stored = held_k + (n * Shape::HK + place.key_head) * DK;
    delta_quarter<DK, PER>((const device float4*)stored, part.quarter, true, key);
    const float decay = metal::precise::exp(held_log_decay[n * HV + place.head]);
    const float value = part.active ? held_v[n * (HV * Shape::DV) + part.value] : 0.0f;
    delta_write<PER>(s, key, value, decay, held_beta[n * HV + place.head]);
  }
  if (DRAFT && new_state) {
    delta_store<DK, PER>(s, part.quarter, part.active, (device float4*)(new_state + part.row));
  }
  for (int t = 0; t < place.tokens; t++) {
    delta_quarter<DK, PER>(k + t * (DK / 4), part.quarter, true, key);
    delta_write<PER>(s, key, part.active ? v[t * Shape::SHARE + part.mine] : 0.0f, gates[2 * t], gates[2 * t + 1]);
    delta_quarter<DK, PER>(q + t * (DK / 4), part.quarter, true, key);
    float output = 0;
#pragma clang loop unroll(full)
    for (int j = 0; j < PER; j++) {
      output += metal::dot(s[j], key[j]);
    }
    output = quad_sum(output);
    if (part.active && part.quarter == 0) {
      y[t * pitch + part.mine] = output;
    }
  }
  if (!DRAFT) {
    delta_store<DK, PER>(s, part.quarter, part.active, (device float4*)(new_state + part.row));
  }
}

// normed = y / rms(y) * weight * silu(z), DV wide, by one simdgroup.
template <int DV, typename T, typename In>
METAL_FUNC void delta_gated_norm(
    In y, const device T* z, const device float* weight, float eps, device T* normed, uint lane) {
  float squares = 0;
  for (int i = lane; i < DV; i += 32) {
    squares += y[i] * y[i];
  }
  const float scale = metal::precise::rsqrt(simd_sum(squares) / DV + eps);
  for (int i = lane; i < DV; i += 32) {
    normed[i] = T(y[i] * scale * weight[i] * delta_silu(float(z[i])));
  }
}
