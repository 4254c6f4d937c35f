// Vector constructors (rewrite.py turns float4(a, b) into mtl_mk<float4>(a, b)), as_type, packed vectors.
#pragma once
#include "traits.h"

namespace metal {
template <class T, class U>
constexpr inline T as_type(U x) {
  return __builtin_bit_cast(T, x);
}

template <class V, class A>
inline void mtl_put(thread V& v, thread int& i, A a) {
  typedef typename mtl_vt<V>::elem E;
  if constexpr (mtl_vt<A>::n == 1) v[i++] = (E)a;
  else
    for (int j = 0; j < mtl_vt<A>::n; j++) v[i++] = (E)a[j];
}

template <class V, class... A>
inline V mtl_mk(A... a) {
  static_assert((0 + ... + mtl_vt<A>::n) == mtl_vt<V>::n || (sizeof...(A) == 1 && (0 + ... + mtl_vt<A>::n) == 1),
                "vector constructor arity");
  V v{};
  int i = 0;
  (mtl_put(v, i, a), ...);
  if constexpr (sizeof...(A) == 1 && (0 + ... + mtl_vt<A>::n) == 1) v = (V)(v[0]);
  return v;
}

template <class V>
inline V mtl_mk() {
  return (V)(typename mtl_vt<V>::elem)0;
}

template <class T, int N>
struct mtl_packed {
  T e[N];
  mtl_packed() = default;
  mtl_packed(vec<T, N> v) {
    for (int i = 0; i < N; i++) e[i] = v[i];
  }
  operator vec<T, N>() const {
    vec<T, N> v;
    for (int i = 0; i < N; i++) v[i] = e[i];
    return v;
  }
};

typedef mtl_packed<float, 2> packed_float2;
typedef mtl_packed<float, 3> packed_float3;
typedef mtl_packed<float, 4> packed_float4;
typedef mtl_packed<half, 2> packed_half2;
typedef mtl_packed<half, 3> packed_half3;
typedef mtl_packed<half, 4> packed_half4;
typedef mtl_packed<uchar, 4> packed_uchar4;
typedef mtl_packed<uint, 3> packed_uint3;
}  // namespace metal
