// What the kernels ask of the runtime (runtime/). All that needs another thread goes through mtl_collective: the lanes
// of a simdgroup wait, the function runs once for the active ones, the lanes go on.
#pragma once
#include "language.h"

enum { MTL_SIMD, MTL_MATRIX, MTL_TENSOR };                        // kinds of collective, as the counters tell them apart
enum { MTL_INACTIVE_SHUFFLE = 8, MTL_MATRIX_LANES_MISSING = 17 };  // as in runtime/machine.h
typedef void (*mtl_fn)(void* thread*, uint);  // runs once per simdgroup: per-lane io pointers, active-lane mask
extern "C" {
// nomerge: two calls merged into one would look like one site, and hide divergence.
__attribute__((nomerge)) void mtl_collective(mtl_fn f, void* io, uint kind, uint flops);
__attribute__((nomerge)) void mtl_barrier(uint scope, uint flags);  // scope: 0 simdgroup, 1 threadgroup
uint mtl_lane();
uint mtl_active();  // lanes of this simdgroup that have not exited
threadgroup void* mtl_tgvar(uint id, ulong bytes, ulong align);
ulong mtl_atomic(void* p, uint bytes, uint type, uint op, ulong v, ulong expected);  // returns the old bits
void mtl_report(uint code, uint aux);
}
