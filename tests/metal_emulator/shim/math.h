// Floating-point functions: computed by libm in float32 and rounded once for half and bfloat. `fast` and `precise`
// are the same here; how far Apple's fast forms differ is for a Mac to say.
#pragma once
#include "vectors.h"

namespace metal {
#define MTL_F1(f, e)                                        \
  inline float f(float x) { return e; }                     \
  inline half f(half x) { return (half)f((float)x); }       \
  inline bfloat f(bfloat x) { return (bfloat)f((float)x); } \
  template <class T, int N>                                 \
  inline vec<T, N> f(vec<T, N> x) {                         \
    vec<T, N> r;                                            \
    for (int i = 0; i < N; i++) r[i] = f(x[i]);             \
    return r;                                               \
  }
#define MTL_F2(f, e)                                                            \
  inline float f(float x, float y) { return e; }                                \
  inline half f(half x, half y) { return (half)f((float)x, (float)y); }         \
  inline bfloat f(bfloat x, bfloat y) { return (bfloat)f((float)x, (float)y); } \
  template <class T, int N>                                                     \
  inline vec<T, N> f(vec<T, N> x, vec<T, N> y) {                                \
    vec<T, N> r;                                                                \
    for (int i = 0; i < N; i++) r[i] = f(x[i], y[i]);                           \
    return r;                                                                   \
  }                                                                             \
  template <class T, int N>                                                     \
  inline vec<T, N> f(vec<T, N> x, T y) {                                        \
    vec<T, N> r;                                                                \
    for (int i = 0; i < N; i++) r[i] = f(x[i], y);                              \
    return r;                                                                   \
  }
#define MTL_F3(f, e)                                                                                \
  inline float f(float x, float y, float z) { return e; }                                           \
  inline half f(half x, half y, half z) { return (half)f((float)x, (float)y, (float)z); }           \
  inline bfloat f(bfloat x, bfloat y, bfloat z) { return (bfloat)f((float)x, (float)y, (float)z); } \
  template <class T, int N>                                                                         \
  inline vec<T, N> f(vec<T, N> x, vec<T, N> y, vec<T, N> z) {                                       \
    vec<T, N> r;                                                                                    \
    for (int i = 0; i < N; i++) r[i] = f(x[i], y[i], z[i]);                                         \
    return r;                                                                                       \
  }
#include "math_functions.h"
namespace fast {
#include "math_functions.h"
}

namespace precise {
#include "math_functions.h"
}

inline float ldexp(float x, int e) { return __builtin_ldexpf(x, e); }
inline half ldexp(half x, int e) { return (half)__builtin_ldexpf((float)x, e); }
template <class T>
inline bool isnan(T x) {
  return x != x;
}

template <class T>
inline bool isinf(T x) {
  return (float)x == INFINITY || (float)x == -INFINITY;
}

template <class T>
inline bool isfinite(T x) {
  return !isnan(x) && !isinf(x);
}

inline bool signbit(float x) { return as_type<uint>(x) >> 31; }
template <class T, class C>
inline T select(T a, T b, C c) {
  if constexpr (mtl_vt<T>::n == 1) return c ? b : a;
  else {
    T r;
    for (int i = 0; i < mtl_vt<T>::n; i++) r[i] = c[i] ? b[i] : a[i];
    return r;
  }
}

template <class T, int N>
inline T dot(vec<T, N> a, vec<T, N> b) {
  T s = a[0] * b[0];
  for (int i = 1; i < N; i++) s += a[i] * b[i];
  return s;
}

template <class T, int N>
inline T length_squared(vec<T, N> a) {
  return dot(a, a);
}

template <class T, int N>
inline T length(vec<T, N> a) {
  return sqrt(dot(a, a));
}

template <class T, int N>
inline vec<T, N> normalize(vec<T, N> a) {
  return a * rsqrt(dot(a, a));
}

template <class T, int N>
inline bool any(vec<T, N> a) {
  bool r = false;
  for (int i = 0; i < N; i++) r = r || a[i];
  return r;
}

template <class T, int N>
inline bool all(vec<T, N> a) {
  bool r = true;
  for (int i = 0; i < N; i++) r = r && a[i];
  return r;
}
}  // namespace metal
