// SPDX-License-Identifier: MIT
// The library jax_dcn_cuda: a list of the GPU's XLA targets.

#include "common/ffi/library.h"

#include <cuda_runtime.h>

#include <string>

#include "cuda/deform_conv2d/handlers.h"
#include "cuda/deform_roi_pool/handlers.h"

namespace jax_dcn {

JAX_DCN_EXPORT const Library& CudaLibrary() {
  static const std::string description = "CUDA " + std::to_string(CUDART_VERSION / 1000) + "." +
                                         std::to_string(CUDART_VERSION % 1000 / 10) +
                                         " for " JAX_DCN_CUDA_ARCHITECTURES;
  static const Library library = {
      description.c_str(),
      {
          {"jax_dcn_deform_conv2d_forward", DeformConv2dForward},
          {"jax_dcn_deform_conv2d_grad_kernel", DeformConv2dGradKernel},
          {"jax_dcn_deform_conv2d_samples_backward", DeformConv2dSamplesBackward},
          {"jax_dcn_deform_conv2d_columns", DeformConv2dColumns},
          {"jax_dcn_deform_conv2d_columns_jvp", DeformConv2dColumnsJvp},
          {"jax_dcn_deform_conv2d_columns_backward", DeformConv2dColumnsBackward},
          {"jax_dcn_deform_roi_pool_forward", DeformRoIPoolForward},
          {"jax_dcn_deform_roi_pool_jvp", DeformRoIPoolJvp},
          {"jax_dcn_deform_roi_pool_backward", DeformRoIPoolBackward},
      },
  };
  return library;
}

}  // namespace jax_dcn
