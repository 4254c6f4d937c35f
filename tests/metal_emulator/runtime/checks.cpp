// What memory a thread may touch, and when. instrument.py puts a call of mtl_ld or mtl_st before every load and store;
// shadows remember per byte of threadgroup memory, and per element of an output, who touched it last.
#include <algorithm>
#include <array>
#include <cstring>
#include "machine.h"

u32 threadgroup_epoch, device_epoch;

// One byte of threadgroup memory. The writer as thread + 1; readers as simdgroups of the epoch, and lanes of the last.
struct ThreadgroupShadow {
  u32 writer, write_epoch, write_simd_epoch, read_epoch, reading_simdgroups, reader_simdgroup, reading_lanes;
  u32 read_simd_epoch;
  u8 valid, initialised;
};
// One element of an output. The threadgroup as index + 1; 0 is untouched.
struct DeviceShadow {
  u32 threadgroup;
  u16 thread, atomic;
  u32 epoch;
};
// What the fast path needs of a buffer; size 0 when unbound. A stamp a 64-byte line: the last threadgroup that touched
// it.
struct Hot {
  u64 size, loaded, stored, unique, threadgroup_unique, shift;
  u32* stamp;
  u32 flags, element;
};
struct Variable {
  u32 id;
  u64 bytes, offset;
};

static Hot hot[BUFFERS];
static std::vector<u32> stamps[BUFFERS];
static std::vector<DeviceShadow> device_shadow[BUFFERS];
static ThreadgroupShadow shadow[THREADGROUP_MAPPED];
static std::vector<Variable> variables;
static u64 variables_end;
constexpr u64 RED_ZONE = 64, LINE = 64;

void add_fault(u32 code, u32 buffer, int64_t offset, u32 size, u32 other, u64 site) {
  stats->faults++;
  for (u64 i = 0; i < stats->records; i++) {
    Record& r = stats->record[i];
    if (r.code == code && r.site == site && r.buffer == buffer) {
      r.count++;
      return;
    }
  }
  if (stats->records == MAX_RECORDS) return;
  Record& r = stats->record[stats->records++];
  r = {code, buffer, offset, size, other, {}, {}, site, 1};
  for (int d = 0; d < 3; d++) {
    r.position[d] = threadgroup_position[d] * launch->threads[d] + (current ? current->position[d] : 0);
    r.threadgroup[d] = threadgroup_position[d];
  }
}

// ---- threadgroup memory

void* threadgroup_variable(u32 id, u64 bytes, u64 align) {
  for (const Variable& v : variables)
    if (v.id == id && v.bytes == bytes) return threadgroup_memory + v.offset;
  align = std::max<u64>(align, 16);
  u64 offset = (variables_end + align - 1) / align * align;
  stats->threadgroup_bytes += bytes;
  if (offset + bytes + RED_ZONE > THREADGROUP_MAPPED) stop();  // checks_end reports it
  variables.push_back({id, bytes, offset});
  variables_end = offset + bytes + RED_ZONE;
  for (u64 i = offset; i < offset + bytes; i++) shadow[i].valid = 1;
  return threadgroup_memory + offset;
}
EXPORT NOINLINE void* mtl_tgvar(u32 id, u64 bytes, u64 align) { return threadgroup_variable(id, bytes, align); }

static void check_race(const ThreadgroupShadow& s, u64 i, u32 n, bool store, u64 site) {
  const u32 me = current->index, simdgroup = me / LANES, bit = 1u << me % LANES, epoch = simdgroups[simdgroup].epoch;
  if (s.writer && s.writer != me + 1 && s.write_epoch == threadgroup_epoch) {
    if ((s.writer - 1) / LANES != simdgroup) add_fault(THREADGROUP_RACE, NO_BUFFER, i, n, s.writer - 1, site);
    else if (s.write_simd_epoch == epoch) add_fault(SIMDGROUP_RACE, NO_BUFFER, i, n, s.writer - 1, site);
  }
  if (store && s.read_epoch == threadgroup_epoch) {
    u32 other = READ_CONFLICT | s.reader_simdgroup;
    if (s.reading_simdgroups & ~(1u << simdgroup)) add_fault(THREADGROUP_RACE, NO_BUFFER, i, n, other, site);
    else if (s.reader_simdgroup == simdgroup && s.read_simd_epoch == epoch && (s.reading_lanes & ~bit))
      add_fault(SIMDGROUP_RACE, NO_BUFFER, i, n, other, site);
  }
}

