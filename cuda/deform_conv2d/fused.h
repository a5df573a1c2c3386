// SPDX-License-Identifier: MIT
// Fused kernels of deformable convolution: columns are sampled into shared memory and multiplied
// there by tensor cores, float in the precision of TF32. Launchers take problems that WhyNotFused
// does not refuse, and arrays of T that start at multiples of 16 bytes.
#ifndef JAX_DCN_CUDA_DEFORM_CONV2D_FUSED_H_
#define JAX_DCN_CUDA_DEFORM_CONV2D_FUSED_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "common/deform_conv2d/problem.h"
#include "cuda/deform_conv2d/chunk.h"

namespace jax_dcn {

// Sampled channels of a tap and a pixel come in chunks of so many bytes, each of one offset group.
constexpr int kChunkBytes = 64;

// Why the kernels cannot compute a problem, or null where the kernels can. `why_not` in
// `jax_dcn/_src/deform_conv2d/fused.py` refuses at least the same problems, and leaves them to
// columns in device memory; a test compares the two.
inline const char* WhyNotFused(const DeformConv2dProblem& problem, int element_bytes) {
  if (element_bytes > 4) return "x must be float32, bfloat16 or float16";
  const int64_t channels = kChunkBytes / element_bytes, features = 16 / element_bytes;
  if (problem.group_channels() % channels != 0 || problem.offset_group_channels() % channels != 0) {
    return "the channels of a group, and of an offset group, must be a multiple of 64 bytes";
  }
  if (problem.group_features() % features != 0) {
    return "the features of a group must be a multiple of 16 bytes";
  }
  const int64_t most = int64_t{1} << 31;
  if (problem.image_pixels() * problem.channels >= most ||
      problem.batch * problem.image_pixels() >= most ||
      problem.taps() * problem.channels * problem.features >= most ||
      problem.pixels() / 32 * problem.features >= most ||
      problem.pixels() * problem.offset_groups * problem.taps() * kCorners >= most ||
      problem.geometry.feature_groups >= 1 << 16) {
    return "the batch, an image, the kernel or the number of samples is too large";
  }
  return nullptr;
}

template <typename T>
cudaError_t LaunchDeformConv2dForward(const DeformConv2dProblem& problem,
                                      const DeformConv2dPrimals<T>& primals,
                                      const T* bias,  // [O]
                                      T* y,           // [N, H_out, W_out, O]
                                      cudaStream_t stream);

// The gradient of the kernel. The pixels are split into `parts`, which are summed in their order.
template <typename T>
cudaError_t LaunchDeformConv2dGradKernel(const DeformConv2dProblem& problem,
                                         const DeformConv2dPrimals<T>& primals,
                                         const T* grad_y,  // [N, H_out, W_out, O]
                                         int parts,
                                         float* scratch,  // [parts, K_h, K_w, C / groups, O]
                                         T* grad_kernel,  // [K_h, K_w, C / groups, O]
                                         cudaStream_t stream);

// The gradients of offset and mask, from the chunk's samples. `grad_columns`, if not null, gets the
// gradient of the chunk's columns.
template <typename T>
cudaError_t LaunchDeformConv2dGradSamples(cudaStream_t stream, const DeformConv2dChunk& chunk,
                                          const DeformConv2dPrimals<T>& primals,
                                          const T* grad_y,  // [N, H_out, W_out, O]
                                          ChunkStart start, const DeformConv2dCotangents<T>& grads,
                                          T* grad_columns);

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_DEFORM_CONV2D_FUSED_H_
