// SPDX-License-Identifier: MIT
// The part of a deformable convolution whose columns are held at once, and its index arithmetic.
#ifndef JAX_DCN_CUDA_DEFORM_CONV2D_CHUNK_H_
#define JAX_DCN_CUDA_DEFORM_CONV2D_CHUNK_H_

#include <cstdint>

#include "common/deform_conv2d/problem.h"

namespace jax_dcn {

// Where a chunk starts: [first image, first output pixel], in device memory, since a loop on the
// device counts it up.
using ChunkStart = const int32_t*;

// Some images, and some output pixels of each. Where the last chunk reaches beyond what there is,
// columns are zero. Everything within a chunk is counted in 32 bits; see DeformConv2dChunkCall.
//
// Columns are [feature groups, images, pixels, parts, K, C / feature groups]: the groups are
// outermost because each is a matrix product of its own, and the parts are sampled by different
// weights and multiplied by kernels of their own.
struct DeformConv2dChunk {
  DeformConv2dProblem problem;
  int32_t images, pixels, parts;

  JAX_DCN_INLINE int32_t taps() const { return problem.taps(); }
  JAX_DCN_INLINE int32_t groups() const { return problem.offset_groups; }
  JAX_DCN_INLINE int32_t positions() const { return images * pixels; }
  JAX_DCN_INLINE int32_t samples() const { return positions() * groups() * taps(); }
  JAX_DCN_INLINE int32_t rows() const { return positions() * parts * taps(); }
  JAX_DCN_INLINE int32_t out_pixels() const { return problem.out_height * problem.out_width; }
  JAX_DCN_INLINE int64_t image_size() const { return problem.image_pixels() * problem.channels; }

  // Of a channel of x in a row of the columns.
  JAX_DCN_INLINE int64_t ColumnIndex(int32_t row, int32_t channel) const {
    const int32_t group_channels = problem.group_channels();
    const int32_t group = problem.geometry.feature_groups == 1 ? 0 : channel / group_channels;
    return (int64_t{group} * rows() + row) * group_channels + (channel - group * group_channels);
  }
};

// The samples of a chunk, counted in the order of offset and mask: image, pixel, group, tap.
struct ChunkSample {
  int32_t image_in_chunk, pixel_in_chunk, group, tap;
  int32_t image, pixel;  // in the batch, and in the image's output

  JAX_DCN_INLINE ChunkSample(const DeformConv2dChunk& chunk, ChunkStart start, uint32_t index) {
    const uint32_t taps = chunk.taps(), groups = chunk.groups(), pixels = chunk.pixels;
    const uint32_t group_index = index / taps, position = group_index / groups;
    tap = index - group_index * taps;
    group = group_index - position * groups;
    image_in_chunk = position / pixels;
    pixel_in_chunk = position - image_in_chunk * pixels;
    image = start[0] + image_in_chunk;
    pixel = start[1] + pixel_in_chunk;
  }

  JAX_DCN_INLINE bool Exists(const DeformConv2dChunk& chunk) const {
    return image < chunk.problem.batch && pixel < chunk.out_pixels();
  }

  // In `mask`, and half of that in `offset`.
  JAX_DCN_INLINE int64_t Index(const DeformConv2dChunk& chunk) const {
    return chunk.problem.SampleIndex(int64_t{image} * chunk.out_pixels() + pixel, group, tap);
  }

  JAX_DCN_INLINE int32_t Row(const DeformConv2dChunk& chunk, int32_t part) const {
    const int32_t position = image_in_chunk * chunk.pixels + pixel_in_chunk;
    return (position * chunk.parts + part) * chunk.taps() + tap;
  }

  template <typename A>
  JAX_DCN_INLINE BilinearSample<A> Read(const DeformConv2dChunk& chunk, const A* offset) const {
    const DeformConv2dProblem& problem = chunk.problem;
    const int32_t width = problem.out_width, out_y = pixel / width;
    const int32_t kernel_width = problem.kernel_width, tap_y = tap / kernel_width;
    const OutputPixel output = OutputPixelAt(problem.geometry, image, out_y, pixel - out_y * width);
    return SampleOf(problem, output, tap_y, tap - tap_y * kernel_width, offset + 2 * Index(chunk));
  }

  template <typename A>
  JAX_DCN_INLINE A Mask(const DeformConv2dChunk& chunk, const A* mask) const {
    return mask == nullptr ? A(1) : mask[Index(chunk)];
  }
};

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_DEFORM_CONV2D_CHUNK_H_
