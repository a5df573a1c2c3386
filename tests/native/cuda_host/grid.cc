// SPDX-License-Identifier: MIT
#include "grid.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <new>
#include <numeric>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "fiber.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define __sanitizer_start_switch_fiber(save, ...) static_cast<void>(save)
#define __sanitizer_finish_switch_fiber(...)
#define __asan_unpoison_memory_region(...)
#endif

thread_local uint3 threadIdx, blockIdx;
thread_local dim3 blockDim, gridDim;

namespace cuda_host {
namespace {

constexpr size_t kStackBytes = 128 << 10;
constexpr int kPoison = 0xff;  // bytes of a NaN in every floating-point type

std::atomic<uint64_t> seed{0};
std::atomic<uint64_t> grids{0};  // run so far
std::atomic<uint64_t> bank_conflicts{0};

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  void* fake_stack;  // the sanitizer's
  uint3 index;
  bool ended;
  const uint64_t* awaited;  // the fiber waits until this counter is no longer `seen`
  uint64_t seen;
  std::map<int, size_t> moves;            // of shared memory so far, by line
  std::vector<Copy> copies;               // of the group that is not committed yet
  std::vector<std::vector<Copy>> groups;  // committed, and not made yet

  bool CanRun() const { return !ended && (awaited == nullptr || *awaited != seen); }
};

// A meeting of the lanes in a mask. Values are kept twice: a lane may give its next value while
// another still reads the last ones.
struct Meeting {
  unsigned arrived = 0;
  int line = 0;
  uint64_t held = 0;
  Values values[2];
};

// What each lane moves of shared memory by one instruction.
struct Moved {
  std::array<const void*, kWarp> by_lanes = {};
  size_t bytes = 0;
};

struct Block {
  Block(std::vector<std::unique_ptr<Fiber>>& fibers, size_t threads, void (*body)(const void*),
        const void* body_context, void* shared, uint64_t seed)
      : fibers(fibers),
        threads(threads),
        body(body),
        body_context(body_context),
        shared(shared),
        random(seed),
        alive(threads),
        warps((threads + kWarp - 1) / kWarp),
        moved(warps.size()) {}

  std::vector<std::unique_ptr<Fiber>>& fibers;
  size_t threads;
  void (*body)(const void*);
  const void* body_context;
  void* shared;
  std::mt19937_64 random;
  size_t alive, at_barrier = 0;
  uint64_t barriers = 0;
  int barrier_line = 0;
  std::vector<std::map<unsigned, Meeting>> warps;
  std::vector<std::map<std::pair<int, size_t>, Moved>> moved;  // by warp, line and time
  const char* failure = nullptr;
  Fiber* running = nullptr;
  Context scheduler;
  void* fake_stack = nullptr;
  const void* stack = nullptr;  // the scheduler's
  size_t stack_bytes = 0;
};

thread_local Block* block = nullptr;

void SwitchToScheduler(Fiber* fiber, bool for_ever) {
  __sanitizer_start_switch_fiber(for_ever ? nullptr : &fiber->fake_stack, block->stack,
                                 block->stack_bytes);
  Context::Switch(&fiber->context, &block->scheduler);
  __sanitizer_finish_switch_fiber(fiber->fake_stack, &block->stack, &block->stack_bytes);
}

void WaitUntilChanged(const uint64_t& counter, uint64_t seen) {
  Fiber* const fiber = block->running;
  fiber->awaited = &counter;
  fiber->seen = seen;
  while (counter == seen) SwitchToScheduler(fiber, false);
  fiber->awaited = nullptr;
}

void OpenBarrierIfAllCame() {
  if (block->at_barrier == 0 || block->at_barrier < block->alive) return;
  block->at_barrier = 0;
  ++block->barriers;
}

void RunThread() {
  __sanitizer_finish_switch_fiber(nullptr, &block->stack, &block->stack_bytes);
  block->body(block->body_context);
  Fiber* const fiber = block->running;
  if (!fiber->copies.empty() || !fiber->groups.empty()) {
    Fail("a thread ended before its asynchronous copies");
  }
  fiber->ended = true;
  --block->alive;
  OpenBarrierIfAllCame();
  SwitchToScheduler(fiber, true);
}

void Start(Fiber* fiber, size_t thread) {
  __asan_unpoison_memory_region(fiber->stack.get(), kStackBytes);
  const unsigned rest = thread / blockDim.x;
  fiber->index = {static_cast<unsigned>(thread % blockDim.x), rest % blockDim.y, rest / blockDim.y};
  fiber->ended = false;
  fiber->awaited = nullptr;
  fiber->moves.clear();
  fiber->fake_stack = nullptr;
  fiber->copies.clear();
  fiber->groups.clear();
  fiber->context.Start(fiber->stack.get(), kStackBytes, RunThread);
}

void Resume(Fiber* fiber) {
  block->running = fiber;
  threadIdx = fiber->index;
  __sanitizer_start_switch_fiber(&block->fake_stack, fiber->stack.get(), kStackBytes);
  Context::Switch(&block->scheduler, &fiber->context);
  __sanitizer_finish_switch_fiber(block->fake_stack, nullptr, nullptr);
}

std::vector<size_t> Shuffled(size_t first, size_t last) {
  std::vector<size_t> order(last - first);
  std::iota(order.begin(), order.end(), first);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[block->random() % i]);
  return order;
}

