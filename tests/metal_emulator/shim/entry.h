// How a kernel is called: a[i] is the address of a buffer, or points at three uints of a thread attribute.
#pragma once
#include "host.h"
#include "vectors.h"

using metal::mtl_mk;
METAL_FUNC ushort __metal_get_thread_index_in_simdgroup(ushort) { return (ushort)mtl_lane(); }
template <class T, uint ID>
METAL_FUNC threadgroup T& mtl_tg() {
  return *(threadgroup T*)mtl_tgvar(ID, sizeof(T), alignof(T));
}

template <class A>
struct mtl_arg {
  static A get(ulong v) {
    typedef typename metal::mtl_vt<A>::elem E;
    constexpr int n = metal::mtl_vt<A>::n;
    if constexpr (n == 1) return (A)((thread uint*)v)[0];
    else {
      A r;
      for (int i = 0; i < n; i++) r[i] = (E)((thread uint*)v)[i];
      return r;
    }
  }
};
#define MTL_ARG(AS)                                 \
  template <class T>                                \
  struct mtl_arg<AS T*> {                           \
    static AS T* get(ulong v) { return (AS T*)v; }  \
  };                                                \
  template <class T>                                \
  struct mtl_arg<AS T&> {                           \
    static AS T& get(ulong v) { return *(AS T*)v; } \
  };
MTL_ARG(device)
MTL_ARG(constant)
MTL_ARG(threadgroup)
template <int... I>
struct mtl_seq {};
template <int N, int... I>
struct mtl_mkseq : mtl_mkseq<N - 1, N - 1, I...> {};
template <int... I>
struct mtl_mkseq<0, I...> {
  typedef mtl_seq<I...> type;
};

template <class... A, int... I>
METAL_FUNC void mtl_invoke2(void (*f)(A...), const thread ulong* a, mtl_seq<I...>) {
  f(mtl_arg<A>::get(a[I])...);
}

template <class... A>
METAL_FUNC void mtl_invoke(void (*f)(A...), const thread ulong* a) {
  mtl_invoke2(f, a, typename mtl_mkseq<sizeof...(A)>::type{});
}
