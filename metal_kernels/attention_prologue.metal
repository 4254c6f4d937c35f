// Norm and rotation of one head of one token by one simdgroup. attention_prologue.py has the definition and the launch.

// x, out: [D].   weight: [D].   angles: DIMS / 2 cosines, then as many sines.
// A lane holds both numbers of a pair (j, j + DIMS / 2), so that nothing changes hands but the sum of squares.
template <typename T, int D, int DIMS>
METAL_FUNC void norm_and_rotate(
    const device T* x,
    const device float* weight,
    float eps,
    const device float* angles,
    device T* out,
    uint lane) {
  constexpr int HALF = DIMS / 2;
  constexpr int PAIRS = (HALF + 31) / 32;
  constexpr int REST = (D - DIMS + 31) / 32;
  float first[PAIRS], second[PAIRS], rest[REST > 0 ? REST : 1];
  float squares = 0;
#pragma clang loop unroll(full)
  for (int p = 0; p < PAIRS; p++) {
    const int j = p * 32 + lane;
    first[p] = j < HALF ? float(x[j]) : 0;
    second[p] = j < HALF ? float(x[HALF + j]) : 0;
    squares += first[p] * first[p] + second[p] * second[p];
  }
#pragma clang loop unroll(full)
  for (int p = 0; p < REST; p++) {
    const int j = DIMS + p * 32 + lane;
    rest[p] = j < D ? float(x[j]) : 0;
    squares += rest[p] * rest[p];
  }
  const float scale = metal::precise::rsqrt(simd_sum(squares) / D + eps);
#pragma clang loop unroll(full)
  for (int p = 0; p < PAIRS; p++) {
    const int j = p * 32 + lane;
    if (j < HALF) {
      const float a = first[p] * scale * weight[j], b = second[p] * scale * weight[HALF + j];
      const float cosine = angles[j], sine = angles[HALF + j];
      out[j] = T(a * cosine - b * sine);
      out[HALF + j] = T(b * cosine + a * sine);
    }
  }
#pragma clang loop unroll(full)
  for (int p = 0; p < REST; p++) {
    const int j = DIMS + p * 32 + lane;
    if (j < D) {
      out[j] = T(rest[p] * scale * weight[j]);
    }
  }
}
