// simdgroup_matrix, 8x8: a lane holds (row, col) and (row, col + 1), the layout that MLX's steel and llama.cpp rely on.
#pragma once
#include "host.h"
#include "vectors.h"

namespace metal {
template <class T, int C = 8, int R = C>
struct simdgroup_matrix {
  static_assert(C == 8 && R == 8, "only 8x8");
  vec<T, 2> e;
  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T d) {
    ushort2 c = coord();
    e[0] = c[0] == c[1] ? d : (T)0;
    e[1] = c[0] == c[1] + 1 ? d : (T)0;
  }
  static ushort2 coord() {
    uint l = mtl_lane(), q = l / 4;
    return (ushort2){(ushort)((q & 4) + (l / 2) % 4), (ushort)((q & 2) * 2 + (l % 2) * 2)};
  }
  thread vec<T, 2>& thread_elements() thread { return e; }
  const thread vec<T, 2>& thread_elements() const thread { return e; }
};

typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;
template <class T, int C, int R = C>
METAL_FUNC simdgroup_matrix<T, C, R> make_filled_simdgroup_matrix(T v) {
  simdgroup_matrix<T, C, R> m;
  m.e = (vec<T, 2>)v;
  return m;
}

template <class T, class P>
METAL_FUNC void simdgroup_load(thread simdgroup_matrix<T, 8, 8>& d, P src, ulong ld = 8, ulong2 o = (ulong2)0,
                               bool tr = false) {
  static_assert(is_same_v<remove_addrspace_t<decltype(*src)>, T>, "simdgroup_load: element type mismatch");
  ushort2 c = d.coord();
  for (int i = 0; i < 2; i++)
    d.e[i] = tr ? src[(o[1] + c[1] + i) * ld + o[0] + c[0]] : src[(o[1] + c[0]) * ld + o[0] + c[1] + i];
}

template <class T, class P>
METAL_FUNC void simdgroup_store(simdgroup_matrix<T, 8, 8> d, P dst, ulong ld = 8, ulong2 o = (ulong2)0,
                                bool tr = false) {
  static_assert(is_same_v<remove_addrspace_t<decltype(*dst)>, T>, "simdgroup_store: element type mismatch");
  ushort2 c = d.coord();
  for (int i = 0; i < 2; i++)
    if (tr) dst[(o[1] + c[1] + i) * ld + o[0] + c[0]] = d.e[i];
    else dst[(o[1] + c[0]) * ld + o[0] + c[1] + i] = d.e[i];
}

struct mtl_mma {
  float a[2], b[2], c[2];
};

inline void mtlop_mma(void* thread* p, uint m) {
  float A[8][8], B[8][8];
  if (m != 0xffffffffu) mtl_report(MTL_MATRIX_LANES_MISSING, m);
  for (int l = 0; l < 32; l++)
    if (m >> l & 1) {
      int q = l / 4, r = (q & 4) + (l / 2) % 4, c = (q & 2) * 2 + (l % 2) * 2;
      mtl_mma* s = (mtl_mma*)p[l];
      for (int i = 0; i < 2; i++) {
        A[r][c + i] = s->a[i];
        B[r][c + i] = s->b[i];
      }
    }
  for (int l = 0; l < 32; l++)
    if (m >> l & 1) {
      int q = l / 4, r = (q & 4) + (l / 2) % 4, c = (q & 2) * 2 + (l % 2) * 2;
      mtl_mma* s = (mtl_mma*)p[l];
      for (int k = 0; k < 8; k++)
        for (int i = 0; i < 2; i++) s->c[i] = __builtin_fmaf(A[r][k], B[k][c + i], s->c[i]);
    }
}

template <class D, class A, class B, class C>
METAL_FUNC void simdgroup_multiply_accumulate(thread simdgroup_matrix<D, 8, 8>& d, simdgroup_matrix<A, 8, 8> a,
                                              simdgroup_matrix<B, 8, 8> b, simdgroup_matrix<C, 8, 8> c) {
  mtl_mma s;
  for (int i = 0; i < 2; i++) {
    s.a[i] = (float)a.e[i];
    s.b[i] = (float)b.e[i];
    s.c[i] = (float)c.e[i];
  }
  mtl_collective(mtlop_mma, &s, MTL_MATRIX, 2 * 8 * 8 * 8);
  for (int i = 0; i < 2; i++) d.e[i] = (D)s.c[i];
}

template <class D, class A, class B>
METAL_FUNC void simdgroup_multiply(thread simdgroup_matrix<D, 8, 8>& d, simdgroup_matrix<A, 8, 8> a,
                                   simdgroup_matrix<B, 8, 8> b) {
  simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<float, 8, 8>(0.0f));
}
}  // namespace metal
