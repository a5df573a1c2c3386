// SPDX-License-Identifier: MIT
// Runs the items of a loop on the threads of a pool and on the calling thread.
#ifndef JAX_DCN_CPU_RUNTIME_EXECUTOR_H_
#define JAX_DCN_CPU_RUNTIME_EXECUTOR_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

namespace jax_dcn {

// The functions of XLA's thread pool that the executor calls.
class ThreadPool {
 public:
  virtual ~ThreadPool() = default;
  virtual int64_t num_threads() const = 0;
  virtual void Schedule(std::function<void()> task) = 0;
};

// Runs the loops of one call. Between two loops the helpers wait for a little while, because waking
// a thread takes as long as a short loop.
class Executor {
 public:
  // Uses at most `workers` threads, the caller among them.
  Executor(ThreadPool& pool, int64_t workers);
  ~Executor();
  Executor(const Executor&) = delete;

  int64_t workers() const { return workers_; }

  // A loop body. `context` belongs to the caller. `scratch` belongs to the worker, and is aligned
  // to 64 bytes.
  using Body = void (*)(const void* context, int64_t item, char* scratch);

  // Calls `body` once for each item in [0, items), and returns when all calls have returned. The
  // caller takes items as well, and never waits for a thread that has not started. A busy pool, a
  // pool of one thread, and a caller that is a thread of the pool therefore cause no deadlock.
  void For(int64_t items, size_t scratch_bytes, Body body, const void* context);

 private:
  class Team;

  ThreadPool& pool_;
  const int64_t workers_;
  const std::shared_ptr<Team> team_;
};

}  // namespace jax_dcn

#endif  // JAX_DCN_CPU_RUNTIME_EXECUTOR_H_