static void threadgroup_access(u64 offset, u32 n, bool store, u64 site, bool atomic) {
  (store ? stats->threadgroup_stored : stats->threadgroup_loaded) += n;
  const u32 me = current->index, simdgroup = me / LANES, epoch = simdgroups[simdgroup].epoch;
  for (u64 i = offset; i < offset + n; i++) {
    ThreadgroupShadow& s = shadow[i];
    if (!s.valid) {
      add_fault(THREADGROUP_OUT_OF_BOUNDS, NO_BUFFER, i, n, 0, site);
      return;
    }
    if (!store && !s.initialised) {
      add_fault(THREADGROUP_UNINITIALISED, NO_BUFFER, i, n, 0, site);
      s.initialised = 1;  // one report is enough
    }
    if (!atomic) check_race(s, i, n, store, site);
    if (store) {
      s.writer = atomic ? 0 : me + 1;
      s.write_epoch = threadgroup_epoch;
      s.write_simd_epoch = epoch;
      s.initialised = 1;
    } else if (!atomic) {
      if (s.read_epoch != threadgroup_epoch)
        s.read_epoch = threadgroup_epoch, s.reading_simdgroups = s.reading_lanes = 0;
      if (s.reader_simdgroup != simdgroup || s.read_simd_epoch != epoch) s.reading_lanes = 0;
      s.reader_simdgroup = simdgroup;
      s.read_simd_epoch = epoch;
      s.reading_simdgroups |= 1u << simdgroup;
      s.reading_lanes |= 1u << me % LANES;
    }
  }
}

// ---- device memory

static NOINLINE void device_slow(u32 b, int64_t offset, u64 n, bool store, u64 site, bool atomic) {
  Hot& buffer = hot[b];
  const int64_t size = buffer.size;
  if (offset < 0 || offset + (int64_t)n > size) {
    add_fault(store ? STORE_OUT_OF_BOUNDS : LOAD_OUT_OF_BOUNDS, b, offset, n, 0, site);
    if (!size || offset < -(int64_t)PAD || offset + (int64_t)n > size + (int64_t)PAD) stop();
    return;
  }
  if (store && (buffer.flags & CONST)) add_fault(STORE_TO_CONST, b, offset, n, 0, site);
  if (!(buffer.flags & OUTPUT)) return;
  const u16 me = current->index;
  for (u64 e = offset / buffer.element; e <= (offset + n - 1) / buffer.element; e++) {
    DeviceShadow& s = device_shadow[b][e];
    const bool mine = s.threadgroup == threadgroup_index + 1 && (s.thread == me || s.epoch != device_epoch);
    const bool others = s.threadgroup && !mine;
    if (store) {
      if (others && !(atomic && s.atomic)) add_fault(WRITTEN_TWICE, b, offset, n, s.thread, site);
      s = {threadgroup_index + 1, me, (u16)atomic, device_epoch};
    } else if (!s.threadgroup && !(buffer.flags & INITIALISED)) {
      add_fault(READ_UNWRITTEN, b, offset, n, 0, site);
      s = {threadgroup_index + 1, me, 0, device_epoch};
    } else if (others && !s.atomic) {
      add_fault(DEVICE_RACE, b, offset, n, s.thread, site);
    }
  }
}

static inline void touch_line(Hot& buffer, u64 line) {
  const u32 stamp = threadgroup_index + 1;
  if (buffer.stamp[line] == stamp) return;
  buffer.threadgroup_unique += LINE;
  if (!buffer.stamp[line]) buffer.unique += LINE;
  buffer.stamp[line] = stamp;
}

