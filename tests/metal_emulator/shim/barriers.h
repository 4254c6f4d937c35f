// Barriers and the memory they order.
#pragma once
#include "host.h"

namespace metal {
enum class mem_flags : uint { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
inline constexpr mem_flags operator|(mem_flags a, mem_flags b) { return (mem_flags)((uint)a | (uint)b); }
METAL_FUNC void threadgroup_barrier(mem_flags f) { mtl_barrier(1, (uint)f); }
METAL_FUNC void simdgroup_barrier(mem_flags f) { mtl_barrier(0, (uint)f); }
}  // namespace metal
