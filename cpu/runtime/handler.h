// SPDX-License-Identifier: MIT
// What the handlers of every operator on CPU share: XLA's threads.
#ifndef JAX_DCN_CPU_RUNTIME_HANDLER_H_
#define JAX_DCN_CPU_RUNTIME_HANDLER_H_

#include <cstdint>
#include <functional>
#include <utility>

#include "common/ffi/handler.h"
#include "cpu/runtime/executor.h"

namespace jax_dcn {

class XlaThreadPool final : public ThreadPool {
 public:
  explicit XlaThreadPool(ffi::ThreadPool& pool) : pool_(pool) {}
  int64_t num_threads() const override { return pool_.num_threads(); }
  void Schedule(std::function<void()> task) override { pool_.Schedule(std::move(task)); }

 private:
  ffi::ThreadPool& pool_;
};

// Threads for a call of so many multiplications: few are not worth the other threads' waking up.
inline int64_t WorkersFor(int64_t multiplications, const ThreadPool& threads) {
  constexpr int64_t kSerial = 1 << 19;
  return multiplications < kSerial ? 1 : threads.num_threads();
}

}  // namespace jax_dcn

#endif  // JAX_DCN_CPU_RUNTIME_HANDLER_H_
