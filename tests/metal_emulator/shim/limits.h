// numeric_limits of the scalar types.
#pragma once
#include "traits.h"

namespace metal {
template <class T>
struct numeric_limits;
#define MTL_LIMI(T, LO, HI)                    \
  template <>                                  \
  struct numeric_limits<T> {                   \
    static constexpr T max() { return HI; }    \
    static constexpr T min() { return LO; }    \
    static constexpr T lowest() { return LO; } \
  };
MTL_LIMI(bool, false, true)
MTL_LIMI(char, -128, 127)
MTL_LIMI(signed char, -128, 127)
MTL_LIMI(uchar, 0, 255)
MTL_LIMI(short, -32768, 32767)
MTL_LIMI(ushort, 0, 65535)
MTL_LIMI(int, INT_MIN, INT_MAX)
MTL_LIMI(uint, 0, UINT_MAX)
MTL_LIMI(long, (-9223372036854775807L - 1), 9223372036854775807L)
MTL_LIMI(ulong, 0, 18446744073709551615UL)
#define MTL_LIMF(T, MX, MN, EPS, INF)                 \
  template <>                                         \
  struct numeric_limits<T> {                          \
    static constexpr T max() { return MX; }           \
    static constexpr T min() { return MN; }           \
    static constexpr T lowest() { return -MX; }       \
    static constexpr T epsilon() { return EPS; }      \
    static constexpr T infinity() { return INF; }     \
    static constexpr T quiet_NaN() { return (T)NAN; } \
  };
MTL_LIMF(float, FLT_MAX, FLT_MIN, FLT_EPSILON, INFINITY)
MTL_LIMF(half, 65504.0h, 6.103515625e-05h, 9.765625e-04h, (half)INFINITY)
MTL_LIMF(bfloat, (bfloat)3.3895313892515355e38f, (bfloat)1.175494351e-38f, (bfloat)7.8125e-3f, (bfloat)INFINITY)
}  // namespace metal
