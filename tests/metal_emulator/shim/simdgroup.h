// Simdgroup and quadgroup functions. An mtlop_ function runs once for the active lanes of a simdgroup; the
// instrumentation leaves it alone.
#pragma once
#include "host.h"
#include "integers.h"
#include "math.h"

namespace metal {
enum { MTL_SUM, MTL_PROD, MTL_MAX, MTL_MIN, MTL_AND, MTL_OR, MTL_XOR };
template <int OP, class T>
inline T mtl_comb(T a, T b) {
  if constexpr (OP == MTL_SUM) return a + b;
  else if constexpr (OP == MTL_PROD) return a * b;
  else if constexpr (OP == MTL_MAX) return max(a, b);
  else if constexpr (OP == MTL_MIN) return min(a, b);
  else if constexpr (OP == MTL_AND) return a & b;
  else if constexpr (OP == MTL_OR) return a | b;
  else return a ^ b;
}

// In butterfly order, xor 1, 2, 4, 8, 16: a model of the hardware's order of summation.
template <int OP, int W, class T>
void mtlop_reduce(void* thread* p, uint m) {
  T t[32];
  uint has = m;
  for (int i = 0; i < 32; i++)
    if (m >> i & 1) t[i] = *(T*)p[i];
  for (int s = 1; s < W; s *= 2)
    for (int i = 0; i < 32; i += 2 * s) {
      bool a = has >> i & 1, b = has >> (i + s) & 1;
      if (b) {
        t[i] = a ? mtl_comb<OP>(t[i], t[i + s]) : t[i + s];
        has |= 1u << i;
      }
    }
  for (int i = 0; i < 32; i++)
    if (m >> i & 1) *(T*)p[i] = t[i & ~(W - 1)];
}

template <int OP, int W, class T>
METAL_FUNC T mtl_reduce(T x) {
  T v = x;
  mtl_collective(mtlop_reduce<OP, W, T>, &v, MTL_SIMD, 0);
  return v;
}

// EX: exclusive.
template <int OP, bool EX, class T>
void mtlop_scan(void* thread* p, uint m) {
  T acc{};
  bool first = true;
  if constexpr (OP == MTL_PROD) acc = (T)1;
  for (int i = 0; i < 32; i++)
    if (m >> i & 1) {
      T v = *(T*)p[i], n = first ? v : mtl_comb<OP>(acc, v);
      *(T*)p[i] = EX ? acc : n;
      acc = n;
      first = false;
    }
}

template <class T>
struct mtl_shuf {
  T v, fill;
  int src;  // the lane to read; -1 keeps the own value, -2 takes fill
};

template <class T>
void mtlop_shuffle(void* thread* p, uint m) {
  T t[32];
  for (int i = 0; i < 32; i++)
    if (m >> i & 1) t[i] = ((mtl_shuf<T>*)p[i])->v;
  for (int i = 0; i < 32; i++)
    if (m >> i & 1) {
      mtl_shuf<T>* s = (mtl_shuf<T>*)p[i];
      if (s->src == -1) continue;
      if (s->src == -2) s->v = s->fill;
      else if (s->src < 0 || s->src > 31 || !(m >> s->src & 1)) {
        mtl_report(MTL_INACTIVE_SHUFFLE, s->src);
        s->v = T{};
      } else s->v = t[s->src];
    }
}

template <class T>
METAL_FUNC T mtl_shuffle(T x, int src, T fill = T{}) {
  mtl_shuf<T> s{x, fill, src};
  mtl_collective(mtlop_shuffle<T>, &s, MTL_SIMD, 0);
  return s.v;
}

#define MTL_RED(n, OP)            \
  template <class T>              \
  METAL_FUNC T simd_##n(T x) {    \
    return mtl_reduce<OP, 32>(x); \
  }                               \
  template <class T>              \
  METAL_FUNC T quad_##n(T x) {    \
    return mtl_reduce<OP, 4>(x);  \
  }
MTL_RED(sum, MTL_SUM)
MTL_RED(product, MTL_PROD)
MTL_RED(max, MTL_MAX)
MTL_RED(min, MTL_MIN)
MTL_RED(and, MTL_AND)
MTL_RED(or, MTL_OR)
MTL_RED(xor, MTL_XOR)

#define MTL_SCAN(n, OP, EX)                       \
  template <class T>                              \
  METAL_FUNC T n(T x) {                           \
    T v = x;                                      \
    mtl_collective(mtlop_scan<OP, EX, T>, &v, MTL_SIMD, 0); \
    return v;                                     \
  }
