// SPDX-License-Identifier: MIT
// XLA handlers of the fused kernels on CUDA.

#include "cuda/deform_conv2d/fused.h"

#include <limits>

#include "common/deform_conv2d/call.h"
#include "common/sampling/half.h"
#include "cuda/deform_conv2d/handlers.h"
#include "cuda/deform_conv2d/columns.h"
#include "cuda/deform_conv2d/columns_call.h"
#include "cuda/runtime/handler.h"

namespace jax_dcn {
namespace {

// The gradient of the kernel: x, kernel (of which only the shape is used), offset, mask and the
// cotangent of y give the cotangent of the kernel, and scratch.
class GradKernelCall : public DeformConv2dCall {
 public:
  GradKernelCall(const ffi::RemainingArgs& arguments, const ffi::RemainingRets& results,
                 const ffi::Dictionary& attributes) {
    if (arguments.size() != 5 || results.size() != 2) {
      throw Refusal("expected 5 operands and 2 results");
    }
    ReadGeometry(attributes);
    ReadProblem(Argument(arguments, kX), Argument(arguments, kKernel), Argument(arguments, kOffset),
                Argument(arguments, kMask));
    const auto arrays = Arrays();
    dtype_ = Argument(arguments, kX).element_type();
    for (int i = kX; i <= kMask; ++i) at_[i] = Checked("", arrays[i], Argument(arguments, i));
    at_[kY] = Checked("operand for ", arrays[kY], Argument(arguments, 4));
    grad_kernel_ = Checked("result for ", arrays[kKernel], ResultAt(results, 0));
    ReadScratch(ResultAt(results, 1), arrays[kKernel].shape);
  }

  template <typename T>
  cudaError_t Launch(cudaStream_t stream) const {
    const DeformConv2dPrimals<T> primals = {At<T>(kX), At<T>(kKernel), At<float>(kOffset),
                                            ModulatedOrNull(At<float>(kMask))};
    ExpectAligned({primals.x, at_[kY]});
    return LaunchDeformConv2dGradKernel(problem(), primals, At<T>(kY), parts_, scratch_,
                                        static_cast<T*>(grad_kernel_), stream);
  }

 private:
  static ffi::AnyBuffer ResultAt(const ffi::RemainingRets& results, int64_t index) {
    return *ValueOf("result", results.get<ffi::AnyBuffer>(index));
  }

  void ReadScratch(const ffi::AnyBuffer& scratch, Shape shape) {
    const Shape actual = ShapeOf(scratch);
    ExpectRank("scratch", actual, shape.size() + 1);
    constexpr int64_t kMostParts = 65535;  // along an axis of the grid
    if (actual[0] < 1 || actual[0] > kMostParts)
      throw Refusal("scratch has too many parts, or none");
    shape.insert(shape.begin(), actual[0]);
    Expect("scratch", scratch, shape, ffi::DataType::F32);
    parts_ = static_cast<int>(actual[0]);
    scratch_ = static_cast<float*>(scratch.untyped_data());
  }

  template <typename T>
  const T* At(int64_t array) const {
    return static_cast<const T*>(at_[array]);
  }

  const void* at_[kArrays] = {};
  void* grad_kernel_;
  float* scratch_;
  int parts_;
};

// Runs `run(value of the call's type)` where the kernels can compute it.
template <typename F>
void Dispatch(const DeformConv2dCall& call, const F& run) {
  const auto expect_fused = [&](int element_bytes) {
    const char* const reason = WhyNotFused(call.problem(), element_bytes);
    if (reason != nullptr) throw Refusal(reason);
  };
  switch (call.dtype()) {
    case ffi::DataType::F32:
      return expect_fused(4), run(float{});
    case ffi::DataType::BF16:
      return expect_fused(2), run(BFloat16{});
    case ffi::DataType::F16:
      return expect_fused(2), run(Float16{});
    default:
      throw Refusal("x must be float32, bfloat16 or float16");
  }
}

ffi::Error Forward(cudaStream_t stream, ffi::RemainingArgs arguments, ffi::RemainingRets results,
                   ffi::Dictionary attributes) {
  return Guarded([&] {
    const DeformConv2dCall call(DeformConv2dCall::kForward, arguments, results, attributes);
    Dispatch(call, [&](auto type) {
      using T = decltype(type);
      const auto primals = call.Primals<T>();
      T* const y = call.Result<T>(kY);
      ExpectAligned({primals.x, primals.kernel, y});
      ExpectLaunched(
          LaunchDeformConv2dForward(call.problem(), primals, call.Linear<T>(kBias), y, stream));
    });
  });
}

ffi::Error GradKernel(cudaStream_t stream, ffi::RemainingArgs arguments, ffi::RemainingRets results,
                      ffi::Dictionary attributes) {
  return Guarded([&] {
    const GradKernelCall call(arguments, results, attributes);
    Dispatch(call, [&](auto type) { ExpectLaunched(call.Launch<decltype(type)>(stream)); });
  });
}

// The gradients of x, offset and mask. That of x is gathered from the columns' gradient.
template <typename T>
cudaError_t LaunchSamplesBackward(cudaStream_t stream, const DeformConv2dColumnsCall& call) {
  const auto primals = call.Primals<T>();
  T* const grad_columns = call.Columns<T>();
  ExpectAligned({primals.x, primals.kernel, call.Cotangent<T>(), grad_columns});
  const cudaError_t error =
      LaunchDeformConv2dGradSamples(stream, call.chunk(), primals, call.Cotangent<T>(),
                                    call.start(), call.SampleCotangents<T>(), grad_columns);
  if (error != cudaSuccess || !call.Wants(kX)) return error;
  return LaunchDeformConv2dGatherGradX(stream, call.chunk(), primals, call.start(),
                                       static_cast<const T*>(grad_columns), call.scratch(),
                                       call.GradX<T>(), call.GradXSums<float>());
}

ffi::Error SamplesBackward(cudaStream_t stream, ffi::RemainingArgs arguments,
                           ffi::RemainingRets results, ffi::Dictionary attributes) {
  return Guarded([&] {
    const DeformConv2dColumnsCall call(DeformConv2dColumnsCall::kSamplesBackward, arguments,
                                       results, attributes);
    Dispatch(call, [&](auto type) {
      ExpectLaunched(LaunchSamplesBackward<decltype(type)>(stream, call));
    });
  });
}

auto Binding() { return ffi::Ffi::Bind().Ctx<Stream>().RemainingArgs().RemainingRets().Attrs(); }

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(DeformConv2dForward, Forward, Binding(),
                              {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER_SYMBOL(DeformConv2dGradKernel, GradKernel, Binding(),
                              {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER_SYMBOL(DeformConv2dSamplesBackward, SamplesBackward, Binding(),
                              {ffi::Traits::kCmdBufferCompatible});

}  // namespace jax_dcn
