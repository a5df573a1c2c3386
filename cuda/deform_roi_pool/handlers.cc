// SPDX-License-Identifier: MIT
// XLA handlers of deformable RoI pooling on CUDA: they check, and launch the kernels.

#include "common/deform_roi_pool/call.h"
#include "common/ffi/library.h"
#include "cuda/deform_roi_pool/kernels.h"
#include "cuda/runtime/handler.h"

namespace jax_dcn {
namespace {

// The call of a kind, for which there is a kernel.
template <DeformRoIPoolCall::Kind kKind>
struct ReadKind {
  static DeformRoIPoolCall Read(const ffi::RemainingArgs& arguments,
                                const ffi::RemainingRets& results,
                                const ffi::Dictionary& attributes) {
    const DeformRoIPoolCall call(kKind, arguments, results, attributes);
    ExpectNoReason(WhyNotOnCuda(call.problem()));
    return call;
  }
};

// The type of coordinates and sums.
template <typename T>
using Wide = decltype(ToFloat(T()));

struct Forward : ReadKind<DeformRoIPoolCall::kForward> {
  template <typename T>
  static cudaError_t Run(cudaStream_t stream, const DeformRoIPoolCall& call) {
    return LaunchDeformRoIPoolForward(stream, call.problem(), call.Primals<T, Wide<T>>(),
                                      call.Result<T>(DeformRoIPoolCall::kY));
  }
};

struct Jvp : ReadKind<DeformRoIPoolCall::kJvp> {
  template <typename T>
  static cudaError_t Run(cudaStream_t stream, const DeformRoIPoolCall& call) {
    return LaunchDeformRoIPoolJvp(stream, call.problem(), call.Primals<T, Wide<T>>(),
                                  call.Tangents<T, Wide<T>>(),
                                  call.Result<T>(DeformRoIPoolCall::kY));
  }
};

struct Backward : ReadKind<DeformRoIPoolCall::kBackward> {
  template <typename T>
  static cudaError_t Run(cudaStream_t stream, const DeformRoIPoolCall& call) {
    return LaunchDeformRoIPoolBackward(stream, call.problem(), call.Primals<T, Wide<T>>(),
                                       call.Linear<T>(DeformRoIPoolCall::kY),
                                       call.Cotangents<T, Wide<T>>());
  }
};

}  // namespace

JAX_DCN_DEFINE_CUDA_HANDLER(DeformRoIPoolForward, Forward);
JAX_DCN_DEFINE_CUDA_HANDLER(DeformRoIPoolJvp, Jvp);
JAX_DCN_DEFINE_CUDA_HANDLER(DeformRoIPoolBackward, Backward);

namespace deform_roi_pool {

std::vector<Target> CudaTargets() {
  return {
      {"jax_dcn_deform_roi_pool_forward", DeformRoIPoolForward},
      {"jax_dcn_deform_roi_pool_jvp", DeformRoIPoolJvp},
      {"jax_dcn_deform_roi_pool_backward", DeformRoIPoolBackward},
  };
}

}  // namespace deform_roi_pool
}  // namespace jax_dcn