// Runs the lanes of a warp until each waits for another warp. Whether any could run.
bool RunWarp(size_t warp) {
  const size_t first = warp * kWarp, last = std::min(first + kWarp, block->threads);
  bool ran_before = false;
  for (bool ran = true; ran && block->failure == nullptr; ran_before |= ran) {
    ran = false;
    for (size_t thread : Shuffled(first, last)) {
      Fiber* const fiber = block->fibers[thread].get();
      if (!fiber->CanRun()) continue;
      Resume(fiber);
      ran = true;
    }
  }
  return ran_before;
}

void RunBlock() {
  for (size_t thread = 0; thread < block->threads; ++thread) {
    Start(block->fibers[thread].get(), thread);
  }
  const size_t warps = block->warps.size();
  while (block->alive > 0 && block->failure == nullptr) {
    bool ran = false;
    for (size_t warp : Shuffled(0, warps)) ran |= RunWarp(warp);
    if (!ran) Fail("the threads of a block wait for each other in vain");
  }
  for (const auto& warp : block->moved) {
    for (const auto& [when, moved] : warp) CountBankConflicts(moved.by_lanes.data(), moved.bytes);
  }
}

size_t ThreadInBlock() {
  return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}

}  // namespace

const char* RunGrid(dim3 grid, dim3 block_size, size_t shared_bytes, void (*body)(const void*),
                    const void* context) {
  static thread_local std::vector<std::unique_ptr<Fiber>> fibers;
  ++grids;
  const size_t threads = size_t{1} * block_size.x * block_size.y * block_size.z;
  while (fibers.size() < threads) fibers.push_back(std::make_unique<Fiber>());
  blockDim = block_size;
  gridDim = grid;
  std::mt19937_64 random(seed.fetch_add(1));
  const size_t blocks = size_t{1} * grid.x * grid.y * grid.z;
  for (size_t i = 0; i < blocks; ++i) {
    const unsigned rest = i / grid.x;
    blockIdx = {static_cast<unsigned>(i % grid.x), rest % grid.y, rest / grid.y};
    // No larger than asked for, so that the sanitizer sees what is read or written beyond it.
    void* memory = nullptr;
    if (posix_memalign(&memory, 128, shared_bytes == 0 ? 1 : shared_bytes) != 0)
      throw std::bad_alloc();
    std::unique_ptr<void, decltype(&std::free)> shared(memory, std::free);
    std::memset(shared.get(), kPoison, shared_bytes);
    Block current(fibers, threads, body, context, shared.get(), random());
    block = &current;
    RunBlock();
    block = nullptr;
    if (current.failure != nullptr) return current.failure;
  }
  return nullptr;
}

