// SPDX-License-Identifier: MIT
// XLA handler of the fused forward pass on CUDA.

#include "cuda/deform_conv2d_forward.h"

#include "common/deform_conv2d_call.h"
#include "common/half.h"
#include "cuda/handler.h"

namespace jax_dcn {
namespace {

template <typename T>
void Run(const DeformConv2dCall& call, cudaStream_t stream) {
  if (const char* reason = WhyNotFused(call.problem(), sizeof(T))) throw Refusal(reason);
  const auto primals = call.Primals<T>();
  const T* const bias = call.Linear<T>(kBias);
  T* const y = call.Result<T>(kY);
  ExpectAligned({primals.x, primals.kernel, y});
  ExpectLaunched(LaunchDeformConv2dForward(call.problem(), primals, bias, y, stream));
}

ffi::Error Forward(cudaStream_t stream, ffi::RemainingArgs arguments, ffi::RemainingRets results,
                   ffi::Dictionary attributes) {
  return Guarded([&] {
    const DeformConv2dCall call(DeformConv2dCall::kForward, arguments, results, attributes);
    switch (call.dtype()) {
      case ffi::DataType::F32:
        return Run<float>(call, stream);
      case ffi::DataType::BF16:
        return Run<BFloat16>(call, stream);
      case ffi::DataType::F16:
        return Run<Float16>(call, stream);
      default:
        throw Refusal("x must be float32, bfloat16 or float16");
    }
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    DeformConv2dForward, Forward,
    ffi::Ffi::Bind().Ctx<Stream>().RemainingArgs().RemainingRets().Attrs(),
    {ffi::Traits::kCmdBufferCompatible});

}  // namespace jax_dcn
