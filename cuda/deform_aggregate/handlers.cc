// SPDX-License-Identifier: MIT
// XLA handlers of deformable aggregation on CUDA: they check, and launch the kernels.

#include "common/deform_aggregate/call.h"
#include "common/ffi/library.h"
#include "cuda/deform_aggregate/kernels.h"
#include "cuda/runtime/handler.h"

namespace jax_dcn {
namespace {

// A call that the kernels can compute.
class CudaCall : public DeformAggregateCall {
 public:
  template <typename... Arguments>
  explicit CudaCall(Kind kind, const Arguments&... arguments)
      : DeformAggregateCall(kind, arguments...) {
    ExpectNoReason(WhyNotOnCuda(problem()));
  }
};

template <DeformAggregateCall::Kind kKind>
struct ReadKind {
  static CudaCall Read(const ffi::RemainingArgs& arguments, const ffi::RemainingRets& results,
                       const ffi::Dictionary& attributes) {
    return CudaCall(kKind, arguments, results, attributes);
  }
};

struct Forward : ReadKind<CudaCall::kForward> {
  template <typename T>
  static cudaError_t Run(cudaStream_t stream, const CudaCall& call) {
    return LaunchDeformAggregateForward(stream, call.problem(), call.Primals<T>(),
                                        call.Result<T>(CudaCall::kY));
  }
};

struct Jvp : ReadKind<CudaCall::kJvp> {
  template <typename T>
  static cudaError_t Run(cudaStream_t stream, const CudaCall& call) {
    return LaunchDeformAggregateJvp(stream, call.problem(), call.Primals<T>(), call.Tangents<T>(),
                                    call.Result<T>(CudaCall::kY));
  }
};

// With the attribute `segments`: how many segments' bins fit into the scratch memory, which is the
// last result; none where the gradient of x is not wanted, and there is no scratch memory.
class BackwardCall : public CudaCall {
 public:
  BackwardCall(const ffi::RemainingArgs& arguments, const ffi::RemainingRets& results,
               const ffi::Dictionary& attributes)
      : CudaCall(kBackward, arguments, results, attributes, size_t{Segments(attributes) > 0}),
        segments_(Segments(attributes)) {
    if (segments_ == 0) {
      if (Result<char>(kX) != nullptr) throw Refusal("the gradient of x needs segments");
      return;
    }
    ExpectNoReason(WhyNotSegmentsOnCuda(problem(), segments_));
    const int64_t words = dtype() == ffi::DataType::F64
                              ? SegmentBins<double>(problem(), segments_).words()
                              : SegmentBins<float>(problem(), segments_).words();
    const ffi::AnyBuffer scratch =
        *ValueOf("scratch", results.get<ffi::AnyBuffer>(results.size() - 1));
    Expect("scratch", scratch, {words}, ffi::DataType::S32);
    scratch_ = static_cast<int32_t*>(scratch.untyped_data());
    ExpectAligned({scratch_});
  }

  int64_t segments() const { return segments_; }
  int32_t* scratch() const { return scratch_; }

 private:
  static int64_t Segments(const ffi::Dictionary& attributes) {
    return InRange("segments", Attribute<int64_t>(attributes, "segments"), 0);
  }

  int64_t segments_;
  int32_t* scratch_ = nullptr;
};

struct Backward {
  static BackwardCall Read(const ffi::RemainingArgs& arguments, const ffi::RemainingRets& results,
                           const ffi::Dictionary& attributes) {
    return BackwardCall(arguments, results, attributes);
  }

  template <typename T>
  static cudaError_t Run(cudaStream_t stream, const BackwardCall& call) {
    const auto primals = call.Primals<T>();
    const auto grads = call.Cotangents<T>();
    const T* const grad_y = call.Linear<T>(BackwardCall::kY);
    if (grads.positions != nullptr || grads.weights != nullptr) {
      const cudaError_t error =
          LaunchDeformAggregateGradSamples(stream, call.problem(), primals, grad_y, grads);
      if (error != cudaSuccess) return error;
    }
    if (grads.x == nullptr) return cudaSuccess;
    return LaunchDeformAggregateGradX(stream, call.problem(), primals, grad_y, call.segments(),
                                      call.scratch(), grads.x);
  }
};

}  // namespace

JAX_DCN_DEFINE_CUDA_HANDLER(DeformAggregateForward, Forward);
JAX_DCN_DEFINE_CUDA_HANDLER(DeformAggregateJvp, Jvp);
JAX_DCN_DEFINE_CUDA_HANDLER(DeformAggregateBackward, Backward);

namespace deform_aggregate {

std::vector<Target> CudaTargets() {
  return {
      {"jax_dcn_deform_aggregate_forward", DeformAggregateForward},
      {"jax_dcn_deform_aggregate_jvp", DeformAggregateJvp},
      {"jax_dcn_deform_aggregate_backward", DeformAggregateBackward},
  };
}

}  // namespace deform_aggregate
}  // namespace jax_dcn