void WaitForBlock(int line) {
  if (block->at_barrier == 0) block->barrier_line = line;
  if (block->barrier_line != line) Fail("the threads of a block meet at different barriers");
  const uint64_t seen = block->barriers;
  ++block->at_barrier;
  OpenBarrierIfAllCame();
  WaitUntilChanged(block->barriers, seen);
}

const Values& Exchange(unsigned mask, const void* value, size_t bytes, int line) {
  const int lane = Lane();
  Meeting& meeting = block->warps[ThreadInBlock() / kWarp][mask];
  if ((mask >> lane & 1) == 0)
    Fail("a lane takes part in an exchange that it is not in the mask of");
  const uint64_t held = meeting.held;
  Values& values = meeting.values[held % 2];
  if (meeting.arrived == 0) {
    std::memset(&values, kPoison, sizeof(values));
    meeting.line = line;
  }
  if (meeting.line != line) Fail("the lanes of a warp meet by different instructions");
  if (bytes != 0) std::memcpy(values.of_lane[lane], value, bytes);
  meeting.arrived |= 1u << lane;
  if (meeting.arrived == mask) {
    meeting.arrived = 0;
    ++meeting.held;
  }
  WaitUntilChanged(meeting.held, held);
  return values;
}

void MoveShared(const void* shared, size_t bytes, int line) {
  const size_t time = block->running->moves[line]++;
  Moved& moved = block->moved[ThreadInBlock() / kWarp][{line, time}];
  moved.by_lanes[Lane()] = shared;
  moved.bytes = bytes;
}

void CountBankConflicts(const void* const* moved_by_lanes, size_t bytes) {
  const int at_once = static_cast<int>(128 / bytes);  // lanes, and groups of banks
  for (int first = 0; first < kWarp; first += at_once) {
    std::map<uintptr_t, std::set<uintptr_t>> of_banks;  // what is moved, by group of banks
    for (int lane = first; lane < first + at_once; ++lane) {
      const uintptr_t place = reinterpret_cast<uintptr_t>(moved_by_lanes[lane]) / bytes;
      if (place != 0) of_banks[place % at_once].insert(place);
    }
    for (const auto& [banks, places] : of_banks) bank_conflicts += places.size() - 1;
  }
}

int Lane() { return ThreadInBlock() % kWarp; }

void* SharedMemory() { return block->shared; }

void CopyLater(void* to, const void* from, size_t bytes) {
  if (Toss()) {
    std::memcpy(to, from, bytes);
  } else {
    block->running->copies.push_back({to, from, bytes});
  }
}

void CommitCopies() {
  Fiber* const fiber = block->running;
  fiber->groups.push_back(std::exchange(fiber->copies, {}));
}

void WaitForCopies(size_t groups_left) {
  auto& groups = block->running->groups;
  while (groups.size() > groups_left) {
    for (const Copy& copy : groups.front()) std::memcpy(copy.to, copy.from, copy.bytes);
    groups.erase(groups.begin());
  }
}

bool Toss() { return block->random() >> 63; }

bool TossOnHost() { return std::mt19937_64(seed.fetch_add(1))() >> 63; }

void Fail(const char* why) {
  if (block->failure == nullptr) block->failure = why;
}

}  // namespace cuda_host

extern "C" __attribute__((visibility("default"))) void cuda_host_set_seed(uint64_t value) {
  cuda_host::seed = value;
}

// How many grids were run: XLA records a handler's work, and refuses a handler without any.
extern "C" __attribute__((visibility("default"))) uint64_t cuda_host_grids() {
  return cuda_host::grids;
}

// How many accesses to shared memory waited for others to the same banks.
extern "C" __attribute__((visibility("default"))) uint64_t cuda_host_bank_conflicts() {
  return cuda_host::bank_conflicts;
}
