// Integer functions.
#pragma once
#include "traits.h"

namespace metal {
#define MTL_I(T)                                                                                               \
  inline T min(T a, T b) { return a < b ? a : b; }                                                             \
  inline T max(T a, T b) { return a > b ? a : b; }                                                             \
  inline T clamp(T x, T a, T b) { return min(max(x, a), b); }                                                  \
  inline T popcount(T x) {                                                                                     \
    return (T)__builtin_popcountl(sizeof(T) == 8 ? (ulong)x : (ulong)x & ((1UL << (8 * sizeof(T) % 64)) - 1)); \
  }                                                                                                            \
  inline T clz(T x) {                                                                                          \
    ulong u = (ulong)x & (~0UL >> (64 - 8 * sizeof(T)));                                                       \
    return (T)(u ? __builtin_clzl(u) - (64 - 8 * (int)sizeof(T)) : 8 * (int)sizeof(T));                        \
  }                                                                                                            \
  inline T ctz(T x) { return (T)(x ? __builtin_ctzl((ulong)x) : 8 * (int)sizeof(T)); }                         \
  inline T rotate(T x, T r) {                                                                                  \
    ulong n = 8 * sizeof(T), k = (ulong)r % n, u = (ulong)x & (~0UL >> (64 - n));                              \
    return (T)(k ? (u << k) | (u >> (n - k)) : u);                                                             \
  }                                                                                                            \
  inline T extract_bits(T x, uint o, uint n) {                                                                 \
    return n ? (T)((T)(x << (8 * sizeof(T) - o - n)) >> (8 * sizeof(T) - n)) : (T)0;                           \
  }                                                                                                            \
  inline T insert_bits(T b, T x, uint o, uint n) {                                                             \
    ulong m = (n >= 64 ? ~0UL : ((1UL << n) - 1)) << o;                                                        \
    return (T)(((ulong)b & ~m) | (((ulong)x << o) & m));                                                       \
  }                                                                                                            \
  inline T reverse_bits(T x) {                                                                                 \
    T r = 0;                                                                                                   \
    for (uint i = 0; i < 8 * sizeof(T); i++)                                                                   \
      if ((ulong)x >> i & 1) r |= (T)(1UL << (8 * sizeof(T) - 1 - i));                                         \
    return r;                                                                                                  \
  }
MTL_I(char)
MTL_I(uchar)
MTL_I(short)
MTL_I(ushort)
MTL_I(int)
MTL_I(uint)
MTL_I(long)
MTL_I(ulong)
inline int abs(int x) { return x < 0 ? -x : x; }
inline short abs(short x) { return x < 0 ? -x : x; }
inline long abs(long x) { return x < 0 ? -x : x; }
inline uint mulhi(uint a, uint b) { return (uint)(((ulong)a * b) >> 32); }
inline int mulhi(int a, int b) { return (int)(((long)a * b) >> 32); }
inline uint absdiff(int a, int b) { return a > b ? (uint)a - (uint)b : (uint)b - (uint)a; }
inline uint absdiff(uint a, uint b) { return a > b ? a - b : b - a; }
}  // namespace metal
