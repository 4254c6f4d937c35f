// Metal 4 tensor ops (M5): the simdgroup-scoped cooperative-tensor matmul of MLX's NAX kernels. Operands are 16x16
// fragments in row-major fragment order; of a fragment a lane holds 2 rows x 4 columns. With MTL_TF32, float32 operands
// are rounded to 10 mantissa bits where the descriptor asks for relaxed precision. The layout is the one MLX assumes.
#pragma once
#include "simdgroup.h"

namespace mpp {
namespace tensor_ops {
struct matmul2d_descriptor {
  enum class mode { multiply, multiply_accumulate };
};

template <int M_, int N_, int K_, bool TA = false, bool TB = false, bool RELAX = false,
          matmul2d_descriptor::mode MODE = matmul2d_descriptor::mode::multiply>
struct mtl_desc {
  static constexpr constant int M = M_, N = N_, K = K_;
  static constexpr constant bool ta = TA, tb = TB, relax = RELAX,
                                 acc = MODE == matmul2d_descriptor::mode::multiply_accumulate;
};

template <class T, int N>
struct mtl_ct {
  T e[N];
  thread T& operator[](int i) thread { return e[i]; }
  const thread T& operator[](int i) const thread { return e[i]; }
  static constexpr int get_capacity() { return N; }
};

template <int R, int C>
inline void mtl_rc(int lane, int i, thread int& r, thread int& c) {
  int f = i / 8, j = i % 8, q = lane >> 2;
  r = (f / (C / 16)) * 16 + ((q & 4) | ((lane >> 1) & 3)) + (j >> 2) * 8;
  c = (f % (C / 16)) * 16 + ((q & 2) | (lane & 1)) * 4 + j % 4;
}

template <class D>
struct mtl_mmio {
  float a[D::M * D::K / 32], b[D::K * D::N / 32], c[D::M * D::N / 32];
};

template <class D>
void mtlop_mpp(void* thread* p, uint m) {
  constexpr int AR = D::ta ? D::K : D::M, AC = D::ta ? D::M : D::K, BR = D::tb ? D::N : D::K, BC = D::tb ? D::K : D::N;
  float A[AR][AC], B[BR][BC];
  int r = 0, c = 0;
  if (m != 0xffffffffu) {
    mtl_report(MTL_MATRIX_LANES_MISSING, m);
    return;
  }
  for (int l = 0; l < 32; l++) {
    mtl_mmio<D>* s = (mtl_mmio<D>*)p[l];
    for (int i = 0; i < AR * AC / 32; i++) {
      mtl_rc<AR, AC>(l, i, r, c);
      A[r][c] = s->a[i];
    }
    for (int i = 0; i < BR * BC / 32; i++) {
      mtl_rc<BR, BC>(l, i, r, c);
      B[r][c] = s->b[i];
    }
  }
  for (int l = 0; l < 32; l++) {
    mtl_mmio<D>* s = (mtl_mmio<D>*)p[l];
    for (int i = 0; i < D::M * D::N / 32; i++) {
      mtl_rc<D::M, D::N>(l, i, r, c);
      float acc = D::acc ? s->c[i] : 0.0f;
      for (int k = 0; k < D::K; k++) acc = __builtin_fmaf(D::ta ? A[k][r] : A[r][k], D::tb ? B[c][k] : B[k][c], acc);
      s->c[i] = acc;
    }
  }
}

template <class T>
inline float mtl_in(T x, bool relax) {
#ifdef MTL_TF32
  if (relax && metal::is_same_v<T, float>)
    return metal::as_type<float>((metal::as_type<uint>((float)x) + 0x1000u) & 0xffffe000u);
#endif
  return (float)x;
}

template <class D, class S>
struct matmul2d {
  template <class A, class B, class C>
  mtl_ct<A, D::M * D::K / 32> get_left_input_cooperative_tensor() {
    return {};
  }
  template <class A, class B, class C>
  mtl_ct<B, D::K * D::N / 32> get_right_input_cooperative_tensor() {
    return {};
  }
  template <class A, class B, class C>
  mtl_ct<C, D::M * D::N / 32> get_destination_cooperative_tensor() {
    return {};
  }
  template <class A, class B, class C>
  void run(thread A& a, thread B& b, thread C& c) {
    mtl_mmio<D> s;
    for (int i = 0; i < D::M * D::K / 32; i++) s.a[i] = mtl_in(a.e[i], D::relax);
    for (int i = 0; i < D::K * D::N / 32; i++) s.b[i] = mtl_in(b.e[i], D::relax);
    for (int i = 0; i < D::M * D::N / 32; i++) s.c[i] = (float)c.e[i];
    mtl_collective(mtlop_mpp<D>, &s, MTL_TENSOR, 2 * D::M * D::N * D::K);
    for (int i = 0; i < D::M * D::N / 32; i++) c.e[i] = s.c[i];
  }
};
}  // namespace tensor_ops
}  // namespace mpp
