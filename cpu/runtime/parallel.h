// SPDX-License-Identifier: MIT
// Loops over items, and the memory of the items.
#ifndef JAX_DCN_CPU_RUNTIME_PARALLEL_H_
#define JAX_DCN_CPU_RUNTIME_PARALLEL_H_

#include <cstdint>

#include "cpu/runtime/executor.h"
#include "cpu/runtime/memory.h"
#include "cpu/runtime/simd.h"

namespace jax_dcn::JAX_DCN_ISA {

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

template <typename F>
void ParallelFor(Executor& executor, int64_t items, size_t scratch_bytes, const F& f) {
  const auto body = [](const void* context, int64_t item, char* scratch) {
    (*static_cast<const F*>(context))(item, scratch);
  };
  executor.For(items, scratch_bytes, body, &f);
}

// The items of one loop: calls of `f(item, scratch)`.
template <typename F>
struct Items {
  int64_t count;
  F f;
};
template <typename F>
Items(int64_t, F) -> Items<F>;

// Runs loops that do not depend on each other as one loop: the items of the first loop come first.
template <typename... F>
void ParallelForAll(Executor& executor, size_t scratch_bytes, const Items<F>&... loops) {
  ParallelFor(executor, (loops.count + ...), scratch_bytes, [&](int64_t item, char* scratch) {
    ((item >= 0 && item < loops.count ? loops.f(item, scratch) : void(), item -= loops.count), ...);
  });
}

// Calls `f` with an object whose type has the condition as its constant `value`, for use as a
// template argument.
template <bool kValue>
struct Flag {
  static constexpr bool value = kValue;
};

template <typename F>
void WithFlag(bool flag, const F& f) {
  flag ? f(Flag<true>{}) : f(Flag<false>{});
}

// Hands out parts of a piece of memory. Without memory, counts the bytes that the parts need.
class Arena {
 public:
  explicit Arena(char* memory = nullptr) : memory_(memory) {}

  template <typename U>
  U* Take(int64_t count) {
    U* taken = memory_ == nullptr ? nullptr : reinterpret_cast<U*>(memory_ + bytes_);
    bytes_ += RoundUp(count * static_cast<int64_t>(sizeof(U)), 64);
    return taken;
  }

  int64_t bytes() const { return bytes_; }

 private:
  char* memory_;
  int64_t bytes_ = 0;
};

// Runs a loop whose items need memory: calls `f(item, own)`, where `make(arena)` returns `own`,
// in the memory of the item's worker.
template <typename Make, typename F>
void ParallelForWith(Executor& executor, int64_t items, const Make& make, const F& f) {
  Arena needed;
  make(needed);
  ParallelFor(executor, items, needed.bytes(), [&](int64_t item, char* memory) {
    Arena arena(memory);
    auto own = make(arena);
    f(item, own);
  });
}

// The memory of one call, which the threads of the call share.
class Shared {
 public:
  explicit Shared(int64_t bytes) : memory_(bytes) {}
  Arena arena() { return Arena(memory_.data()); }

 private:
  Memory memory_;
};

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_RUNTIME_PARALLEL_H_
