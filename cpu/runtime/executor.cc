// SPDX-License-Identifier: MIT
#include "cpu/runtime/executor.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "cpu/runtime/memory.h"

namespace jax_dcn {
namespace {

constexpr size_t kAlignment = 64;
// The fewest items of a share.
constexpr int64_t kItemsOfShare = 4;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Waits for a condition that should soon be true. Returns whether the condition is true.
template <typename F>
bool SpinUntil(const F& condition) {
  constexpr int kYields = 64, kPauses = 64;  // about a tenth of a millisecond
  for (int i = 0; i < kYields; ++i, std::this_thread::yield()) {
    for (int j = 0; j < kPauses; ++j, Pause()) {
      if (condition()) return true;
    }
  }
  return false;
}

// A loop, which the caller and the helpers share. A helper that starts late finds no items, and
// drops the loop.
class Loop {
 public:
  Loop(int64_t items, int64_t workers, size_t scratch_bytes, Executor::Body body,
       const void* context)
      : items_(items),
        workers_(workers),
        share_count_(items < kItemsOfShare * workers ? 1 : workers),
        shares_(std::make_unique<Share[]>(share_count_)),
        scratch_bytes_((scratch_bytes + kAlignment - 1) / kAlignment * kAlignment),
        scratch_(std::in_place, scratch_bytes_ * workers),
        body_(body),
        context_(context) {
    for (int64_t i = 0; i < share_count_; ++i) {
      shares_[i].next = items * i / share_count_;
      shares_[i].end = items * (i + 1) / share_count_;
    }
  }

  // A worker takes the items of its own share, then the remaining items of other shares. A share
  // holds neighbouring items, so that a worker reads neighbouring data. A few items for each worker
  // are one share, so that the first items, which take longest, start first.
  void Work() {
    const int64_t worker = worker_.fetch_add(1);
    if (worker >= workers_) return;  // an earlier loop of the call had more workers
    int64_t finished = 0;
    for (int64_t i = 0; i < share_count_; ++i) {
      finished += WorkOn(shares_[(worker + i) % share_count_], worker);
    }
    if (finished > 0 && finished_.fetch_add(finished) + finished == items_) {
      // The lock orders the signal after the caller's check, so the caller cannot miss the signal.
      std::lock_guard<std::mutex> lock(mutex_);
      all_finished_.notify_all();
    }
  }

  void Wait() {
    const auto all_finished = [this] { return finished_.load() == items_; };
    if (!SpinUntil(all_finished)) {
      std::unique_lock<std::mutex> lock(mutex_);
      all_finished_.wait(lock, all_finished);
    }
    scratch_.reset();  // a helper that still holds this loop has no use for the memory
  }

 private:
  struct alignas(kAlignment) Share {
    std::atomic<int64_t> next;
    int64_t end;
  };

  // Returns the number of items.
  int64_t WorkOn(Share& share, int64_t worker) {
    int64_t finished = 0;
    while (share.next.load() < share.end) {
      const int64_t item = share.next.fetch_add(1);
      if (item >= share.end) break;
      body_(context_, item, scratch_->data() + scratch_bytes_ * worker);
      ++finished;
    }
    return finished;
  }

  const int64_t items_, workers_, share_count_;
  const std::unique_ptr<Share[]> shares_;
  const size_t scratch_bytes_;
  std::optional<Memory> scratch_;
  const Executor::Body body_;
  const void* const context_;
  std::atomic<int64_t> worker_{0}, finished_{0};
  std::mutex mutex_;
  std::condition_variable all_finished_;
};

}  // namespace

// The caller's helpers, and the loop that they work on.
class Executor::Team {
 public:
  // Starts a loop. Returns how many helpers the loop lacks.
  int64_t Begin(std::shared_ptr<Loop> loop, int64_t helpers) {
    std::lock_guard<std::mutex> lock(mutex_);
    loop_ = std::move(loop);
    ++loops_;
    const int64_t missing = std::max<int64_t>(0, helpers - helpers_);
    helpers_ += missing;
    return missing;
  }

  // The work of a helper: loop after loop, until no loop comes.
  void Help() {
    for (int64_t seen = 0;;) {
      SpinUntil([&] { return loops_.load() != seen; });
      const std::shared_ptr<Loop> loop = NextOrLeave(seen);
      if (loop == nullptr) return;
      loop->Work();
    }
  }

 private:
  // The loop that came after `seen` loops. Without one, the helper leaves: under the lock, so that
  // no loop begins that counts on the helper.
  std::shared_ptr<Loop> NextOrLeave(int64_t& seen) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (loops_ == seen) {
      --helpers_;
      return nullptr;
    }
    seen = loops_;
    return loop_;
  }

  std::mutex mutex_;
  std::shared_ptr<Loop> loop_;  // the current one; none after the last
  std::atomic<int64_t> loops_{0};
  int64_t helpers_ = 0;
};

Executor::Executor(ThreadPool& pool, int64_t workers)
    : pool_(pool), workers_(std::max<int64_t>(1, workers)), team_(std::make_shared<Team>()) {}

Executor::~Executor() { team_->Begin(nullptr, 0); }

void Executor::For(int64_t items, size_t scratch_bytes, Body body, const void* context) {
  if (items <= 0) return;
  const int64_t workers = std::min(items, workers_);
  auto loop = std::make_shared<Loop>(items, workers, scratch_bytes, body, context);
  const int64_t missing = team_->Begin(loop, workers - 1);
  try {
    for (int64_t i = 0; i < missing; ++i) pool_.Schedule([team = team_] { team->Help(); });
  } catch (...) {
    // The helpers that have started read the caller's stack, so the caller finishes the loop.
  }
  loop->Work();
  loop->Wait();
}

}  // namespace jax_dcn
