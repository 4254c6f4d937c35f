// The emulated machine: what fibers.cpp, collectives.cpp, checks.cpp and launch.cpp share. One launch at a time.
// Structs that launch.py fills or reads (Buffer, Launch, Record, Stats) must match its ctypes classes field by field.
#pragma once
#include <cstdint>
#include <vector>

typedef uint64_t u64;
typedef uint32_t u32;
typedef uint16_t u16;
typedef uint8_t u8;
#define EXPORT extern "C" __attribute__((visibility("default")))
#define NOINLINE __attribute__((noinline))
// Where the kernel called from. Only in functions that are not inlined themselves.
#define SITE ((u64)__builtin_return_address(0))

enum Fault : u32 {  // names and severities stand in errors.py
  LOAD_OUT_OF_BOUNDS = 1,
  STORE_OUT_OF_BOUNDS,
  STORE_TO_CONST,
  THREADGROUP_UNINITIALISED,
  THREADGROUP_RACE,
  BARRIER_DIVERGED,
  SIMD_LANES_MISSING,
  INACTIVE_SHUFFLE,
  DEVICE_RACE,
  WRITTEN_TWICE,
  READ_UNWRITTEN,
  THREADGROUP_OUT_OF_BOUNDS,
  THREADGROUP_TOO_BIG,
  WILD_POINTER,
  BARRIER_AFTER_RETURN,
  SIMDGROUP_RACE,
  MATRIX_LANES_MISSING,
  MISALIGNED,
  INDEX_OUT_OF_BOUNDS,
  DIVIDED_BY_ZERO,
};
enum Schedule : u32 { FORWARD, REVERSE, RANDOM };
enum BufferFlags : u32 { CONST = 1, OUTPUT = 2, INITIALISED = 4 };

constexpr int BUFFERS = 32, MAX_THREADS = 1024, LANES = 32, MAX_RECORDS = 64, MAX_ARGUMENTS = 64;
constexpr u64 SLOT = 1ull << 34;             // address space a buffer gets; its data begin in the middle
constexpr u64 PAD = 1 << 16;                 // mapped around a buffer, so that a near miss is reported, not a crash
constexpr u64 STACK = 256 << 10;             // of a fiber
constexpr int THREADGROUP_MAPPED = 1 << 16;  // twice what Metal allows, so that too much is measured, then reported
constexpr int THREADGROUP_LIMIT = 32 << 10;
constexpr u32 NO_BUFFER = 99, READ_CONFLICT = 1u << 16;

struct Buffer {
  void* data;
  u64 size;
  u32 flags, element;
  u64 shift;  // of its first byte from an address with all alignments: a view keeps its own
};
struct Record {
  u32 code, buffer;
  int64_t offset;
  u32 size, other, position[3], threadgroup[3];
  u64 site, count;
};
struct Launch {
  void* entry;
  int32_t arguments;
  const int32_t* kinds;
  Buffer* buffers;
  u32 grid[3], threads[3], schedule, seed, checked;
  u64 code_begin, code_end;
  u32 threadgroup_bytes[8];
};
struct Stats {
  u64 flops, special, simd_ops, matrix_ops, tensor_ops, matrix_flops, threadgroup_barriers, simdgroup_barriers;
  u64 threadgroup_loaded, threadgroup_stored, threadgroup_bytes, threads, threadgroups, atomics, simd_diverged, faults;
  u64 records;
  u64 loaded[BUFFERS], stored[BUFFERS], unique[BUFFERS], threadgroup_unique[BUFFERS], unwritten[BUFFERS];
  Record record[MAX_RECORDS];
};

typedef void (*Collective)(void**, u32);
struct Fiber {
  void* stack;
  u32 position[3], index;
  void* site;
  Collective function;
  void* io;
  u32 kind, flops;
};
// One bit a lane: running, waiting for its simdgroup, waiting at a threadgroup barrier, returned; and those that exist.
struct Simdgroup {
  u32 run, wait, barrier, done, all, epoch;
};

extern Launch* launch;
extern Stats* stats;
extern Fiber fibers[MAX_THREADS];
extern Simdgroup simdgroups[MAX_THREADS / LANES];
extern int simdgroup_count, current_simdgroup;
extern Fiber* current;
extern char *stacks, *arena, *threadgroup_memory;
extern u32 thread_count, threadgroup_position[3], threadgroup_size[3], threadgroup_count[3], threadgroup_index;
// Epochs: a barrier with the memory's flag begins a new one; accesses of two threads in one epoch can race.
extern u32 threadgroup_epoch, device_epoch;
extern bool stopped;

void add_fault(u32 code, u32 buffer, int64_t offset, u32 size, u32 other, u64 site);
[[noreturn]] void stop();        // ends the launch from inside a fiber
u32 random_below(u32 n);         // of the launch's seed
void reschedule();               // runs whoever can go on; returns when the caller can
void run_threadgroup();          // fibers.cpp: from the first thread to the last return
void resolve(Simdgroup& group);  // collectives.cpp: the waiting lanes' operation, once
void release_barrier();
void* threadgroup_variable(u32 id, u64 bytes, u64 align);
void checks_begin();  // checks.cpp: before the first threadgroup
void checks_begin_threadgroup();
void checks_end();
inline char* buffer_start(int b) { return arena + b * SLOT + SLOT / 2 + launch->buffers[b].shift; }
extern "C" void mtl_switch(void** from, void* to);
