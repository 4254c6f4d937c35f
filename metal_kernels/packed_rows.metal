// Rows of packed weights times the inputs of a few tokens, by one simdgroup. What the modes mean is MLX's definition.
// Loops over arrays of a thread's own are unrolled whole: indexed at run time, they would not stay in registers.

constant constexpr int AFFINE = 0;  // BITS of 2, 3, 4, 5, 6, 8: code * scale + bias
constant constexpr int MXFP4 = 1;   // e2m1, scales e8m0
constant constexpr int NVFP4 = 2;   // e2m1, scales e4m3
constant constexpr int MXFP8 = 3;   // e4m3, scales e8m0
constant constexpr int BFLOAT16 = 4;
constant constexpr int FLOAT16 = 5;
constant constexpr int FLOAT32 = 6;

// Neighbours of a row that a lane takes at once: BITS words of 16 bits, and never more than one scale.
constant constexpr int RUN = 16;

template <int MODE, int BITS, int GROUP>
struct Format {
  enum : int { mode = MODE, bits = BITS, group = GROUP };
};

template <int BITS>
struct Run {
  ushort words[BITS];
  float scale;
  float bias;
};

// A stack of matrices, `rows` rows each, of which those from `first` on are meant.
template <typename W, typename S>
struct Stack {
  const device W* weight;
  const device S* scales;
  const device S* biases;
  size_t rows;
  size_t first;
};

template <typename W, typename S>
METAL_FUNC Stack<W, S> stack(
    const device W* weight, const device S* scales, const device S* biases, size_t rows, size_t first) {
  return {weight, scales, biases, rows, first};
}

// What lies behind one row of a stack.
template <typename S>
struct Rows {
  const device ushort* words;
  const device S* scales;
  const device S* biases;
};

// C: width of a row.
template <typename F, int C, typename W, typename S>
METAL_FUNC Rows<S> rows_of(Stack<W, S> stack, uint expert, uint row) {
  // 64 bits: 512 experts of 1,024 x 4,096 at 8 bits are 2^31 bytes, unpacked ones 2^32. From here on, 32 bits do.
  const size_t at = size_t(expert) * stack.rows + stack.first + row;
  return {
      (const device ushort*)stack.weight + at * (C / RUN * F::bits), stack.scales + at * (C / F::group),
      stack.biases + at * (C / F::group)};
}

METAL_FUNC float from_e2m1(uint code) {
  half value = as_type<half>(ushort((code & 7) << 9));
  value *= half(16384);
  return code & 8 ? -float(value) : float(value);
}

METAL_FUNC float from_e4m3(uint code) {
  const uint magnitude = code & 127;
  // 127 is NaN in both formats.
  half value = as_type<half>(ushort((magnitude << 7) | (((magnitude + 1) >> 7) << 14)));
  value *= half(256);
  return code & 128 ? -float(value) : float(value);
}

METAL_FUNC float from_e8m0(uint code) { return as_type<float>(code == 0 ? 0x400000u : code << 23); }

template <int MODE, typename S>
METAL_FUNC float scale_of(S stored) {
  if constexpr (MODE == AFFINE) {
    return float(stored);
  } else if constexpr (MODE == NVFP4) {
    return from_e4m3(stored);
  } else {
    return from_e8m0(stored);
  }
}

// at: index of the run's first value, counted from the start of rows.
template <typename F, typename S>
METAL_FUNC Run<F::bits> load_run(Rows<S> rows, uint at) {
  Run<F::bits> run;
  const uint word = at / RUN * F::bits;
#pragma clang loop unroll(full)
  for (int i = 0; i < F::bits; i++) {
    run.words[i] = rows.words[word + i];
  }
  run.scale = 1;
  run.bias = 0;
  if constexpr (F::mode <= MXFP8) {
    run.scale = scale_of<F::mode>(rows.scales[at / F::group]);
  }
  if constexpr (F::mode == AFFINE) {
    run.bias = float(rows.biases[at / F::group]);
  }
  return run;
}

// Does code i lie in one word? It is then masked where it stands, and the input divided instead of the code shifted.
METAL_FUNC constexpr bool in_one_word(int i, int bits) { return i * bits % 16 + bits <= 16; }

template <typename F>
METAL_FUNC float value(Run<F::bits> run, int i) {
  if constexpr (F::mode == AFFINE) {
    const int word = i * F::bits / 16, shift = i * F::bits % 16;
    const uint mask = (1u << F::bits) - 1;
    if (in_one_word(i, F::bits)) {
      return float(run.words[word] & (mask << shift));
    }
    return float((uint(run.words[word]) >> shift | uint(run.words[word + 1]) << (16 - shift)) & mask);
  } else if constexpr (F::mode == MXFP4 || F::mode == NVFP4) {
    return from_e2m1(uint(run.words[i / 4]) >> (i % 4 * 4) & 15);
  } else if constexpr (F::mode == MXFP8) {
    return from_e4m3(uint(run.words[i / 2]) >> (i % 2 * 8) & 255);
  } else if constexpr (F::mode == BFLOAT16) {
    return as_type<float>(uint(run.words[i]) << 16);
  } else if constexpr (F::mode == FLOAT16) {
    return float(as_type<half>(run.words[i]));
  } else {
    return as_type<float>(uint(run.words[2 * i]) | uint(run.words[2 * i + 1]) << 16);
  }
}

// The run times x, prepared by load_inputs; total is the sum of x.
template <typename F>
METAL_FUNC float dot_run(Run<F::bits> run, const thread float* x, float total) {
  float sum = 0;
#pragma clang loop unroll(full)
  for (int i = 0; i < RUN; i++) {
    sum += x[i] * value<F>(run, i);
  }
  return sum * run.scale + total * run.bias;
}

// -> the sum of the inputs, for the biases.
template <typename F, typename T>
METAL_FUNC float load_inputs(const device T* from, thread float* x) {
  float total = 0;
#pragma clang loop unroll(full)
  for (int i = 0; i < RUN; i++) {
    x[i] = float(from[i]);
    total += x[i];
    if (F::mode == AFFINE && in_one_word(i, F::bits)) {
      x[i] *= 1.0f / float(1u << (i * F::bits % 16));
    }
  }
  return total;
}

// sums[m][j * PER + r] += factor[m] * (this lane's part of row r of matrix j times the inputs of token m), for the
// tokens of `who`. Weights are read once for all of them. x + from[m]: C inputs.
template <typename F, int C, int MATRICES, int PER, int N, typename T, typename S>
METAL_FUNC void add_rows(
    const thread Rows<S>* matrices,
    const device T* x,
    const thread uint* from,
    const thread float* factor,
    uint who,
    thread float* sums,
    uint lane) {
  static_assert(C % RUN == 0 && C % F::group == 0 && F::group % RUN == 0, "a run has one scale");
  for (uint column = lane * RUN; column < uint(C); column += 32 * RUN) {
    Run<F::bits> runs[MATRICES * PER];
#pragma clang loop unroll(full)
    for (int j = 0; j < MATRICES; j++) {
#pragma clang loop unroll(full)
      for (int r = 0; r < PER; r++) {
        runs[j * PER + r] = load_run<F>(matrices[j], r * C + column);
      }
    }
#pragma clang loop unroll(full)
    for (int m = 0; m < N; m++) {
      if (who >> m & 1) {
        float inputs[RUN];
        const float total = load_inputs<F>(x + from[m] + column, inputs);
#pragma clang loop unroll(full)
        for (int r = 0; r < MATRICES * PER; r++) {
          sums[m * MATRICES * PER + r] += factor[m] * dot_run<F>(runs[r], inputs, total);
        }
      }
    }
  }
}
