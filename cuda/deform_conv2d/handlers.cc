// SPDX-License-Identifier: MIT
// The list of the XLA targets of deformable convolution on CUDA.

#include "cuda/deform_conv2d/handlers.h"

#include "common/ffi/library.h"

namespace jax_dcn::deform_conv2d {

std::vector<Target> CudaTargets() {
  return {
      {"jax_dcn_deform_conv2d_forward", DeformConv2dForward},
      {"jax_dcn_deform_conv2d_grad_kernel", DeformConv2dGradKernel},
      {"jax_dcn_deform_conv2d_samples_backward", DeformConv2dSamplesBackward},
      {"jax_dcn_deform_conv2d_columns", DeformConv2dColumns},
      {"jax_dcn_deform_conv2d_columns_jvp", DeformConv2dColumnsJvp},
      {"jax_dcn_deform_conv2d_columns_backward", DeformConv2dColumnsBackward},
  };
}

}  // namespace jax_dcn::deform_conv2d
