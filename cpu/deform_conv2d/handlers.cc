// SPDX-License-Identifier: MIT
// XLA handlers of deformable convolution on CPU: they check, choose the kernels and call them.

#include "cpu/deform_conv2d/handlers.h"

#include "common/deform_conv2d/call.h"
#include "cpu/runtime/handler.h"
#include "cpu/runtime/instruction_set.h"
#include "cpu/deform_conv2d/kernels.h"

namespace jax_dcn {
namespace {

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

// Reads the call, and runs `run(value of its type, kernels, call, executor)`.
template <typename F>
ffi::Error Handle(DeformConv2dCall::Kind kind, ffi::ThreadPool& pool,
                  const ffi::RemainingArgs& arguments, const ffi::RemainingRets& results,
                  const ffi::Dictionary& attributes, const F& run) {
  return Guarded([&] {
    const DeformConv2dCall call(kind, arguments, results, attributes);
    XlaThreadPool threads(pool);
    Executor executor(threads, WorkersFor(call.work(), threads));
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
