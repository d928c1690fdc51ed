// Runs the CUDA kernels' sources on the CPU, to check their results and their synchronization
// without a GPU. Every CUDA thread of a block is a fiber. Warps take turns in random order. An
// asynchronous copy happens at a random time between its start and its wait, and leaves NaN until
// then. The program ends if threads meet at different instructions, at deadlocks, if a copy
// outlives its block, and if a barrier is left half full. The emulator cannot see speed or every
// race. See README.md.
#pragma once
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <random>
#include <vector>
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct uint4 {
  unsigned x, y, z, w;
};
struct float2 {
  float x, y;
};
inline float2 make_float2(float a, float b) { return {a, b}; }
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(x) alignas(x)
namespace emulator {
struct Idx {
  unsigned x = 0, y = 0, z = 0;
};
// A warp's current collective: an instruction at which its threads meet.
struct Warp {
  int arrived = 0;
  long generation = 0;
  void* args[32];
  const void* op = nullptr;
};
// An asynchronous copy; writes zeros if not valid.
struct Copy {
  void* to;
  const void* from;
  int bytes;
  bool valid;
};
// A CUDA thread, with its cp.async copies: those of the open group and the committed groups.
struct Fiber {
  Idx tid;
  int linear = 0;
  bool done = false;
  void* sp = nullptr;
  char* stack = nullptr;
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
};
// A warpgroup of 128 threads: its current collective, and its wgmma products, which run at the
// wait.
struct Group {
  int arrived = 0;
  long generation = 0;
  void* args[128];
  const void* op = nullptr;
  std::vector<std::function<void()>> open;
  std::deque<std::vector<std::function<void()>>> committed;
};
extern Fiber* current;
extern Idx block, grid, block_dim;
extern long progress;  // grows with every event; a block without progress is deadlocked
// Lets the other threads of the block run.
void Yield();
// Waits for all threads of the warp (or the warpgroup) at the instruction `op`. The last one calls
// `body` with the threads' arguments. Ends the program if the threads are at different
// instructions.
void Collective(const void* op, void* arg, const std::function<void(void**)>& body);
void GroupCollective(const void* op, void* arg, const std::function<void(void**)>& body);
Group& MyGroup();
void SyncThreads();
// Arrives at a named barrier of `count` threads, and waits for it if `wait`.
void NamedBarrier(int id, int count, bool wait);
// The block's shared memory.
unsigned char* Shared();
std::mt19937& Rng();
// Does f now, or later in RunDeferred, at random: a bulk copy.
void Defer(std::function<void()> f);
void RunDeferred();
[[noreturn]] void Die(const char* what);
// Runs body() as every thread of every block, one block at a time, in random order.
void RunGrid(dim3 g, int threads, size_t shared, const std::function<void()>& body);
}  // namespace emulator
#define threadIdx (emulator::current->tid)
#define blockIdx (emulator::block)
#define gridDim (emulator::grid)
template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}
inline long min(long a, int b) { return a < b ? a : b; }
inline float __uint_as_float(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}
inline uint32_t __float_as_uint(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return u;
}
inline int atomicAdd(int* p, int v) {
  int o = *p;
  *p += v;
  return o;
}
inline unsigned atomicAdd(unsigned* p, unsigned v) {
  unsigned o = *p;
  *p += v;
  return o;
}
inline float __fmul_rn(float a, float b) { return a * b; }
inline void __syncthreads() { emulator::SyncThreads(); }
template <class T, class F>
T Shuffle(const void* op, T v, F source) {
  struct A {
    T in;
    T out;
  } a{v, v};
  emulator::Collective(op, &a, [&](void** args) {
    for (int l = 0; l < 32; ++l) {
      int s = source(l, args);
      ((A*)args[l])->out = s < 0 || s > 31 ? ((A*)args[l])->in : ((A*)args[s])->in;
    }
  });
  return a.out;
}
template <class T>
T __shfl_xor_sync(unsigned, T v, int m) {
  return Shuffle((void*)(intptr_t)(1000 + m), v, [m](int l, void**) { return l ^ m; });
}
template <class T>
T __shfl_up_sync(unsigned, T v, int m) {
  return Shuffle((void*)(intptr_t)(2000 + m), v, [m](int l, void**) { return l - m; });
}
template <class T>
T __shfl_sync(unsigned, T v, int source) {
  struct A {
    T in;
    int s;
    T out;
  } a{v, source & 31, v};
  emulator::Collective((void*)3, &a, [](void** args) {
    for (int l = 0; l < 32; ++l) ((A*)args[l])->out = ((A*)args[((A*)args[l])->s])->in;
  });
  return a.out;
}
inline unsigned __ballot_sync(unsigned, bool vote) {
  struct A {
    bool vote;
    unsigned out;
  } a{vote, 0};
  emulator::Collective((void*)8, &a, [](void** args) {
    unsigned out = 0;
    for (int l = 0; l < 32; ++l) out |= (unsigned)((A*)args[l])->vote << l;
    for (int l = 0; l < 32; ++l) ((A*)args[l])->out = out;
  });
  return a.out;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline void __syncwarp() {
  int x = 0;
  emulator::Collective((void*)4, &x, [](void**) {});
}
