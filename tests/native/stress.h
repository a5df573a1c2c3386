// SPDX-License-Identifier: MIT
// Runs an operator's CPU kernels on random problems, for sanitizers to watch: arrays are of exactly
// the size that the problem says, some positions are infinite or NaN, and several threads work.
// Fails if the results of one thread and of several threads differ in a bit.
#ifndef JAX_DCN_TESTS_NATIVE_STRESS_H_
#define JAX_DCN_TESTS_NATIVE_STRESS_H_

#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iterator>
#include <mutex>
#include <queue>
#include <random>
#include <thread>
#include <vector>

#include "cpu/runtime/kernels.h"

namespace jax_dcn {

class StandardThreadPool final : public ThreadPool {
 public:
  StandardThreadPool(int threads) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Run(); });
  }
  ~StandardThreadPool() override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopped_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  int64_t num_threads() const override { return threads_.size(); }
  void Schedule(std::function<void()> task) override {
    std::lock_guard<std::mutex> lock(mutex_);
    tasks_.push(std::move(task));
    changed_.notify_one();
  }

 private:
  void Run() {
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [this] { return stopped_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      auto task = std::move(tasks_.front());
      tasks_.pop();
      lock.unlock();
      task();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::queue<std::function<void()>> tasks_;
  bool stopped_ = false;
  std::vector<std::thread> threads_;
};

using Random = std::mt19937;

inline int64_t Draw(Random& random, int64_t least, int64_t most) {
  return std::uniform_int_distribution<int64_t>(least, most)(random);
}

template <typename T>
std::vector<T> DrawArray(Random& random, int64_t size, T spread) {
  std::vector<T> array(size);
  for (T& value : array) value = std::normal_distribution<T>(0, spread)(random);
  return array;
}

// Makes some positions infinite, NaN, huge or tiny.
template <typename T>
void Spoil(Random& random, std::vector<T>& positions) {
  const T values[] = {INFINITY, -INFINITY, NAN, T(1e30), T(-1e30), T(-1), T(1e-42), T(0)};
  for (T& value : positions) {
    if (Draw(random, 0, 9) == 0) value = values[Draw(random, 0, 7)];
  }
}

// Whether arrays have the same bits. The sign of a NaN follows from the instruction that makes the
// NaN, and instructions differ by the size of a tile.
template <typename T>
bool SameBits(const std::vector<T>& a, const std::vector<T>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    const bool undefined = a[i] != a[i] && b[i] != b[i];
    if (!undefined && std::memcmp(&a[i], &b[i], sizeof(T))) return false;
  }
  return true;
}

template <typename T>
T* DataIf(bool wanted, std::vector<T>& array) {
  return wanted ? array.data() : nullptr;
}

template <typename T>
const T* DataIf(bool wanted, const std::vector<T>& array) {
  return wanted ? array.data() : nullptr;
}

// Results of one problem: the value, its tangent and the cotangents.
template <typename T>
using Results = std::vector<std::vector<T>>;

// A random problem of an operator: `stress(executor)` runs the kernels and returns their results.
template <typename Stress>
bool ThreadsAgree(ThreadPool& pool, const Stress& stress) {
  Executor one(pool, 1), many(pool, pool.num_threads());
  const auto serial = stress(one), parallel = stress(many);
  for (size_t i = 0; i < serial.size(); ++i) {
    if (!SameBits(serial[i], parallel[i])) return false;
  }
  return true;
}

// Calls `agree(value of a type, pool, seed)`, which tells whether the results of a problem agree.
template <typename Agree>
int StressMain(int argc, char** argv, const Agree& agree) {
  const int problems = argc > 1 ? std::atoi(argv[1]) : 100;
  StandardThreadPool pools[] = {2, 3, 4, 1, 2, 3, 16, 2, 3, 64};
  for (int seed = 0; seed < problems; ++seed) {
    ThreadPool& pool = pools[seed % std::size(pools)];
    if (seed % 3 ? agree(float{}, pool, seed) : agree(double{}, pool, seed)) continue;
    std::printf("problem %d: a result is wrong, or the number of threads changed it\n", seed);
    return 1;
  }
  std::printf("%d problems\n", problems);
  return 0;
}

}  // namespace jax_dcn

#endif  // JAX_DCN_TESTS_NATIVE_STRESS_H_
