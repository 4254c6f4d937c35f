// The words of the Metal Shading Language, on top of "C++ for OpenCL": its address spaces are OpenCL's, so the
// front end rejects misuse of them as Metal's compiler does.
#pragma once

#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#pragma OPENCL EXTENSION __cl_clang_function_pointers : enable
#pragma OPENCL EXTENSION __cl_clang_variadic_functions : enable
#define __METAL__ 1
#define device __global
#define threadgroup __local
#define thread __private
#define kernel
#define global mtl_id_global
#define local mtl_id_local
#define generic mtl_id_generic
#define METAL_FUNC inline __attribute__((always_inline))
#define METAL_INTERNAL METAL_FUNC
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define MAXFLOAT 3.402823466e+38f
#define FLT_MAX 3.402823466e+38f
#define FLT_MIN 1.175494351e-38f
#define FLT_EPSILON 1.192092896e-07f
#define HALF_MAX 65504.0h
#define INT_MAX 2147483647
#define INT_MIN (-2147483647 - 1)
#define UINT_MAX 0xffffffffu
#define M_PI_F 3.14159265358979323846f
#define M_PI_2_F 1.57079632679489661923f
#define M_1_PI_F 0.318309886183790671538f
#define M_2_PI_F 0.636619772367581343076f
#define M_E_F 2.71828182845904523536f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LN2_F 0.693147180559945309417f
#define M_SQRT2_F 1.41421356237309504880f
#define M_SQRT1_2_F 0.707106781186547524401f

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef signed char int8_t;
typedef uchar uint8_t;
typedef short int16_t;
typedef ushort uint16_t;
typedef int int32_t;
typedef uint uint32_t;
typedef long int64_t;
typedef ulong uint64_t;
typedef unsigned long size_t;
typedef long ptrdiff_t;
typedef long intptr_t;
typedef unsigned long uintptr_t;
typedef __bf16 bfloat;
#define MTL_VT(T, NAME)                                  \
  typedef T NAME##2 __attribute__((ext_vector_type(2))); \
  typedef T NAME##3 __attribute__((ext_vector_type(3))); \
  typedef T NAME##4 __attribute__((ext_vector_type(4)));
MTL_VT(char, char)
MTL_VT(uchar, uchar)
MTL_VT(short, short)
MTL_VT(ushort, ushort)
MTL_VT(int, int)
MTL_VT(uint, uint)
MTL_VT(long, long)
MTL_VT(ulong, ulong)
MTL_VT(half, half)
MTL_VT(float, float)
MTL_VT(bfloat, bfloat)
MTL_VT(char, bool)
