// SPDX-License-Identifier: MIT
// XLA handlers of deformable RoI pooling on CPU: they check, choose the kernels and call them.

#include "cpu/deform_roi_pool/handlers.h"

#include "common/deform_roi_pool/call.h"
#include "cpu/runtime/handler.h"
#include "cpu/runtime/instruction_set.h"
#include "cpu/deform_roi_pool/kernels.h"

namespace jax_dcn {
namespace {

const DeformRoIPoolKernels<float>& KernelsFor(float) {
  return ForInstructionSet(JAX_DCN_KERNELS(kDeformRoIPoolFloat));
}

const DeformRoIPoolKernels<double>& KernelsFor(double) {
  return ForInstructionSet(JAX_DCN_KERNELS(kDeformRoIPoolDouble));
}

const DeformRoIPoolKernels<BFloat16>& KernelsFor(BFloat16) {
  return ForInstructionSet(JAX_DCN_KERNELS(kDeformRoIPoolBFloat16));
}

const DeformRoIPoolKernels<Float16>& KernelsFor(Float16) {
  return ForInstructionSet(JAX_DCN_KERNELS(kDeformRoIPoolFloat16));
}

// Reads the call, and runs `run(value of its type, kernels, call, executor)`.
template <typename F>
ffi::Error Handle(DeformRoIPoolCall::Kind kind, ffi::ThreadPool& pool,
                  const ffi::RemainingArgs& arguments, const ffi::RemainingRets& results,
                  const ffi::Dictionary& attributes, const F& run) {
  return Guarded([&] {
    const DeformRoIPoolCall call(kind, arguments, results, attributes);
    XlaThreadPool threads(pool);
    Executor executor(threads, WorkersFor(call.work(), threads));
    DispatchFloat(call.dtype(), [&](auto type) { run(type, KernelsFor(type), call, executor); });
  });
}

ffi::Error Forward(ffi::ThreadPool pool, ffi::RemainingArgs arguments, ffi::RemainingRets results,
                   ffi::Dictionary attributes) {
  return Handle(DeformRoIPoolCall::kForward, pool, arguments, results, attributes,
                [](auto type, const auto& kernels, const auto& call, Executor& executor) {
                  using T = decltype(type);
                  using A = decltype(ToFloat(type));
                  kernels.forward(executor, call.problem(), call.template Primals<T, A>(),
                                  call.template Result<T>(DeformRoIPoolCall::kY));
                });
}

ffi::Error Jvp(ffi::ThreadPool pool, ffi::RemainingArgs arguments, ffi::RemainingRets results,
               ffi::Dictionary attributes) {
  return Handle(DeformRoIPoolCall::kJvp, pool, arguments, results, attributes,
                [](auto type, const auto& kernels, const auto& call, Executor& executor) {
                  using T = decltype(type);
                  using A = decltype(ToFloat(type));
                  kernels.jvp(executor, call.problem(), call.template Primals<T, A>(),
                              call.template Tangents<T, A>(),
                              call.template Result<T>(DeformRoIPoolCall::kY));
                });
}

ffi::Error Backward(ffi::ThreadPool pool, ffi::RemainingArgs arguments, ffi::RemainingRets results,
                    ffi::Dictionary attributes) {
  return Handle(DeformRoIPoolCall::kBackward, pool, arguments, results, attributes,
                [](auto type, const auto& kernels, const auto& call, Executor& executor) {
                  using T = decltype(type);
                  using A = decltype(ToFloat(type));
                  kernels.backward(executor, call.problem(), call.template Primals<T, A>(),
                                   call.template Linear<T>(DeformRoIPoolCall::kY),
                                   call.template Cotangents<T, A>());
                });
}

auto Binding() {
  return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets().Attrs();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(DeformRoIPoolForward, Forward, Binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(DeformRoIPoolJvp, Jvp, Binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(DeformRoIPoolBackward, Backward, Binding());

}  // namespace jax_dcn
