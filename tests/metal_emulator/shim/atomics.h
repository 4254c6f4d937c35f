// Atomics on device and threadgroup memory; the runtime does them, one at a time.
#pragma once
#include "barriers.h"
#include "traits.h"

namespace metal {
enum memory_order {
  memory_order_relaxed,
  memory_order_acquire,
  memory_order_release,
  memory_order_acq_rel,
  memory_order_seq_cst
};

enum thread_scope { thread_scope_thread, thread_scope_simdgroup, thread_scope_threadgroup, thread_scope_device };
template <class T>
struct atomic {
  T v;
};

typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
typedef atomic<bool> atomic_bool;
typedef atomic<ulong> atomic_ulong;
template <class T>
inline ulong mtl_bits(T x) {
  if constexpr (sizeof(T) == 8) return as_type<ulong>(x);
  else if constexpr (sizeof(T) == 4) return as_type<uint>(x);
  else return (ulong)x;
}

template <class T>
inline T mtl_unbits(ulong x) {
  if constexpr (sizeof(T) == 8) return as_type<T>(x);
  else if constexpr (sizeof(T) == 4) return as_type<T>((uint)x);
  else return (T)x;
}

template <class T>
inline constexpr uint mtl_aty() {
  return is_floating_point_v<T> ? 2 : is_signed_v<T> ? 0 : 1;
}
#define MTL_AT(AS)                                                                                                \
  template <class T>                                                                                              \
  METAL_FUNC T atomic_load_explicit(const volatile AS atomic<T>* p, memory_order) {                               \
    return mtl_unbits<T>(mtl_atomic((void*)p, sizeof(T), mtl_aty<T>(), 0, 0, 0));                                 \
  }                                                                                                               \
  template <class T, class U>                                                                                     \
  METAL_FUNC void atomic_store_explicit(volatile AS atomic<T>* p, U v, memory_order) {                            \
    mtl_atomic((void*)p, sizeof(T), mtl_aty<T>(), 1, mtl_bits((T)v), 0);                                          \
  }                                                                                                               \
  template <class T, class U>                                                                                     \
  METAL_FUNC T atomic_exchange_explicit(volatile AS atomic<T>* p, U v, memory_order) {                            \
    return mtl_unbits<T>(mtl_atomic((void*)p, sizeof(T), mtl_aty<T>(), 1, mtl_bits((T)v), 0));                    \
  }                                                                                                               \
  MTL_RMW(AS, add, 2)                                                                                             \
  MTL_RMW(AS, sub, 3)                                                                                             \
  MTL_RMW(AS, min, 4)                                                                                             \
  MTL_RMW(AS, max, 5)                                                                                             \
  MTL_RMW(AS, and, 6)                                                                                             \
  MTL_RMW(AS, or, 7)                                                                                              \
  MTL_RMW(AS, xor, 8)                                                                                             \
  template <class T, class U>                                                                                     \
  METAL_FUNC bool atomic_compare_exchange_weak_explicit(volatile AS atomic<T>* p, thread T* e, U v, memory_order, \
                                                        memory_order) {                                           \
    ulong want = mtl_bits(*e), old = mtl_atomic((void*)p, sizeof(T), mtl_aty<T>(), 9, mtl_bits((T)v), want);      \
    *e = mtl_unbits<T>(old);                                                                                      \
    return old == want;                                                                                           \
  }
#define MTL_RMW(AS, n, op)                                                                      \
  template <class T, class U>                                                                   \
  METAL_FUNC T atomic_fetch_##n##_explicit(volatile AS atomic<T>* p, U v, memory_order) {       \
    return mtl_unbits<T>(mtl_atomic((void*)p, sizeof(T), mtl_aty<T>(), op, mtl_bits((T)v), 0)); \
  }
MTL_AT(device)
MTL_AT(threadgroup)
METAL_FUNC void atomic_thread_fence(mem_flags, memory_order, thread_scope = thread_scope_device) {}
struct execution_simdgroup {};
template <class T>
using uniform = T;
template <class T>
METAL_FUNC T make_uniform(T x) {
  return x;
}
}  // namespace metal
