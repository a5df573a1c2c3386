// SPDX-License-Identifier: MIT
// XLA handlers of the fused kernels on CUDA.

#include "cuda/deform_conv2d/fused.h"

#include "common/deform_conv2d/call.h"
#include "cuda/deform_conv2d/chunk_call.h"
#include "cuda/deform_conv2d/columns.h"
#include "cuda/deform_conv2d/handlers.h"
#include "cuda/deform_conv2d/primals_call.h"
#include "cuda/runtime/handler.h"

namespace jax_dcn {
namespace {

// Calls `launch` where there is a fused kernel of T for the problem, with arrays that are aligned.
template <typename T, typename F>
cudaError_t RunFused(const DeformConv2dProblem& problem, std::initializer_list<const void*> arrays,
                     const F& launch) {
  ExpectNoReason(WhyNotFused(problem, sizeof(T)));
  ExpectAligned(arrays);
  if constexpr (sizeof(T) <= sizeof(float)) return launch();
  return cudaErrorInvalidValue;  // WhyNotFused has refused
}

struct Forward {
  static DeformConv2dCall Read(const ffi::RemainingArgs& arguments,
                               const ffi::RemainingRets& results,
                               const ffi::Dictionary& attributes) {
    return DeformConv2dCall(DeformConv2dCall::kForward, arguments, results, attributes);
  }

  template <typename T>
  static cudaError_t Run(cudaStream_t stream, const DeformConv2dCall& call) {
    const auto primals = call.Primals<T>();
    T* const y = call.Result<T>(kY);
    return RunFused<T>(call.problem(), {primals.x, primals.kernel, y}, [&] {
      return LaunchDeformConv2dForward(call.problem(), primals, call.Linear<T>(kBias), y, stream);
    });
  }
};

// x, kernel, of which only the shape is used, offset, mask and the cotangent of y
//   -> the gradient of the kernel, and scratch.
class GradKernelCall : public PrimalsCall {
 public:
  GradKernelCall(Cursor& cursor, const ffi::Dictionary& attributes)
      : PrimalsCall(cursor, attributes) {
    grad_y_ = Checked("cotangent of ", arrays_[kY], cursor.Operand());
    grad_kernel_ = Checked("result for ", arrays_[kKernel], cursor.Result());
    ReadScratch(cursor.Result(), arrays_[kKernel].shape);
  }

  template <typename T>
  cudaError_t Launch(cudaStream_t stream) const {
    const auto primals = Primals<T>();
    return RunFused<T>(problem(), {primals.x, grad_y_, scratch_}, [&] {
      return LaunchDeformConv2dGradKernel(problem(), primals, static_cast<const T*>(grad_y_),
                                          parts_, scratch_, static_cast<T*>(grad_kernel_), stream);
    });
  }

 private:
  void ReadScratch(const ffi::AnyBuffer& scratch, Shape shape) {
    const Shape actual = ShapeOf(scratch);
    ExpectRank("scratch", actual, shape.size() + 1);
    constexpr int64_t kMostParts = 65535;  // along an axis of the grid
    if (actual[0] < 1 || actual[0] > kMostParts) {
      throw Refusal("scratch has too many parts, or none");
    }
    shape.insert(shape.begin(), actual[0]);
    Expect("scratch", scratch, shape, ffi::DataType::F32);
    parts_ = static_cast<int>(actual[0]);
    scratch_ = static_cast<float*>(scratch.untyped_data());
  }

  const void* grad_y_;
  void* grad_kernel_;
  float* scratch_;
  int parts_;
};

struct GradKernel : ReadByCursor<GradKernelCall> {
  template <typename T>
  static cudaError_t Run(cudaStream_t stream, const GradKernelCall& call) {
    return call.Launch<T>(stream);
  }
};

// The gradients of x, offset and mask. The gradient of x is gathered from the columns' gradient.
struct SamplesBackward : ReadByCursor<SamplesBackwardCall> {
  template <typename T>
  static cudaError_t Run(cudaStream_t stream, const SamplesBackwardCall& call) {
    const auto primals = call.Primals<T>();
    const T* const grad_y = call.grad_y<T>();
    T* const grad_columns = call.grad_columns<T>();
    const auto grads = call.SampleCotangents<T>();
    const std::initializer_list<const void*> arrays = {primals.x, primals.kernel, grad_y,
                                                       grad_columns, grads.offset};
    return RunFused<T>(call.problem(), arrays, [&] {
      const cudaError_t error = LaunchDeformConv2dGradSamples(stream, call.chunk(), primals, grad_y,
                                                              call.start(), grads, grad_columns);
      if (error != cudaSuccess || !call.wants_x()) return error;
      return LaunchDeformConv2dGatherGradX(stream, call.chunk(), primals, call.start(),
                                           static_cast<const T*>(grad_columns), call.scratch(),
                                           call.grad_x<T>(), call.grad_x_sums<T>());
    });
  }
};

}  // namespace

JAX_DCN_DEFINE_CUDA_HANDLER(DeformConv2dForward, Forward);
JAX_DCN_DEFINE_CUDA_HANDLER(DeformConv2dGradKernel, GradKernel);
JAX_DCN_DEFINE_CUDA_HANDLER(DeformConv2dSamplesBackward, SamplesBackward);

}  // namespace jax_dcn
