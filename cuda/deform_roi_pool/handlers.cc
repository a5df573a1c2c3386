// SPDX-License-Identifier: MIT
// XLA handlers of deformable RoI pooling on CUDA: they check, and launch the kernels.

#include "cuda/deform_roi_pool/handlers.h"

#include "common/deform_roi_pool/call.h"
#include "cuda/deform_roi_pool/kernels.h"
#include "cuda/runtime/handler.h"

namespace jax_dcn {
namespace {

// Reads the call, and runs `run(value of its type, call)`, which returns the error of its launches.
template <typename F>
ffi::Error Handle(DeformRoIPoolCall::Kind kind, const ffi::RemainingArgs& arguments,
                  const ffi::RemainingRets& results, const ffi::Dictionary& attributes,
                  const F& run) {
  return Guarded([&] {
    const DeformRoIPoolCall call(kind, arguments, results, attributes);
    if (const char* reason = WhyNotOnCuda(call.problem())) throw Refusal(reason);
    DispatchFloat(call.dtype(), [&](auto type) { ExpectLaunched(run(type, call)); });
  });
}

ffi::Error Forward(cudaStream_t stream, ffi::RemainingArgs arguments, ffi::RemainingRets results,
                   ffi::Dictionary attributes) {
  return Handle(DeformRoIPoolCall::kForward, arguments, results, attributes,
                [&](auto type, const auto& call) {
                  using T = decltype(type);
                  using A = decltype(ToFloat(type));
                  return LaunchDeformRoIPoolForward(stream, call.problem(),
                                                    call.template Primals<T, A>(),
                                                    call.template Result<T>(DeformRoIPoolCall::kY));
                });
}

ffi::Error Jvp(cudaStream_t stream, ffi::RemainingArgs arguments, ffi::RemainingRets results,
               ffi::Dictionary attributes) {
  return Handle(
      DeformRoIPoolCall::kJvp, arguments, results, attributes, [&](auto type, const auto& call) {
        using T = decltype(type);
        using A = decltype(ToFloat(type));
        return LaunchDeformRoIPoolJvp(stream, call.problem(), call.template Primals<T, A>(),
                                      call.template Tangents<T, A>(),
                                      call.template Result<T>(DeformRoIPoolCall::kY));
      });
}

ffi::Error Backward(cudaStream_t stream, ffi::RemainingArgs arguments, ffi::RemainingRets results,
                    ffi::Dictionary attributes) {
  return Handle(DeformRoIPoolCall::kBackward, arguments, results, attributes,
                [&](auto type, const auto& call) {
                  using T = decltype(type);
                  using A = decltype(ToFloat(type));
                  return LaunchDeformRoIPoolBackward(stream, call.problem(),
                                                     call.template Primals<T, A>(),
                                                     call.template Linear<T>(DeformRoIPoolCall::kY),
                                                     call.template Cotangents<T, A>());
                });
}

auto Binding() { return ffi::Ffi::Bind().Ctx<Stream>().RemainingArgs().RemainingRets().Attrs(); }

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(DeformRoIPoolForward, Forward, Binding(),
                              {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER_SYMBOL(DeformRoIPoolJvp, Jvp, Binding(),
                              {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER_SYMBOL(DeformRoIPoolBackward, Backward, Binding(),
                              {ffi::Traits::kCmdBufferCompatible});

}  // namespace jax_dcn
