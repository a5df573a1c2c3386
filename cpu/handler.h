// SPDX-License-Identifier: MIT
// What the handlers of every operator on CPU share: XLA's threads, and the choice of a type.
#ifndef JAX_DCN_CPU_HANDLER_H_
#define JAX_DCN_CPU_HANDLER_H_

#include <cstdint>
#include <functional>
#include <utility>

#include "common/half.h"
#include "common/handler.h"
#include "cpu/executor.h"

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

// Calls `run` with a value of the type that `dtype` names.
template <typename F>
void DispatchFloat(ffi::DataType dtype, const F& run) {
  switch (dtype) {
    case ffi::DataType::F32:
      return run(float{});
    case ffi::DataType::F64:
      return run(double{});
    case ffi::DataType::BF16:
      return run(BFloat16{});
    case ffi::DataType::F16:
      return run(Float16{});
    default:
      throw Refusal("x must be float32, float64, bfloat16 or float16");
  }
}

}  // namespace jax_dcn

#endif  // JAX_DCN_CPU_HANDLER_H_
