// SPDX-License-Identifier: MIT
// An executor that runs every loop on the calling thread, in order, and prints what took how long:
// for each call a line "loops", and for each loop of the call a line with the nanoseconds since the
// last loop and the times of each item. The last entry has no items: it is the time after all
// loops.
//
// Linked in the place of cpu/runtime/executor.cc.
#include <chrono>
#include <cstdio>
#include <memory>
#include <new>
#include <vector>

#include "cpu/runtime/executor.h"

namespace jax_dcn {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::align_val_t kAlignment{64};

struct Free {
  void operator()(char* memory) const { ::operator delete(memory, kAlignment); }
};

}  // namespace

class Executor::Team {
 public:
  Team() { std::printf("loops\n"); }
  ~Team() {
    Begin();
    std::printf("\n");
  }

  void Begin() { std::printf("%ld", Nanoseconds()); }

  void Run(int64_t items, size_t scratch_bytes, Body body, const void* context) {
    const std::unique_ptr<char, Free> scratch(
        static_cast<char*>(::operator new(scratch_bytes, kAlignment)));
    Begin();
    times_.resize(items);
    last_ = Clock::now();
    for (int64_t item = 0; item < items; ++item) {
      body(context, item, scratch.get());
      times_[item] = Nanoseconds();
    }
    for (const long time : times_) std::printf(" %ld", time);
    std::printf("\n");
    last_ = Clock::now();
  }

 private:
  // Since the last call.
  long Nanoseconds() {
    const Clock::time_point now = Clock::now();
    const auto span = std::chrono::duration_cast<std::chrono::nanoseconds>(now - last_);
    last_ = now;
    return span.count();
  }

  Clock::time_point last_ = Clock::now();
  std::vector<long> times_;
};

Executor::Executor(ThreadPool& pool, int64_t workers)
    : pool_(pool), workers_(workers), team_(std::make_shared<Team>()) {}

Executor::~Executor() = default;

void Executor::For(int64_t items, size_t scratch_bytes, Body body, const void* context) {
  if (items > 0) team_->Run(items, scratch_bytes, body, context);
}

}  // namespace jax_dcn
