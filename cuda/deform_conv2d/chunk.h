// SPDX-License-Identifier: MIT
// The part of a deformable convolution whose columns are held at once, and its index arithmetic.
#ifndef JAX_DCN_CUDA_DEFORM_CONV2D_CHUNK_H_
#define JAX_DCN_CUDA_DEFORM_CONV2D_CHUNK_H_

#include <cstdint>

#include "cuda/deform_conv2d/sizes.h"

namespace jax_dcn {

// Where a chunk starts: [first image, first output pixel], in device memory, since a loop on the
// device counts the start up.
using ChunkStart = const int32_t*;

// Some images, and some output pixels of each. Where the last chunk reaches beyond the batch or the
// image, columns are zero. Everything within a chunk is counted in 32 bits: `ChunkCall` refuses a
// larger chunk.
//
// Columns are [feature groups, images, pixels, parts, K, C / feature groups]: the groups are
// outermost because each is a matrix product of its own, and the parts are sampled by different
// weights and multiplied by kernels of their own.
struct DeformConv2dChunk {
  DeformConv2dSizes sizes;
  int32_t images, pixels, parts;
  Divisor by_pixels;

  DeformConv2dChunk() = default;
  DeformConv2dChunk(const DeformConv2dProblem& problem, int element_bytes, int64_t images,
                    int64_t pixels, int32_t parts)
      : sizes(problem, element_bytes),
        images(images),
        pixels(pixels),
        parts(parts),
        by_pixels(pixels) {}

  JAX_DCN_INLINE int32_t positions() const { return images * pixels; }
  JAX_DCN_INLINE int32_t samples() const { return positions() * sizes.offset_groups * sizes.taps; }
  JAX_DCN_INLINE int32_t rows() const { return positions() * parts * sizes.taps; }

  // The index of a channel of x in a row of the columns.
  JAX_DCN_INLINE int64_t ColumnIndex(int32_t row, int32_t channel) const {
    const int64_t in_first_group = int64_t{row} * sizes.group_channels + channel;
    if (sizes.feature_groups == 1) return in_first_group;
    const int32_t group = sizes.by_group_channels.Quotient(channel);
    return in_first_group + int64_t{group} * sizes.group_channels * (rows() - 1);
  }
};

// A sample of a chunk. Samples are counted in the order of offset and mask: image, pixel, group,
// tap.
struct ChunkSample {
  int32_t image_in_chunk, pixel_in_chunk, group, tap;
  int32_t image, pixel;  // in the batch, and in the image's output

  JAX_DCN_INLINE ChunkSample(const DeformConv2dChunk& chunk, ChunkStart start, int32_t index) {
    const int32_t group_index = chunk.sizes.by_taps.Quotient(index);
    const int32_t position = chunk.sizes.by_offset_groups.Quotient(group_index);
    tap = chunk.sizes.by_taps.Remainder(index, group_index);
    group = chunk.sizes.by_offset_groups.Remainder(group_index, position);
    image_in_chunk = chunk.by_pixels.Quotient(position);
    pixel_in_chunk = chunk.by_pixels.Remainder(position, image_in_chunk);
    image = start[0] + image_in_chunk;
    pixel = start[1] + pixel_in_chunk;
  }

  JAX_DCN_INLINE bool Exists(const DeformConv2dChunk& chunk) const {
    return image < chunk.sizes.batch && pixel < chunk.sizes.out_pixels;
  }

  // The place in `mask`, and half of the place in `offset`.
  JAX_DCN_INLINE int64_t Index(const DeformConv2dChunk& chunk) const {
    return chunk.sizes.SampleIndex(int64_t{image} * chunk.sizes.out_pixels + pixel, group, tap);
  }

  JAX_DCN_INLINE int32_t Row(const DeformConv2dChunk& chunk, int32_t part) const {
    const int32_t position = image_in_chunk * chunk.pixels + pixel_in_chunk;
    return (position * chunk.parts + part) * chunk.sizes.taps + tap;
  }

  template <typename A>
  JAX_DCN_INLINE BilinearSample<A> Read(const DeformConv2dChunk& chunk, const A* offset) const {
    return chunk.sizes.ReadAt(pixel, tap, offset + 2 * Index(chunk));
  }

  template <typename A>
  JAX_DCN_INLINE A Mask(const DeformConv2dChunk& chunk, const A* mask) const {
    return mask == nullptr ? A(1) : mask[Index(chunk)];
  }
};

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_DEFORM_CONV2D_CHUNK_H_
