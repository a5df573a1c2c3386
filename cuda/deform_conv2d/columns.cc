// SPDX-License-Identifier: MIT
// XLA handlers of the columns of a deformable convolution on CUDA. XLA makes the products of
// columns and kernel.

#include "cuda/deform_conv2d/columns.h"

#include "cuda/deform_conv2d/chunk_call.h"
#include "cuda/deform_conv2d/handlers.h"
#include "cuda/runtime/handler.h"

namespace jax_dcn {
namespace {

struct Columns : ReadByCursor<ColumnsCall> {
  template <typename T>
  static cudaError_t Run(cudaStream_t stream, const ColumnsCall& call) {
    return LaunchDeformConv2dColumns(stream, call.chunk(), call.Primals<T>(), call.start(),
                                     call.columns<T>());
  }
};

struct ColumnsJvp : ReadByCursor<ColumnsJvpCall> {
  template <typename T>
  static cudaError_t Run(cudaStream_t stream, const ColumnsJvpCall& call) {
    return LaunchDeformConv2dColumnsJvp(stream, call.chunk(), call.Primals<T>(), call.Tangents<T>(),
                                        call.kernel_moves(), call.start(), call.columns<T>());
  }
};

struct ColumnsBackward : ReadByCursor<ColumnsBackwardCall> {
  template <typename T>
  static cudaError_t Run(cudaStream_t stream, const ColumnsBackwardCall& call) {
    const auto primals = call.Primals<T>();
    const T* const grad_columns = call.grad_columns<T>();
    if (call.wants_x()) {
      // First, since the columns may then take the place of their gradient.
      const cudaError_t error =
          LaunchDeformConv2dGatherGradX(stream, call.chunk(), primals, call.start(), grad_columns,
                                        call.scratch(), call.grad_x<T>(), call.grad_x_sums<T>());
      if (error != cudaSuccess) return error;
    }
    if (call.columns<T>() == nullptr && !call.wants_samples()) return cudaSuccess;
    return LaunchDeformConv2dSampleGradients(stream, call.chunk(), primals, call.start(),
                                             grad_columns, call.SampleCotangents<T>(),
                                             call.columns<T>());
  }
};

}  // namespace

JAX_DCN_DEFINE_CUDA_HANDLER(DeformConv2dColumns, Columns);
JAX_DCN_DEFINE_CUDA_HANDLER(DeformConv2dColumnsJvp, ColumnsJvp);
JAX_DCN_DEFINE_CUDA_HANDLER(DeformConv2dColumnsBackward, ColumnsBackward);

}  // namespace jax_dcn
