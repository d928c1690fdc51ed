// The emulator's fibers, collectives, barriers and blocks.
#include "tests/kernels/cuda/emulator/emulator.h"
#include <algorithm>
#include <mutex>
namespace emulator {
Fiber* current;
Idx block, grid, block_dim;
long progress;
static void* main_sp;
static std::vector<Fiber*> fibers;
static std::vector<Warp> warps;
static std::vector<Group> groups;
static int alive, at_barrier;
static long barrier_generation;
struct Named {
  int arrived = 0;
  long generation = 0;
  int count = 0;
};
static Named named[16];
static const std::function<void()>* body_;
alignas(1024) static unsigned char shared_[232 * 1024 + 1024];
static std::vector<std::function<void()>> deferred;
std::mt19937& Rng() {
  static std::mt19937 r(std::getenv("APB_TEST_SEED") ? atoi(std::getenv("APB_TEST_SEED")) : 1);
  return r;
}
unsigned char* Shared() { return shared_; }
void Die(const char* what) {
  fprintf(stderr, "emulator: %s (block %u,%u thread %d)\n", what, block.x, block.y,
          current ? current->linear : -1);
  abort();
}
extern "C" void emulator_switch(void** from, void* to);
asm(R"(
.globl emulator_switch
emulator_switch:
 pushq %rbp
 pushq %rbx
 pushq %r12
 pushq %r13
 pushq %r14
 pushq %r15
 movq %rsp, (%rdi)
 movq %rsi, %rsp
 popq %r15
 popq %r14
 popq %r13
 popq %r12
 popq %rbx
 popq %rbp
 ret
)");
static void Entry() {
  (*body_)();
  current->done = true;
  ++progress;
  emulator_switch(&current->sp, main_sp);
  Die("resumed");
}
void Yield() { emulator_switch(&current->sp, main_sp); }
constexpr size_t kStack = 256 * 1024;
static void Start(Fiber* f) {
  if (!f->stack) f->stack = (char*)aligned_alloc(4096, kStack);
  uintptr_t top = ((uintptr_t)f->stack + kStack) & ~uintptr_t(15);
  void** sp = (void**)top;
  *--sp = nullptr;
  *--sp = (void*)Entry;
  for (int i = 0; i < 6; ++i) *--sp = nullptr;
  f->sp = sp;
  f->done = false;
  f->open.clear();
  f->groups.clear();
}
template <class G>
static void Meet(G& g, int size, int lane, const void* op, void* arg,
                 const std::function<void(void**)>& body) {
  if (g.arrived > 0 && g.op != op) Die("threads meet at different collectives");
  g.op = op;
  g.args[lane] = arg;
  const long gen = g.generation;
  if (++g.arrived == size) {
    body(g.args);
    g.arrived = 0;
    ++g.generation;
    ++progress;
  } else
    while (g.generation == gen) Yield();
}
void Collective(const void* op, void* arg, const std::function<void(void**)>& body) {
  Meet(warps[current->linear / 32], 32, current->linear % 32, op, arg, body);
}
void GroupCollective(const void* op, void* arg, const std::function<void(void**)>& body) {
  Meet(groups[current->linear / 128], 128, current->linear % 128, op, arg, body);
}
Group& MyGroup() { return groups[current->linear / 128]; }
static void CheckBarrier() {
  if (at_barrier > 0 && at_barrier == alive) {
    at_barrier = 0;
    ++barrier_generation;
    ++progress;
  }
}
void SyncThreads() {
  const long gen = barrier_generation;
  ++at_barrier;
  CheckBarrier();
  while (barrier_generation == gen) Yield();
}
void NamedBarrier(int id, int count, bool wait) {
  Named& n = named[id];
  if (n.arrived && n.count != count) Die("named barrier counts differ");
  n.count = count;
  const long gen = n.generation;
  if (++n.arrived == count) {
    n.arrived = 0;
    ++n.generation;
    ++progress;
    return;
  }
  if (wait)
    while (n.generation == gen) Yield();
}
void Defer(std::function<void()> f) {
  if (Rng()() % 2) {
    f();
    ++progress;
  } else
    deferred.push_back(std::move(f));
}
void RunDeferred() {
  if (deferred.empty() || Rng()() % 3) return;
  size_t i = Rng()() % deferred.size();
  auto f = std::move(deferred[i]);
  deferred.erase(deferred.begin() + i);
  f();
  ++progress;
}
static void StartBlock(int threads, size_t shared) {
  warps.assign((threads + 31) / 32, Warp());
  groups.assign((threads + 127) / 128, Group());
  for (Named& n : named) n = Named();
  at_barrier = 0;
  deferred.clear();
  memset(shared_, 0xff, std::max<size_t>(shared, 1));  // NaN
  alive = threads;
  for (int i = 0; i < threads; ++i) {
    fibers[i]->linear = i;
    fibers[i]->tid = {(unsigned)i, 0, 0};
    Start(fibers[i]);
  }
}
// Lets each thread of a warp run to its next wait.
static void RunWarp(int warp, int threads) {
  for (int i = warp * 32; i < std::min(threads, warp * 32 + 32); ++i) {
    Fiber* f = fibers[i];
    if (f->done) continue;
    current = f;
    emulator_switch(&main_sp, f->sp);
    if (f->done) {
      --alive;
      CheckBarrier();
    }
  }
}
[[noreturn]] static void DieOfDeadlock(int threads) {
  for (int i = 0; i < threads; i += 32)
    fprintf(stderr, "warp %d done=%d arrived=%d\n", i / 32, fibers[i]->done, warps[i / 32].arrived);
  Die("deadlock");
}
static void RunBlock(int threads) {
  std::vector<int> warp_order(warps.size());
  for (size_t i = 0; i < warp_order.size(); ++i) warp_order[i] = i;
  int idle = 0;
  while (alive > 0) {
    const long before = progress;
    std::shuffle(warp_order.begin(), warp_order.end(), Rng());
    for (int w : warp_order) RunWarp(w, threads);
    RunDeferred();
    idle = progress == before ? idle + 1 : 0;
    if (idle > 1000) DieOfDeadlock(threads);
  }
  for (Named& n : named)
    if (n.arrived) Die("a named barrier is left half full");
  if (!deferred.empty()) Die("a copy outlives its block");
  for (Group& gr : groups)
    if (!gr.open.empty() || !gr.committed.empty()) Die("wgmma left");
}
void RunGrid(dim3 g, int threads, size_t shared, const std::function<void()>& body) {
  static std::mutex one_at_a_time;  // ranks may be threads
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  if (shared > 227 * 1024) Die("too much shared memory");
  if (threads > 1024 || g.y > 65535 || g.z > 65535) Die("launch limits");
  body_ = &body;
  grid = {g.x, g.y, g.z};
  block_dim = {(unsigned)threads, 1, 1};
  while ((int)fibers.size() < threads) fibers.push_back(new Fiber());
  std::vector<unsigned> order(g.x * g.y);
  for (unsigned i = 0; i < order.size(); ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), Rng());
  for (unsigned b : order) {
    block = {b % g.x, b / g.x, 0};
    StartBlock(threads, shared);
    RunBlock(threads);
  }
  current = nullptr;
}
}  // namespace emulator
