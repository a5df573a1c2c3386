// SPDX-License-Identifier: MIT
// The problem that the kernels of deformable RoI pooling solve, for every backend.
//
// A bin's samples form a grid, and interpolation, the rule of what is inside, and the count of
// samples are products over the two axes. So is therefore the bin's mean:
//   Σ_samples x(q) / n  =  Σ_row Σ_column  weight(row) weight(column) x[row, column] / n
// and a bin needs, of each axis, the pixels that its samples read, every one once.
#ifndef JAX_DCN_COMMON_DEFORM_ROI_POOL_PROBLEM_H_
#define JAX_DCN_COMMON_DEFORM_ROI_POOL_PROBLEM_H_

#include <cmath>
#include <cstdint>

#include "common/sampling/half.h"
#include "common/sampling/inline.h"

namespace jax_dcn {

// Axes are (height, width). The twin of RoIGeometry in jax_dcn/_src/deform_roi_pool/geometry.py.
struct RoIGeometry {
  double spatial_scale, offset_scale;
  int64_t pooled_size[2];
  int64_t samples;  // 0: as many as the bin has pixels
  int64_t group_size;
  bool aligned;

  // How far outside the image a sample still counts, in pixels.
  JAX_DCN_INLINE double Margin() const { return aligned ? 1.0 : 0.5; }
};

// Sizes of the arrays:
//   x [N, H, W, cells * D]   rois [R, 5] (image, x1, y1, x2, y2)   mask [R, P_h, P_w] if modulated
//   offset [R, parts_h, parts_w, classes, 2] (dy, dx) if displaced     y [R, P_h, P_w, D]
struct DeformRoIPoolProblem {
  int64_t batch, height, width, channels;
  int64_t regions, parts[2], classes;
  bool displaced, modulated;
  RoIGeometry geometry;

