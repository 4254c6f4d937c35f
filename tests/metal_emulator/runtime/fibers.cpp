// Every thread of a threadgroup is a fiber with a stack of its own, so barriers and simdgroup functions exchange values
// as on the hardware. A fiber runs until it waits; who runs next is the schedule's choice, and must not matter.
#include <algorithm>
#include <cstdlib>
#include "machine.h"

Fiber fibers[MAX_THREADS];
Simdgroup simdgroups[MAX_THREADS / LANES];
int simdgroup_count, current_simdgroup;
Fiber* current;
u32 thread_count, threadgroup_position[3], threadgroup_size[3], threadgroup_count[3], threadgroup_index;
bool stopped;
static void* outside;  // the stack of mtl_run

// Saves the callee-saved registers of the System V ABI for x86-64 and goes on where `to` left off.
asm(R"(
.text
.globl mtl_switch
mtl_switch:
  push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
  ret
)");

void stop() {
  stopped = true;
  void* never;
  mtl_switch(&never, outside);
  abort();
}

u32 random_below(u32 n) {
  u32& x = launch->seed;  // xorshift32; launch.py gives no zero
  x ^= x << 13, x ^= x >> 17, x ^= x << 5;
  return x % n;
}

static int pick(u32 lanes) {
  if (launch->schedule == FORWARD) return __builtin_ctz(lanes);
  if (launch->schedule == REVERSE) return 31 - __builtin_clz(lanes);
  for (u32 skip = random_below(__builtin_popcount(lanes)); skip; skip--) lanes &= lanes - 1;
  return __builtin_ctz(lanes);
}

static int first_simdgroup() {
  if (launch->schedule == RANDOM) return random_below(simdgroup_count);
  return launch->schedule == REVERSE ? simdgroup_count - 1 : 0;
}

// The next simdgroup that can go on, in the schedule's order, or -1.
static int next_simdgroup() {
  int n = simdgroup_count, start = launch->schedule == RANDOM ? random_below(n) : current_simdgroup;
  for (int k = 1; k <= n; k++) {
    int s = (start + (launch->schedule == REVERSE ? n - k : k)) % n;
    if (simdgroups[s].run | simdgroups[s].wait) return s;
  }
  return -1;
}

void reschedule() {
  Fiber *me = current, *next = nullptr;
  for (;;) {
    if (launch->schedule == RANDOM)
      if (int s = next_simdgroup(); s >= 0) current_simdgroup = s;
    Simdgroup& group = simdgroups[current_simdgroup];
    if (group.run) {
      next = &fibers[current_simdgroup * LANES + pick(group.run)];
      break;
    }
    if (group.wait) {
      resolve(group);
      continue;
    }
    int s = next_simdgroup();
    if (s >= 0) {
      current_simdgroup = s;
      continue;
    }
    bool any = false;
    for (int i = 0; i < simdgroup_count; i++) any |= simdgroups[i].barrier != 0;
    if (!any) break;  // all have returned
    release_barrier();
    current_simdgroup = first_simdgroup();
    while (!simdgroups[current_simdgroup].run) current_simdgroup = (current_simdgroup + 1) % simdgroup_count;
  }
  if (next == me) return;
  current = next;
  mtl_switch(&me->stack, next ? next->stack : outside);
}

// A thread attribute's value; the kinds are those of signature.py.
static void attribute(int kind, const Fiber& f, u32* v) {
  const u32 full = launch->threads[0] * launch->threads[1] * launch->threads[2];
  v[0] = v[1] = v[2] = v[3] = 0;
  for (int d = 0; d < 3; d++) switch (kind) {
      case 1000: v[d] = threadgroup_position[d] * launch->threads[d] + f.position[d]; break;
      case 1001: v[d] = f.position[d]; break;
      case 1002: v[d] = threadgroup_position[d]; break;
      case 1003: v[d] = threadgroup_size[d]; break;  // smaller at the edge of the grid
      case 1004: v[d] = launch->threads[d]; break;
      case 1005: v[d] = threadgroup_count[d]; break;
      case 1006: v[d] = launch->grid[d]; break;
      case 1007: break;  // grid_origin
    }
  switch (kind) {
    case 1010: v[0] = f.index; break;
    case 1011: v[0] = f.index % LANES; break;
    case 1012: v[0] = f.index / LANES; break;
    case 1013: v[0] = (thread_count + LANES - 1) / LANES; break;
    case 1014: v[0] = LANES; break;
    case 1015: v[0] = (full + LANES - 1) / LANES; break;
    case 1016: v[0] = f.index % 4; break;
    case 1017: v[0] = f.index / 4; break;
    case 1018: v[0] = (thread_count + 3) / 4; break;
    case 1019: v[0] = (full + 3) / 4; break;
  }
}

static void fiber_main() {
  u64 a[MAX_ARGUMENTS];
  u32 values[MAX_ARGUMENTS][4];
  const u32 index = current->index;
  for (int i = 0; i < launch->arguments; i++) {
    int kind = launch->kinds[i];
    if (kind >= 2000) {  // threadgroup memory whose size the launch says
      a[i] = (u64)threadgroup_variable(1u << 30 | kind, launch->threadgroup_bytes[kind - 2000], 16);
    } else if (kind >= 1000) {
      attribute(kind, *current, values[i]);
      a[i] = (u64)values[i];
    } else {
      a[i] = launch->buffers[kind].data ? (u64)buffer_start(kind) : 0;
    }
  }
  ((void (*)(const u64*))launch->entry)(a);
  Simdgroup& group = simdgroups[index / LANES];
  group.run &= ~(1u << index % LANES);
  group.done |= 1u << index % LANES;
  reschedule();
  abort();
}

void run_threadgroup() {
  thread_count = 1;
  for (int d = 0; d < 3; d++) {
    threadgroup_size[d] = std::min(launch->threads[d], launch->grid[d] - threadgroup_position[d] * launch->threads[d]);
    thread_count *= threadgroup_size[d];
  }
  simdgroup_count = (thread_count + LANES - 1) / LANES;
  stats->threads += thread_count;
  stats->threadgroups++;
  for (int i = 0; i < simdgroup_count; i++) {
    u32 lanes = std::min<u32>(LANES, thread_count - i * LANES);
    u32 all = lanes == LANES ? ~0u : (1u << lanes) - 1;
    simdgroups[i] = {all, 0, 0, 0, all, 0};
  }
  for (u32 i = 0; i < thread_count; i++) {
    Fiber& f = fibers[i];
    f.index = i;
    f.position[0] = i % threadgroup_size[0];
    f.position[1] = i / threadgroup_size[0] % threadgroup_size[1];
    f.position[2] = i / (threadgroup_size[0] * threadgroup_size[1]);
    // Staggered: stacks that begin at equal offsets would share cache sets.
    u64* top = (u64*)(stacks + (i + 1) * STACK - i % 64 * 448);
    *--top = 0, *--top = 0, *--top = 0;
    *--top = (u64)fiber_main;
    f.stack = top - 6;
  }
  current_simdgroup = first_simdgroup();
  current = &fibers[current_simdgroup * LANES + pick(simdgroups[current_simdgroup].run)];
  mtl_switch(&outside, current->stack);
  current = nullptr;
}
