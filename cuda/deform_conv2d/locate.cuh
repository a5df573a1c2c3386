// SPDX-License-Identifier: MIT
// The samples of the fused kernels, whose corners are pixels of the whole batch.
#ifndef JAX_DCN_CUDA_DEFORM_CONV2D_LOCATE_CUH_
#define JAX_DCN_CUDA_DEFORM_CONV2D_LOCATE_CUH_

#include "cuda/deform_conv2d/sizes.h"
#include "cuda/sampling/sample.cuh"

namespace jax_dcn {

// The sample of a tap at an output pixel of the batch. WhyNotFused refuses problems whose
// pixels and samples are not counted in 32 bits.
template <typename T>
__device__ __forceinline__ Sample<float> LocateSample(const DeformConv2dSizes& sizes,
                                                      const DeformConv2dPrimals<T>& primals,
                                                      int32_t pixel, int32_t group, int32_t tap) {
  const int32_t image = sizes.by_out_pixels.Quotient(pixel);
  const int32_t index = (pixel * sizes.offset_groups + group) * sizes.taps + tap;
  const BilinearSample<float> read = sizes.ReadAt(sizes.by_out_pixels.Remainder(pixel, image), tap,
                                                  primals.offset + 2 * int64_t{index});
  return SampleOf(read, primals.mask == nullptr ? 1.0f : primals.mask[index],
                  image * sizes.image_pixels());
}

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_DEFORM_CONV2D_LOCATE_CUH_
