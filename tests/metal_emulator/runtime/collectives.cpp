// Operations that need more than one thread: simdgroup functions, matrix products, barriers.
#include <algorithm>
#include "machine.h"

static u32 barrier_flags;  // of the barrier last reached
enum { FLAG_DEVICE = 1, FLAG_THREADGROUP = 2 };
enum { MATRIX = 1, TENSOR = 2 };  // kinds, as in shim/host.h

static void count(const Fiber& f) {
  if (f.kind == MATRIX) stats->matrix_ops++;
  else if (f.kind == TENSOR) stats->tensor_ops++;
  else stats->simd_ops++;
  stats->matrix_flops += f.flops;
}

// Runs `body` as one of the threads it concerns, so that what it reports names that thread.
template <class Body>
static void as_thread(Fiber& f, Body body) {
  Fiber* before = current;
  current = &f;
  body();
  current = before;
}

void resolve(Simdgroup& group) {
  Fiber* base = fibers + current_simdgroup * LANES;
  // Lanes that wait at different places of the code do so in different operations: the one placed first goes first.
  void* site = (void*)~0ull;
  for (u32 t = group.wait; t; t &= t - 1) site = std::min(site, base[__builtin_ctz(t)].site);
  u32 lanes = 0;
  for (u32 t = group.wait; t; t &= t - 1)
    if (base[__builtin_ctz(t)].site == site) lanes |= t & -t;
  Fiber& first = base[__builtin_ctz(lanes)];
  if (lanes != group.all) {
    stats->simd_diverged++;
    as_thread(first, [&] { add_fault(SIMD_LANES_MISSING, NO_BUFFER, 0, 0, lanes, (u64)site); });
  }
  if (first.function) {
    void* io[LANES];
    for (u32 t = lanes; t; t &= t - 1) io[__builtin_ctz(t)] = base[__builtin_ctz(t)].io;
    as_thread(first, [&] { first.function(io, lanes); });
    count(first);
  } else {
    if (barrier_flags & FLAG_THREADGROUP) group.epoch++;
    stats->simdgroup_barriers++;
  }
  group.wait &= ~lanes;
  group.run |= lanes;
}

void release_barrier() {
  Fiber* first = nullptr;
  bool returned = false, diverged = false;
  for (int s = 0; s < simdgroup_count; s++) {
    Simdgroup& group = simdgroups[s];
    returned |= group.done != 0;
    for (u32 t = group.barrier; t; t &= t - 1) {
      Fiber& f = fibers[s * LANES + __builtin_ctz(t)];
      if (!first) first = &f;
      else diverged |= f.site != first->site;
    }
    group.run = group.barrier;
    group.barrier = 0;
  }
  as_thread(*first, [&] {
    if (diverged) add_fault(BARRIER_DIVERGED, NO_BUFFER, 0, 0, 0, (u64)first->site);
    if (returned) add_fault(BARRIER_AFTER_RETURN, NO_BUFFER, 0, 0, 0, (u64)first->site);
  });
  if (barrier_flags & FLAG_THREADGROUP) threadgroup_epoch++;
  if (barrier_flags & FLAG_DEVICE) device_epoch++;
  stats->threadgroup_barriers++;
}

static void wait(u32 Simdgroup::* where) {
  u32 bit = 1u << current->index % LANES;
  Simdgroup& group = simdgroups[current_simdgroup];
  group.run &= ~bit;
  group.*where |= bit;
  reschedule();
}

EXPORT NOINLINE void mtl_collective(Collective function, void* io, u32 kind, u32 flops) {
  Fiber* f = current;
  f->site = __builtin_return_address(0);
  f->function = function;
  f->io = io;
  f->kind = kind;
  f->flops = flops;
  wait(&Simdgroup::wait);
}

EXPORT NOINLINE void mtl_barrier(u32 scope, u32 flags) {
  barrier_flags = flags;
  current->site = __builtin_return_address(0);
  current->function = nullptr;
  wait(scope ? &Simdgroup::barrier : &Simdgroup::wait);
}

EXPORT u32 mtl_lane() { return current->index % LANES; }
EXPORT u32 mtl_active() { return simdgroups[current_simdgroup].all & ~simdgroups[current_simdgroup].done; }
EXPORT NOINLINE void mtl_report(u32 code, u32 other) { add_fault(code, NO_BUFFER, 0, 0, other, (u64)current->site); }