MTL_SCAN(simd_prefix_inclusive_sum, MTL_SUM, false)
MTL_SCAN(simd_prefix_exclusive_sum, MTL_SUM, true)
MTL_SCAN(simd_prefix_inclusive_product, MTL_PROD, false)
MTL_SCAN(simd_prefix_exclusive_product, MTL_PROD, true)

// Without wrapping, lanes whose source lies outside the simdgroup keep their own value.
template <class T>
METAL_FUNC T simd_shuffle(T x, ushort l) {
  return mtl_shuffle(x, (int)l);
}

template <class T>
METAL_FUNC T simd_broadcast(T x, ushort l) {
  return mtl_shuffle(x, (int)l);
}

template <class T>
METAL_FUNC T simd_shuffle_xor(T x, ushort k) {
  return mtl_shuffle(x, (int)(mtl_lane() ^ k));
}

template <class T>
METAL_FUNC T simd_shuffle_down(T x, ushort d) {
  return mtl_shuffle(x, mtl_lane() + d < 32 ? (int)(mtl_lane() + d) : -1);
}

template <class T>
METAL_FUNC T simd_shuffle_up(T x, ushort d) {
  return mtl_shuffle(x, mtl_lane() >= d ? (int)(mtl_lane() - d) : -1);
}

template <class T>
METAL_FUNC T simd_shuffle_rotate_down(T x, ushort d) {
  return mtl_shuffle(x, (int)((mtl_lane() + d) & 31));
}

template <class T>
METAL_FUNC T simd_shuffle_rotate_up(T x, ushort d) {
  return mtl_shuffle(x, (int)((mtl_lane() - d) & 31));
}

template <class T>
METAL_FUNC T simd_shuffle_and_fill_down(T x, T f, ushort d) {
  T a = mtl_shuffle(f, (int)((mtl_lane() + d) & 31));
  return mtl_shuffle(x, mtl_lane() + d < 32 ? (int)(mtl_lane() + d) : -2, a);
}

template <class T>
METAL_FUNC T simd_shuffle_and_fill_up(T x, T f, ushort d) {
  T a = mtl_shuffle(f, (int)((mtl_lane() - d) & 31));
  return mtl_shuffle(x, mtl_lane() >= d ? (int)(mtl_lane() - d) : -2, a);
}

template <class T>
METAL_FUNC T quad_shuffle(T x, ushort l) {
  return mtl_shuffle(x, (int)((mtl_lane() & ~3u) + (l & 3)));
}

template <class T>
METAL_FUNC T quad_broadcast(T x, ushort l) {
  return mtl_shuffle(x, (int)((mtl_lane() & ~3u) + (l & 3)));
}

template <class T>
METAL_FUNC T quad_shuffle_xor(T x, ushort k) {
  return mtl_shuffle(x, (int)(mtl_lane() ^ (k & 3)));
}

template <class T>
METAL_FUNC T quad_shuffle_down(T x, ushort d) {
  return mtl_shuffle(x, (mtl_lane() & 3) + d < 4 ? (int)(mtl_lane() + d) : -1);
}

template <class T>
METAL_FUNC T quad_shuffle_up(T x, ushort d) {
  return mtl_shuffle(x, (mtl_lane() & 3) >= d ? (int)(mtl_lane() - d) : -1);
}

struct simd_vote {
  ulong v;
  typedef ulong vote_t;
  simd_vote(ulong x) : v(x) {}
  operator ulong() const { return v; }
  bool all() const { return (uint)v == 0xffffffffu; }
  bool any() const { return v != 0; }
};

METAL_FUNC simd_vote simd_ballot(bool b) { return simd_vote(mtl_reduce<MTL_OR, 32>(b ? 1u << mtl_lane() : 0u)); }
METAL_FUNC bool simd_any(bool b) { return mtl_reduce<MTL_OR, 32>((uint)b); }
METAL_FUNC bool simd_all(bool b) { return mtl_reduce<MTL_AND, 32>((uint)b); }
METAL_FUNC simd_vote simd_active_threads_mask() { return simd_ballot(true); }
METAL_FUNC bool simd_is_first() { return mtl_reduce<MTL_MIN, 32>(mtl_lane()) == mtl_lane(); }
template <class T>
METAL_FUNC T simd_broadcast_first(T x) {
  return simd_broadcast(x, (ushort)mtl_reduce<MTL_MIN, 32>(mtl_lane()));
}
}  // namespace metal