static inline __attribute__((always_inline)) void access(void* pointer, u64 n, bool store, u64 site, bool atomic) {
  const u64 p = (u64)pointer, in_arena = p - (u64)arena;
  if (in_arena < BUFFERS * SLOT) {
    const u32 b = in_arena / SLOT;
    Hot& buffer = hot[b];
    const u64 offset = in_arena % SLOT - SLOT / 2 - buffer.shift;
    if (offset < buffer.size && offset + n <= buffer.size) {
      (store ? buffer.stored : buffer.loaded) += n;
      touch_line(buffer, (offset + buffer.shift) / LINE);
      touch_line(buffer, (offset + buffer.shift + n - 1) / LINE);
      if (atomic) stats->atomics++;
      if (!store && !(buffer.flags & OUTPUT)) return;
    }
    return device_slow(b, offset, n, store, site, atomic);
  }
  if (p - (u64)stacks < MAX_THREADS * STACK) return;
  if (p - (u64)threadgroup_memory < THREADGROUP_MAPPED)
    return threadgroup_access(p - (u64)threadgroup_memory, n, store, site, atomic);
  if (!store && p >= launch->code_begin && p < launch->code_end) return;  // program-scope constants
  add_fault(WILD_POINTER, NO_BUFFER, (int64_t)p, n, store, site);
  stop();
}
// The processor would fault at some of these accesses, and a GPU read something else.
static NOINLINE void misaligned(void* pointer, u64 n, u64 align, u64 site) {
  const u64 p = (u64)pointer, in_arena = p - (u64)arena;
  if (p - (u64)stacks < MAX_THREADS * STACK) return;
  if (in_arena < BUFFERS * SLOT) {
    const u32 b = in_arena / SLOT;
    add_fault(MISALIGNED, b, (char*)pointer - buffer_start(b), n, align, site);
  } else {
    add_fault(MISALIGNED, NO_BUFFER, p - (u64)threadgroup_memory, n, align, site);
  }
  stop();
}
EXPORT NOINLINE void mtl_ld(void* p, u64 n, u64 align) {
  if ((u64)p & (align - 1)) misaligned(p, n, align, SITE);
  access(p, n, false, SITE, false);
}
EXPORT NOINLINE void mtl_st(void* p, u64 n, u64 align) {
  if ((u64)p & (align - 1)) misaligned(p, n, align, SITE);
  access(p, n, true, SITE, false);
}
// clang calls these (-fsanitize=array-bounds,integer-divide-by-zero) where its own runtime is not linked.
EXPORT NOINLINE void __ubsan_handle_out_of_bounds(void*, u64 index) {
  add_fault(INDEX_OUT_OF_BOUNDS, NO_BUFFER, 0, 0, (u32)index, SITE);
  stop();
}
EXPORT NOINLINE void __ubsan_handle_divrem_overflow(void*, u64, u64) {
  add_fault(DIVIDED_BY_ZERO, NO_BUFFER, 0, 0, 0, SITE);
  stop();
}
void check_atomic(void* p, u32 bytes, bool store, u64 site) { access(p, bytes, store, site, true); }

// ---- around a launch

void checks_begin() {
  for (Hot& h : hot) h = {};
  for (int b = 0; b < BUFFERS; b++) {
    const Buffer& buffer = launch->buffers[b];
    if (!buffer.data) continue;
    stamps[b].assign((buffer.size + buffer.shift) / LINE + 1, 0);
    hot[b] = {buffer.size, 0, 0, 0, 0, buffer.shift, stamps[b].data(), buffer.flags, buffer.element};
    if (buffer.flags & OUTPUT) device_shadow[b].assign(buffer.size / buffer.element + 1, DeviceShadow{});
  }
  threadgroup_epoch = device_epoch = 1;
  std::fill(shadow, shadow + std::min<u64>(variables_end + RED_ZONE, THREADGROUP_MAPPED), ThreadgroupShadow{});
  variables.clear();
  variables_end = 0;
}

void checks_begin_threadgroup() {
  threadgroup_epoch++, device_epoch++;
  for (const Variable& v : variables) {  // poisoned: what the last threadgroup left is not there for the next
    memset(threadgroup_memory + v.offset, 0xfa, v.bytes);
    for (u64 i = v.offset; i < v.offset + v.bytes; i++) shadow[i].initialised = 0;
  }
}

void checks_end() {
  for (int b = 0; b < BUFFERS; b++) {
    const Buffer& buffer = launch->buffers[b];
    if (!buffer.data) continue;
    stats->loaded[b] = hot[b].loaded;
    stats->stored[b] = hot[b].stored;
    stats->unique[b] = hot[b].unique;
    stats->threadgroup_unique[b] = hot[b].threadgroup_unique;
    if (stopped || !launch->checked || !(buffer.flags & OUTPUT) || (buffer.flags & INITIALISED)) continue;
    for (u64 e = 0; e < buffer.size / buffer.element; e++) stats->unwritten[b] += !device_shadow[b][e].threadgroup;
  }
  if (stats->threadgroup_bytes > THREADGROUP_LIMIT)
    add_fault(THREADGROUP_TOO_BIG, NO_BUFFER, 0, stats->threadgroup_bytes, 0, 0);
}
