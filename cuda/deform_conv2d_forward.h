// SPDX-License-Identifier: MIT
// Fused forward pass of deformable convolution on CUDA.
#ifndef JAX_DCN_CUDA_DEFORM_CONV2D_FORWARD_H_
#define JAX_DCN_CUDA_DEFORM_CONV2D_FORWARD_H_

#include <cuda_runtime.h>

#include "common/deform_conv2d.h"

namespace jax_dcn {

// float is multiplied in the precision of TF32. What WhyNotFused refuses must not be asked for.
template <typename T>
cudaError_t LaunchDeformConv2dForward(const DeformConv2dProblem& problem,
                                      const DeformConv2dPrimals<T>& primals,
                                      const T* bias,  // [O]
                                      T* y, cudaStream_t stream);

// Why the kernel cannot compute this, or null where it can. The twin of `why_not_fused` in Python,
// which chooses between this kernel and columns in device memory.
const char* WhyNotFused(const DeformConv2dProblem& problem, int element_bytes);

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_DEFORM_CONV2D_FORWARD_H_
