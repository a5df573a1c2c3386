// SPDX-License-Identifier: MIT
// The problem that the kernels of deformable convolution solve, for every backend.
#ifndef JAX_DCN_COMMON_DEFORM_CONV2D_PROBLEM_H_
#define JAX_DCN_COMMON_DEFORM_CONV2D_PROBLEM_H_

#include <cstdint>

#include "common/sampling/bilinear.h"
#include "common/sampling/half.h"

namespace jax_dcn {

// Axes are (height, width). The twin of ConvGeometry in jax_dcn/_src/deform_conv2d/geometry.py.
struct ConvGeometry {
  int64_t strides[2];
  int64_t padding[2][2];  // ((top, bottom), (left, right))
  int64_t kernel_dilation[2];
  int64_t feature_groups;
  bool legacy_boundary;

  JAX_DCN_INLINE int64_t OutputSize(int axis, int64_t image_size, int64_t kernel_size) const {
    const int64_t reach = kernel_dilation[axis] * (kernel_size - 1) + 1;
    const int64_t steps = image_size + padding[axis][0] + padding[axis][1] - reach;
    return steps < 0 ? 0 : steps / strides[axis] + 1;
  }
};

// Sizes of the arrays:
//   x [N, H, W, C]   kernel [K_h, K_w, C / groups, O]   offset [N, H_out, W_out, G, K, 2] (dy, dx)
//   mask [N, H_out, W_out, G, K] if modulated           y [N, H_out, W_out, O]
struct DeformConv2dProblem {
  int64_t batch, height, width, channels;
  int64_t out_height, out_width, features;
  int64_t kernel_height, kernel_width;
  int64_t offset_groups;
  bool modulated;
  bool float32_columns = false;  // sampled columns of bfloat16 images keep float32, not bfloat16
  ConvGeometry geometry;

  JAX_DCN_INLINE int64_t taps() const { return kernel_height * kernel_width; }
  JAX_DCN_INLINE SampledMap<2> map() const { return {{height, width}, geometry.legacy_boundary}; }
  JAX_DCN_INLINE int64_t image_pixels() const { return height * width; }
  JAX_DCN_INLINE int64_t pixels() const { return batch * out_height * out_width; }
  JAX_DCN_INLINE int64_t group_channels() const { return channels / geometry.feature_groups; }
  JAX_DCN_INLINE int64_t group_features() const { return features / geometry.feature_groups; }
  JAX_DCN_INLINE int64_t offset_group_channels() const { return channels / offset_groups; }
  // Index of a sample in `mask`. In `offset`, the sample begins at twice this index.
  JAX_DCN_INLINE int64_t SampleIndex(int64_t pixel, int64_t group, int64_t tap) const {
    return (pixel * offset_groups + group) * taps() + tap;
  }
};

// Operands of the forward pass, at which derivatives are taken.
template <typename T>
struct DeformConv2dPrimals {
  using A = typename Accumulator<T>::type;
  const T* x;
  const T* kernel;
  const A* offset;
  const A* mask;            // null: every sample counts fully
  const T* bias = nullptr;  // null: none, or not needed by a derivative
};

// Tangents. Null stands for zero.
template <typename T>
struct DeformConv2dTangents {
  using A = typename Accumulator<T>::type;
  const T* x;
  const T* kernel;
  const A* offset;
  const A* mask;
  const T* bias;
};

// Cotangents. Null stands for a cotangent that is not wanted.
template <typename T>
struct DeformConv2dCotangents {
  using A = typename Accumulator<T>::type;
  T* x;
  T* kernel;
  A* offset;
  A* mask;
  T* bias;
};

// The operator as a template argument: the types of its kernels' arguments.
struct DeformConv2d {
  using Problem = DeformConv2dProblem;
  template <typename T>
  using Primals = DeformConv2dPrimals<T>;
  template <typename T>
  using Tangents = DeformConv2dTangents<T>;
  template <typename T>
  using Cotangents = DeformConv2dCotangents<T>;
};

// Where the first tap of an output position starts, in pixels of x.
struct OutputPixel {
  int64_t h, w;
};

JAX_DCN_INLINE OutputPixel OutputPixelAt(const DeformConv2dProblem& problem, int64_t pixel) {
  const ConvGeometry& geometry = problem.geometry;
  const int64_t row = pixel / problem.out_width, out_x = pixel - row * problem.out_width;
  const int64_t out_y = row % problem.out_height;
  return {out_y * geometry.strides[0] - geometry.padding[0][0],
          out_x * geometry.strides[1] - geometry.padding[1][0]};
}

}  // namespace jax_dcn

#endif  // JAX_DCN_COMMON_DEFORM_CONV2D_PROBLEM_H_
