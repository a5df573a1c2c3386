// SPDX-License-Identifier: MIT
// XLA handlers of the columns of a deformable convolution on CUDA. The products of columns and
// kernel are XLA's; `jax_dcn/_src/deform_conv2d/cuda.py` puts them together.

#include "cuda/deform_conv2d/columns.h"

#include "common/sampling/half.h"
#include "cuda/deform_conv2d/handlers.h"
#include "cuda/deform_conv2d/columns_call.h"
#include "cuda/runtime/handler.h"

namespace jax_dcn {
namespace {

// Reads the call, and runs `run(value of its type, call)`, which returns the error of its launches.
template <typename F>
ffi::Error Handle(DeformConv2dColumnsCall::Kind kind, const ffi::RemainingArgs& arguments,
                  const ffi::RemainingRets& results, const ffi::Dictionary& attributes,
                  const F& run) {
  return Guarded([&] {
    const DeformConv2dColumnsCall call(kind, arguments, results, attributes);
    DispatchFloat(call.dtype(), [&](auto type) { ExpectLaunched(run(type, call)); });
  });
}

ffi::Error Columns(cudaStream_t stream, ffi::RemainingArgs arguments, ffi::RemainingRets results,
                   ffi::Dictionary attributes) {
  return Handle(DeformConv2dColumnsCall::kColumns, arguments, results, attributes,
                [&](auto type, const auto& call) {
                  using T = decltype(type);
                  return LaunchDeformConv2dColumns(stream, call.chunk(), call.template Primals<T>(),
                                                   call.start(), call.template Columns<T>());
                });
}

ffi::Error ColumnsJvp(cudaStream_t stream, ffi::RemainingArgs arguments, ffi::RemainingRets results,
                      ffi::Dictionary attributes) {
  return Handle(DeformConv2dColumnsCall::kColumnsJvp, arguments, results, attributes,
                [&](auto type, const auto& call) {
                  using T = decltype(type);
                  return LaunchDeformConv2dColumnsJvp(
                      stream, call.chunk(), call.template Primals<T>(), call.template Tangents<T>(),
                      call.start(), call.template Columns<T>());
                });
}

template <typename T>
cudaError_t LaunchBackward(cudaStream_t stream, const DeformConv2dColumnsCall& call) {
  const auto primals = call.Primals<T>();
  const T* const grad_columns = call.Cotangent<T>();
  if (call.Wants(kX)) {
    // First, since the columns may then take the place of their gradient.
    const cudaError_t error = LaunchDeformConv2dGatherGradX(
        stream, call.chunk(), primals, call.start(), grad_columns, call.scratch(), call.GradX<T>(),
        call.GradXSums<typename Accumulator<T>::type>());
    if (error != cudaSuccess) return error;
  }
  if (!call.Wants(kKernel) && !call.Wants(kOffset) && !call.Wants(kMask)) return cudaSuccess;
  return LaunchDeformConv2dSampleGradients(stream, call.chunk(), primals, call.start(),
                                           grad_columns, call.SampleCotangents<T>(),
                                           call.Columns<T>());
}

ffi::Error ColumnsBackward(cudaStream_t stream, ffi::RemainingArgs arguments,
                           ffi::RemainingRets results, ffi::Dictionary attributes) {
  return Handle(
      DeformConv2dColumnsCall::kColumnsBackward, arguments, results, attributes,
      [&](auto type, const auto& call) { return LaunchBackward<decltype(type)>(stream, call); });
}

auto Binding() { return ffi::Ffi::Bind().Ctx<Stream>().RemainingArgs().RemainingRets().Attrs(); }

}  // namespace

// A handler that only launches can be part of a CUDA graph.
XLA_FFI_DEFINE_HANDLER_SYMBOL(DeformConv2dColumns, Columns, Binding(),
                              {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER_SYMBOL(DeformConv2dColumnsJvp, ColumnsJvp, Binding(),
                              {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER_SYMBOL(DeformConv2dColumnsBackward, ColumnsBackward, Binding(),
                              {ffi::Traits::kCmdBufferCompatible});

}  // namespace jax_dcn