  JAX_DCN_INLINE int64_t image_pixels() const { return height * width; }
  JAX_DCN_INLINE int64_t size(int axis) const { return axis == 0 ? height : width; }
  JAX_DCN_INLINE int64_t cells() const { return geometry.group_size * geometry.group_size; }
  JAX_DCN_INLINE int64_t features() const { return channels / cells(); }
  JAX_DCN_INLINE int64_t class_features() const { return features() / classes; }
  JAX_DCN_INLINE int64_t bins() const { return geometry.pooled_size[0] * geometry.pooled_size[1]; }
  JAX_DCN_INLINE int64_t BinOf(int axis, int64_t bin) const {
    return axis == 0 ? bin / geometry.pooled_size[1] : bin % geometry.pooled_size[1];
  }
  JAX_DCN_INLINE int64_t CellOf(int64_t bin) const {
    const int64_t row = BinOf(0, bin) * geometry.group_size / geometry.pooled_size[0];
    return row * geometry.group_size +
           BinOf(1, bin) * geometry.group_size / geometry.pooled_size[1];
  }
  // Half the index of a bin's displacement in `offset`.
  JAX_DCN_INLINE int64_t OffsetIndex(int64_t region, int64_t bin, int64_t group) const {
    const int64_t row = BinOf(0, bin) * parts[0] / geometry.pooled_size[0];
    const int64_t column = BinOf(1, bin) * parts[1] / geometry.pooled_size[1];
    return ((region * parts[0] + row) * parts[1] + column) * classes + group;
  }
  // Pixels along an axis that a bin may read.
  JAX_DCN_INLINE int64_t MostPixels(int axis) const {
    return geometry.samples > 0 ? 2 * geometry.samples : size(axis);
  }
};

// Operands of the forward pass, at which derivatives are taken.
template <typename T, typename A = typename Accumulator<T>::type>
struct DeformRoIPoolPrimals {
  const T* x;
  const A* rois;
  const A* offset;  // null: bins are not displaced
  const A* mask;    // null: every bin counts fully
};

// Tangents. Null stands for zero.
template <typename T, typename A = typename Accumulator<T>::type>
struct DeformRoIPoolTangents {
  const T* x;
  const A* offset;
  const A* mask;
};

// Cotangents. Null stands for a cotangent that is not wanted.
template <typename T, typename A = typename Accumulator<T>::type>
struct DeformRoIPoolCotangents {
  T* x;
  A* offset;
  A* mask;
};

// The operator as a template argument: the types of its kernels' arguments.
struct DeformRoIPool {
  using Problem = DeformRoIPoolProblem;
  template <typename T>
  using Primals = DeformRoIPoolPrimals<T>;
  template <typename T>
  using Tangents = DeformRoIPoolTangents<T>;
  template <typename T>
  using Cotangents = DeformRoIPoolCotangents<T>;
};

// The image that a region lies in, or -1 where there is none of that index.
template <typename A>
JAX_DCN_INLINE int64_t ImageOfRegion(const DeformRoIPoolProblem& problem, const A* roi) {
  const bool exists = roi[0] >= 0 && roi[0] < static_cast<A>(problem.batch);
  return exists ? static_cast<int64_t>(roi[0]) : -1;
}

// A region along one axis, in pixels of x.
template <typename A>
struct RegionAxis {
  A start, size;
};

template <typename A>
JAX_DCN_INLINE RegionAxis<A> RegionAxisAt(const RoIGeometry& geometry, A low, A high) {
  const A scale = static_cast<A>(geometry.spatial_scale);
  if (geometry.aligned) {
    const A start = low * scale - A(0.5);
    return {start, high * scale - A(0.5) - start};
  }
  const A start = std::round(low) * scale - A(0.5);
  const A size = (std::round(high) + 1) * scale - A(0.5) - start;
  return {start, size < A(0.1) ? A(0.1) : size};
}

// Pixels by which an offset of one moves the bins of a region, along the region's axis.
template <typename A>
JAX_DCN_INLINE A ShiftUnit(const RoIGeometry& geometry, const RegionAxis<A>& region) {
  return static_cast<A>(geometry.offset_scale) * region.size;
}

// The samples of a bin along one axis: at first + (i + phase) step for i in [begin, end).
template <typename A>
struct BinAxis {
  A first, step, phase;
  A number;      // of samples, those outside included
  A shift_unit;  // pixels that an offset of one moves them by
  int64_t begin, end;
};

template <typename A>
JAX_DCN_INLINE BinAxis<A> BinAxisAt(const RoIGeometry& geometry, int axis, int64_t pixels,
                                    const RegionAxis<A>& region, int64_t bin, const A* offset) {
  const A bin_size = region.size / static_cast<A>(geometry.pooled_size[axis]);
  BinAxis<A> result;
  result.shift_unit = ShiftUnit(geometry, region);
  result.first = static_cast<A>(bin) * bin_size + region.start;
  if (offset != nullptr) {
    result.first += offset[axis] * static_cast<A>(geometry.offset_scale) * region.size;
  }
  result.phase = geometry.aligned ? A(0.5) : A(0);
  result.begin = 0;
  if (geometry.samples > 0) {
    result.number = static_cast<A>(geometry.samples);
    result.step = bin_size / result.number;
    result.end = geometry.samples;
    return result;
  }
  result.number = std::ceil(bin_size);
  result.step = bin_size / (result.number < 1 ? A(1) : result.number);
  // Samples are at most a pixel and at least half a pixel apart: no more than these are inside.
  const int64_t most = 2 * pixels + 8;
  constexpr double kFarthest = 1e15;
  const double begin = std::floor((-1.0 - result.first) / result.step) - 1;
  if (begin > 0) result.begin = static_cast<int64_t>(begin < kFarthest ? begin : kFarthest);
  const double left = static_cast<double>(result.number) - static_cast<double>(result.begin);
  result.end = result.begin + (left < most ? (left > 0 ? static_cast<int64_t>(left) : 0) : most);
  return result;
}

// What the samples of a bin make of one pixel along an axis.
template <typename A>
struct AxisPixel {
  int64_t index;
  A weight, slope;  // of their sum, and of its derivative as all of them move
};

// Adds to the last or the last but one of the pixels, or appends: samples come in order.
template <typename A>
JAX_DCN_INLINE int64_t AddToPixels(AxisPixel<A>* pixels, int64_t count, int64_t index, A weight,
                                   A slope) {
  for (int64_t i = count - 1; i >= 0 && i >= count - 2; --i) {
    if (pixels[i].index == index) {
      pixels[i].weight += weight;
      pixels[i].slope += slope;
      return count;
    }
  }
  pixels[count] = {index, weight, slope};
  return count + 1;
}

// A bin along one axis: its pixels, and what the mean divides by. A bin whose position is not a
// number has no pixels, and divides by NaN.
template <typename A>
struct AxisPixels {
  int64_t count;
  A divisor;
};

// `pixels` must have room for DeformRoIPoolProblem::MostPixels.
template <typename A>
JAX_DCN_INLINE AxisPixels<A> PixelsOf(const RoIGeometry& geometry, const BinAxis<A>& bin,
                                      int64_t size, AxisPixel<A>* pixels) {
  const A margin = static_cast<A>(geometry.Margin()), last = static_cast<A>(size - 1);
  int64_t count = 0, inside = 0;
  for (int64_t i = bin.begin; i < bin.end; ++i) {
    A position = bin.first + (static_cast<A>(i) + bin.phase) * bin.step;
    if (position != position) return {0, position};
    if (position < -margin || position > last + margin) continue;
    ++inside;
    const bool before = position < 0;
    position = before ? A(0) : (position > last ? last : position);
    const int64_t low = static_cast<int64_t>(position);
    const A fraction = position - static_cast<A>(low);
    // The derivative at a whole number is the right-hand one if aligned, and else zero.
    const bool between = low < size - 1 && (geometry.aligned ? !before : fraction > 0);
    count = AddToPixels(pixels, count, low, 1 - fraction, between ? A(-1) : A(0));
    if (between) count = AddToPixels(pixels, count, low + 1, fraction, A(1));
  }
  return {count, geometry.aligned ? bin.number : static_cast<A>(inside)};
}

// One over the number of samples, NaN where positions are not numbers.
template <typename A>
JAX_DCN_INLINE A MeanScale(const AxisPixels<A>& rows, const AxisPixels<A>& columns) {
  const A divisor = rows.divisor * columns.divisor;
  if (divisor != divisor) return divisor;
  return divisor > 0 ? 1 / divisor : A(0);
}

}  // namespace jax_dcn

#endif  // JAX_DCN_COMMON_DEFORM_ROI_POOL_PROBLEM_H_
