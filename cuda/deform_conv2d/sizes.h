// SPDX-License-Identifier: MIT
// The sizes of a deformable convolution as its kernels take them: in 32 bits, with the divisors of
// their index arithmetic, all made on the host.
#ifndef JAX_DCN_CUDA_DEFORM_CONV2D_SIZES_H_
#define JAX_DCN_CUDA_DEFORM_CONV2D_SIZES_H_

#include <cstdint>

#include "common/deform_conv2d/problem.h"
#include "cuda/runtime/divisor.h"

namespace jax_dcn {

// See DeformConv2dProblem. Each size fits into 32 bits. Products of sizes need not.
struct DeformConv2dSizes {
  int32_t batch, height, width, channels, features;
  int32_t out_width, out_pixels;  // of an image
  int32_t taps, offset_groups, feature_groups;
  int32_t group_channels, group_features, offset_group_channels;
  int32_t pixel_bytes, features_bytes;          // between pixels of x, and between pixels of y
  int32_t strides[2], padding[2], dilation[2];  // padding: (top, left)
  bool legacy_boundary;
  Divisor by_out_width, by_out_pixels, by_kernel_width, by_taps, by_offset_groups;
  Divisor by_group_channels, by_offset_group_channels, by_image_pixels;

  DeformConv2dSizes() = default;
  DeformConv2dSizes(const DeformConv2dProblem& p, int element_bytes)
      : batch(p.batch),
        height(p.height),
        width(p.width),
        channels(p.channels),
        features(p.features),
        out_width(p.out_width),
        out_pixels(p.out_height * p.out_width),
        taps(p.taps()),
        offset_groups(p.offset_groups),
        feature_groups(p.geometry.feature_groups),
        group_channels(p.group_channels()),
        group_features(p.group_features()),
        offset_group_channels(p.offset_group_channels()),
        pixel_bytes(p.channels * element_bytes),
        features_bytes(p.features * element_bytes),
        legacy_boundary(p.geometry.legacy_boundary),
        by_out_width(p.out_width),
        by_out_pixels(p.out_height * p.out_width),
        by_kernel_width(p.kernel_width),
        by_taps(p.taps()),
        by_offset_groups(p.offset_groups),
        by_group_channels(p.group_channels()),
        by_offset_group_channels(p.offset_group_channels()),
        by_image_pixels(p.image_pixels()) {
    for (int axis = 0; axis < 2; ++axis) {
      strides[axis] = p.geometry.strides[axis];
      padding[axis] = p.geometry.padding[axis][0];
      dilation[axis] = p.geometry.kernel_dilation[axis];
    }
  }

  JAX_DCN_INLINE int32_t image_pixels() const { return height * width; }
  // Output pixels of the batch, which the fused kernels count in 32 bits.
  JAX_DCN_INLINE int32_t pixels() const { return batch * out_pixels; }
  JAX_DCN_INLINE int64_t image_elements() const { return int64_t{image_pixels()} * channels; }
  // Place of a sample's data in `mask`, and half of its place in `offset`.
  JAX_DCN_INLINE int64_t SampleIndex(int64_t pixel, int32_t group, int32_t tap) const {
    return (pixel * offset_groups + group) * taps + tap;
  }

  // The read of a tap at the output pixel `pixel` of an image, `displacement` (dy, dx) from the
  // tap's place in the grid.
  template <typename A>
  JAX_DCN_INLINE BilinearSample<A> ReadAt(int32_t pixel, int32_t tap, const A* displacement) const {
    const int32_t out_y = by_out_width.Quotient(pixel), tap_y = by_kernel_width.Quotient(tap);
    const int32_t out_x = by_out_width.Remainder(pixel, out_y);
    const int32_t tap_x = by_kernel_width.Remainder(tap, tap_y);
    const SampledMap<2, int32_t> map = {{height, width}, legacy_boundary};
    return SampleAt(map, Position(0, out_y, tap_y, displacement),
                    Position(1, out_x, tap_x, displacement));
  }

 private:
  template <typename A>
  JAX_DCN_INLINE A Position(int axis, int32_t out, int32_t tap, const A* displacement) const {
    const int64_t grid =
        int64_t{out} * strides[axis] - padding[axis] + int64_t{tap} * dilation[axis];
    return static_cast<A>(grid) + displacement[axis];
  }
};

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_DEFORM_CONV2D_SIZES_H_
