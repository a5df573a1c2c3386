// SPDX-License-Identifier: MIT
#include "cpu/executor.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <new>

namespace jax_dcn {
namespace {

constexpr size_t kAlignment = 64;

struct Free {
  void operator()(char* memory) const { ::operator delete(memory, std::align_val_t(kAlignment)); }
};
using Memory = std::unique_ptr<char, Free>;

Memory Allocate(size_t bytes) {
  return Memory(static_cast<char*>(::operator new(bytes, std::align_val_t(kAlignment))));
}

// Shared by the caller and its helpers. A helper that starts late finds no items and lets go.
class Loop {
 public:
  Loop(int64_t items, int64_t workers, size_t scratch_bytes, Executor::Body body,
       const void* context)
      : items_(items),
        scratch_bytes_((scratch_bytes + kAlignment - 1) / kAlignment * kAlignment),
        scratch_(Allocate(scratch_bytes_ * workers)),
        body_(body),
        context_(context) {}

  void Work() {
    char* scratch = nullptr;
    int64_t finished = 0;
    for (int64_t item; (item = next_.fetch_add(1)) < items_; ++finished) {
      if (scratch == nullptr) scratch = scratch_.get() + scratch_bytes_ * worker_.fetch_add(1);
      body_(context_, item, scratch);
    }
    if (finished > 0 && finished_.fetch_add(finished) + finished == items_) {
      // The lock orders this after the caller's check, so that it cannot miss the signal.
      std::lock_guard<std::mutex> lock(mutex_);
      all_finished_.notify_all();
    }
  }

  void Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    all_finished_.wait(lock, [this] { return finished_.load() == items_; });
  }

 private:
  const int64_t items_;
  const size_t scratch_bytes_;
  const Memory scratch_;
  const Executor::Body body_;
  const void* const context_;
  std::atomic<int64_t> next_{0}, worker_{0}, finished_{0};
  std::mutex mutex_;
  std::condition_variable all_finished_;
};

}  // namespace

void Executor::For(int64_t items, size_t scratch_bytes, Body body, const void* context) {
  if (items <= 0) return;
  const int64_t workers = std::max<int64_t>(1, std::min(items, workers_));
  auto loop = std::make_shared<Loop>(items, workers, scratch_bytes, body, context);
  for (int64_t helper = 1; helper < workers; ++helper) {
    pool_.Schedule([loop] { loop->Work(); });
  }
  loop->Work();
  loop->Wait();
}

}  // namespace jax_dcn
