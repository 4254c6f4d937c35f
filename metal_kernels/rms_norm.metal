// Residual add and RMSNorm of one row a threadgroup. rms_norm.py has the definition and the launch.

// sum[row] = x[row] + residual[row], rounded to T;  normed[row] = sum[row] / rms(sum[row]) * weight.
// C: width of a row. PER: runs of 4 neighbours a thread holds, so that a row is read once and stays in registers.
// partial: 32 floats, one for each simdgroup.
template <typename T, int C, int PER>
METAL_FUNC void add_rms_norm(
    const device T* x,
    const device T* residual,
    const device float* weight,
    float eps,
    device T* sum,
    device T* normed,
    threadgroup float* partial,
    uint row,
    uint thread_index,
    uint threads,
    uint lane,
    uint simdgroup,
    uint simdgroups) {
  // A prompt's rows times C can pass 2^31.
  const size_t start = size_t(row) * C;
  float held[PER * 4];
  float squares = 0;
  for (int p = 0; p < PER; p++) {
    const uint first = (p * threads + thread_index) * 4;
    for (uint j = 0; j < 4; j++) {
      held[p * 4 + j] = 0;
      if (first + j < C) {
        // The norm is of what the next layer adds to, so of the rounded sum.
        const T rounded = T(float(x[start + first + j]) + float(residual[start + first + j]));
        sum[start + first + j] = rounded;
        held[p * 4 + j] = float(rounded);
        squares += held[p * 4 + j] * held[p * 4 + j];
      }
    }
  }
  squares = simd_sum(squares);
  if (lane == 0) {
    partial[simdgroup] = squares;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  // Every simdgroup adds the partial sums for itself: that saves a second barrier.
  squares = simd_sum(lane < simdgroups ? partial[lane] : 0.0f);
  const float scale = metal::precise::rsqrt(squares / C + eps);
  for (int p = 0; p < PER; p++) {
    const uint first = (p * threads + thread_index) * 4;
    for (uint j = 0; j < 4; j++) {
      if (first + j < C) {
        normed[start + first + j] = T(held[p * 4 + j] * scale * weight[first + j]);
      }
    }
  }
}
