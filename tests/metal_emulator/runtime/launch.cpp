// One launch: buffers into the arena, threadgroups one after another, outputs back. Also atomics, and bfloat rounding.
#include <sys/mman.h>
#include <algorithm>
#include <cstring>
#include <numeric>
#include "machine.h"

Launch* launch;
Stats* stats;
char *stacks, *arena, *threadgroup_memory;
EXPORT u64 mtl_flops, mtl_special;
u64 mtl_flops, mtl_special;  // instrument.py adds to them
void check_atomic(void* p, u32 bytes, bool store, u64 site);

static void* map(void* at, u64 bytes, int access, int flags) {
  return mmap(at, bytes, access, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
}

// The arena is address space only; a buffer's pages and the pads around it are mapped while a launch runs.
static bool reserve() {
  if (arena) return true;
  const int readable = PROT_READ | PROT_WRITE;
  void* a = map(nullptr, MAX_THREADS * STACK, readable, MAP_NORESERVE);
  void* b = map(nullptr, THREADGROUP_MAPPED, readable, 0);
  void* c = map(nullptr, BUFFERS * SLOT, PROT_NONE, MAP_NORESERVE);
  if (a == MAP_FAILED || b == MAP_FAILED || c == MAP_FAILED) return false;
  stacks = (char*)a, threadgroup_memory = (char*)b, arena = (char*)c;
  for (int i = 0; i < MAX_THREADS; i++) mprotect(stacks + i * STACK, 4096, PROT_NONE);  // a stack that overflows
  return true;
}

static bool map_buffer(int b, int access) {
  char* start = arena + b * SLOT + SLOT / 2 - PAD;
  u64 bytes = (launch->buffers[b].size + launch->buffers[b].shift + 2 * PAD + 4095) & ~4095ull;
  return map(start, bytes, access, MAP_FIXED | MAP_NORESERVE) != MAP_FAILED;
}

// Fresh pages are zero: those that stay so are not written, and so take no memory. A stack of gigabytes can be tested.
static void copy_in(int b) {
  static const char zeros[4096] = {};
  const char* from = (const char*)launch->buffers[b].data;
  for (u64 at = 0, n; at < launch->buffers[b].size; at += n) {
    n = std::min<u64>(sizeof zeros, launch->buffers[b].size - at);
    if (memcmp(from + at, zeros, n)) memcpy(buffer_start(b) + at, from + at, n);
  }
}

static std::vector<u32> order(u32 n) {
  std::vector<u32> o(n);
  std::iota(o.begin(), o.end(), 0);
  if (launch->schedule == REVERSE) std::reverse(o.begin(), o.end());
  if (launch->schedule == RANDOM)
    for (u32 i = n; i > 1; i--) std::swap(o[i - 1], o[random_below(i)]);
  return o;
}

static void run_grid() {
  u32 n = 1;
  for (int d = 0; d < 3; d++) {
    threadgroup_count[d] = (launch->grid[d] + launch->threads[d] - 1) / launch->threads[d];
    n *= threadgroup_count[d];
  }
  threadgroup_index = 0;
  for (u32 i : order(n)) {
    threadgroup_position[0] = i % threadgroup_count[0];
    threadgroup_position[1] = i / threadgroup_count[0] % threadgroup_count[1];
    threadgroup_position[2] = i / threadgroup_count[0] / threadgroup_count[1];
    checks_begin_threadgroup();
    run_threadgroup();
    threadgroup_index++;
    if (stopped) return;
  }
}

// 0 done, 1 no memory, 2 too many threads or arguments, 3 stopped at a fault that cannot be survived.
EXPORT int mtl_run(Launch* l, Stats* s) {
  launch = l, stats = s;
  memset(s, 0, sizeof *s);
  stopped = false;
  mtl_flops = mtl_special = 0;
  if (!reserve()) return 1;
  if ((u64)l->threads[0] * l->threads[1] * l->threads[2] > MAX_THREADS || l->arguments > MAX_ARGUMENTS) return 2;
  for (int b = 0; b < BUFFERS; b++) {
    const Buffer& buffer = l->buffers[b];
    if (!buffer.data) continue;
    if (buffer.size > SLOT / 2 - 2 * PAD || !map_buffer(b, PROT_READ | PROT_WRITE)) return 1;
    copy_in(b);
  }
  checks_begin();
  run_grid();
  checks_end();
  for (int b = 0; b < BUFFERS; b++) {
    const Buffer& buffer = l->buffers[b];
    if (!buffer.data) continue;
    if (buffer.flags & OUTPUT) memcpy(buffer.data, buffer_start(b), buffer.size);
    map_buffer(b, PROT_NONE);
  }
  s->flops = mtl_flops, s->special = mtl_special;
  return stopped ? 3 : 0;
}

// ---- atomics: the operations are those of shim/atomics.h

template <class T>
static T combine(u32 operation, T a, T b) {
  switch (operation) {
    case 2: return a + b;
    case 3: return a - b;
    case 4: return std::min(a, b);
    case 5: return std::max(a, b);
    default: return b;
  }
}

static u64 combine_bits(u32 operation, u32 type, u32 bytes, u64 old, u64 v) {
  if (operation == 6) return old & v;
  if (operation == 7) return old | v;
  if (operation == 8) return old ^ v;
  if (operation < 2 || operation > 5) return v;
  if (type == 2) {
    float a, b;
    memcpy(&a, &old, 4), memcpy(&b, &v, 4);
    a = combine(operation, a, b);
    u64 bits = 0;
    memcpy(&bits, &a, 4);
    return bits;
  }
  if (type == 0)
    return bytes == 4 ? (u32)combine<int32_t>(operation, old, v) : (u64)combine<int64_t>(operation, old, v);
  return bytes == 4 ? combine<u32>(operation, old, v) : combine<u64>(operation, old, v);
}

EXPORT NOINLINE u64 mtl_atomic(void* p, u32 bytes, u32 type, u32 operation, u64 v, u64 expected) {
  enum { LOAD = 0, COMPARE_EXCHANGE = 9 };
  check_atomic(p, bytes, operation != LOAD, SITE);
  u64 old = 0;
  memcpy(&old, p, bytes);
  if (operation == LOAD || (operation == COMPARE_EXCHANGE && old != expected)) return old;
  u64 now = combine_bits(operation, type, bytes, old, v);
  memcpy(p, &now, bytes);
  return old;
}

// float -> bfloat, to the nearest, ties to even: the compiler calls it, and libgcc 12 has none.
EXPORT __bf16 __truncsfbf2(float x) {
  u32 bits;
  memcpy(&bits, &x, 4);
  u16 rounded = x != x ? (u16)(bits >> 16 | 64) : (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  __bf16 result;
  memcpy(&result, &rounded, 2);
  return result;
}
