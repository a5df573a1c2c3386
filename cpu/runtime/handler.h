// SPDX-License-Identifier: MIT
// The XLA handlers of an operator on CPU: they check a call, choose the kernels and call them.
#ifndef JAX_DCN_CPU_RUNTIME_HANDLER_H_
#define JAX_DCN_CPU_RUNTIME_HANDLER_H_

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "common/ffi/handler.h"
#include "common/ffi/library.h"
#include "common/ffi/run_kernel.h"
#include "cpu/runtime/executor.h"
#include "cpu/runtime/kernels.h"

namespace jax_dcn {

// XLA's thread pool.
class XlaThreadPool final : public ThreadPool {
 public:
  explicit XlaThreadPool(ffi::ThreadPool& pool) : pool_(pool) {}
  int64_t num_threads() const override { return pool_.num_threads(); }
  void Schedule(std::function<void()> task) override { pool_.Schedule(std::move(task)); }

 private:
  ffi::ThreadPool& pool_;
};

// Number of threads for a call: one if the call is too short to be worth waking other threads. A
// call of few multiplications is long if the call clears a large result: 2^21 elements take longer
// than waking a thread.
template <typename Call>
int64_t WorkersFor(const Call& call, const ThreadPool& threads) {
  constexpr int64_t kSerial = 1 << 19, kSerialWritten = 1 << 21;
  const bool is_short = call.work() < kSerial && call.written() < kSerialWritten;
  return is_short ? 1 : threads.num_threads();
}

// The handlers of an operator. `Op` has:
//   Call       its OperatorCall
//   Kernels()  its KernelTable for the current instruction set
template <typename Op>
class CpuHandlers {
 public:
  // The targets `name`_forward, `name`_jvp and `name`_backward.
  static std::vector<Target> Targets(const std::string& name) {
    return {{name + "_forward", Handler<OperatorCall::kForward>},
            {name + "_jvp", Handler<OperatorCall::kJvp>},
            {name + "_backward", Handler<OperatorCall::kBackward>}};
  }

 private:
  template <OperatorCall::Kind kKind>
  static XLA_FFI_Error* Handler(XLA_FFI_CallFrame* frame) {
    static auto* const handler = ffi::Ffi::Bind()
                                     .Ctx<ffi::ThreadPool>()
                                     .RemainingArgs()
                                     .RemainingRets()
                                     .Attrs()
                                     .To(Run<kKind>)
                                     .release();
    return handler->Call(frame);
  }

  template <OperatorCall::Kind kKind>
  static ffi::Error Run(ffi::ThreadPool pool, ffi::RemainingArgs arguments,
                        ffi::RemainingRets results, ffi::Dictionary attributes) {
    return Guarded([&] {
      const typename Op::Call call(kKind, arguments, results, attributes);
      XlaThreadPool threads(pool);
      Executor executor(threads, WorkersFor(call, threads));
      DispatchFloat(call.dtype(), [&](auto type) {
        using T = decltype(type);
        const Kernels<typename Op::Call::Operator, T>& kernels = Op::Kernels();
        RunKernel<kKind, T>(kernels, executor, call);
      });
    });
  }
};

}  // namespace jax_dcn

#endif  // JAX_DCN_CPU_RUNTIME_HANDLER_H_
