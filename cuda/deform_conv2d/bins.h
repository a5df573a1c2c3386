// SPDX-License-Identifier: MIT
// The bins of a chunk: for each pixel of x, the samples of the chunk that read it.
//
// A segment is an image of the chunk and a group of offsets: segments are [images, groups]. The id
// of an entry counts the corners of the segment, [pixels, K, corners].
#ifndef JAX_DCN_CUDA_DEFORM_CONV2D_BINS_H_
#define JAX_DCN_CUDA_DEFORM_CONV2D_BINS_H_

#include <cstdint>

#include "common/sampling/bilinear.h"
#include "cuda/deform_conv2d/chunk.h"
#include "cuda/sampling/bins.h"

namespace jax_dcn {

template <typename A>
BinsLayout<A> ChunkBins(const DeformConv2dChunk& chunk) {
  return {int64_t{chunk.images} * chunk.sizes.offset_groups, chunk.sizes.image_pixels(),
          int64_t{kCorners} * chunk.pixels * chunk.sizes.taps};
}

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_DEFORM_CONV2D_BINS_H_
