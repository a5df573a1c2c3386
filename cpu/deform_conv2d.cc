// SPDX-License-Identifier: MIT
// XLA handlers of deformable convolution on CPU: they check, choose the kernels and call them.

#include "cpu/deform_conv2d.h"

#include <functional>
#include <utility>

#include "common/deform_conv2d_call.h"
#include "cpu/instruction_set.h"
#include "cpu/kernels/deform_conv2d.h"

namespace jax_dcn {
namespace {

// Multiplications below which a call is not worth the other threads' waking up.
constexpr int64_t kSerialWork = 1 << 19;

class XlaThreadPool final : public ThreadPool {
 public:
  explicit XlaThreadPool(ffi::ThreadPool& pool) : pool_(pool) {}
  int64_t num_threads() const override { return pool_.num_threads(); }
  void Schedule(std::function<void()> task) override { pool_.Schedule(std::move(task)); }

 private:
  ffi::ThreadPool& pool_;
};

const DeformConv2dKernels<float>& KernelsFor(float) {
  return ForInstructionSet(JAX_DCN_KERNELS(kDeformConv2dFloat));
}

const DeformConv2dKernels<double>& KernelsFor(double) {
  return ForInstructionSet(JAX_DCN_KERNELS(kDeformConv2dDouble));
}

const DeformConv2dKernels<BFloat16>& KernelsFor(BFloat16) {
  return ForInstructionSet(JAX_DCN_KERNELS(kDeformConv2dBFloat16));
}

const DeformConv2dKernels<Float16>& KernelsFor(Float16) {
  return ForInstructionSet(JAX_DCN_KERNELS(kDeformConv2dFloat16));
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

// Reads the call, and runs `run(value of its type, kernels, call, executor)`.
template <typename F>
ffi::Error Handle(DeformConv2dCall::Kind kind, ffi::ThreadPool& pool,
                  const ffi::RemainingArgs& arguments, const ffi::RemainingRets& results,
                  const ffi::Dictionary& attributes, const F& run) {
  return Guarded([&] {
    const DeformConv2dCall call(kind, arguments, results, attributes);
    XlaThreadPool threads(pool);
    Executor executor(threads, call.work() < kSerialWork ? 1 : threads.num_threads());
    DispatchFloat(call.dtype(), [&](auto type) { run(type, KernelsFor(type), call, executor); });
  });
}

ffi::Error Forward(ffi::ThreadPool pool, ffi::RemainingArgs arguments, ffi::RemainingRets results,
                   ffi::Dictionary attributes) {
  return Handle(DeformConv2dCall::kForward, pool, arguments, results, attributes,
                [](auto type, const auto& kernels, const auto& call, Executor& executor) {
                  using T = decltype(type);
                  kernels.forward(executor, call.problem(), call.template Primals<T>(),
                                  call.template Linear<T>(kBias), call.template Result<T>(kY));
                });
}

ffi::Error Jvp(ffi::ThreadPool pool, ffi::RemainingArgs arguments, ffi::RemainingRets results,
               ffi::Dictionary attributes) {
  return Handle(DeformConv2dCall::kJvp, pool, arguments, results, attributes,
                [](auto type, const auto& kernels, const auto& call, Executor& executor) {
                  using T = decltype(type);
                  kernels.jvp(executor, call.problem(), call.template Primals<T>(),
                              call.template Tangents<T>(), call.template Result<T>(kY));
                });
}

ffi::Error Backward(ffi::ThreadPool pool, ffi::RemainingArgs arguments, ffi::RemainingRets results,
                    ffi::Dictionary attributes) {
  return Handle(DeformConv2dCall::kBackward, pool, arguments, results, attributes,
                [](auto type, const auto& kernels, const auto& call, Executor& executor) {
                  using T = decltype(type);
                  kernels.backward(executor, call.problem(), call.template Primals<T>(),
                                   call.template Linear<T>(kY), call.template Cotangents<T>());
                });
}

auto Binding() {
  return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets().Attrs();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(DeformConv2dForward, Forward, Binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(DeformConv2dJvp, Jvp, Binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(DeformConv2dBackward, Backward, Binding());

}  // namespace jax_dcn
