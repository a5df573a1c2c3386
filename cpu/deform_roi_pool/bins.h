// SPDX-License-Identifier: MIT
// Which pixels a bin of a region reads, and how they are weighted.
#ifndef JAX_DCN_CPU_DEFORM_ROI_POOL_BINS_H_
#define JAX_DCN_CPU_DEFORM_ROI_POOL_BINS_H_

#include <cmath>
#include <cstdint>

#include "common/deform_roi_pool/problem.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/simd.h"

namespace jax_dcn::JAX_DCN_ISA {

// A pixel that a bin reads: the pixel's weight in the bin's mean, and the pixel's weights in the
// derivatives of the mean by the two components of the bin's offset.
template <typename A>
struct BinPixel {
  int64_t pixel;
  A mean, dy, dx;
};

// A bin of a region, for one class of features.
template <typename A>
struct Bin {
  const BinPixel<A>* pixels;
  int64_t count;
  A undefined;  // NaN where the bin's position is not a number, and else zero
};

// Pixels that a bin may read along each axis.
struct BinExtent {
  int64_t rows, columns;
  int64_t pixels() const { return rows * columns; }
};

// The extent of the largest bin along one axis.
template <typename A>
int64_t LargestBinAlong(int axis, const DeformRoIPoolProblem& problem, const A* rois) {
  const RoIGeometry& geometry = problem.geometry;
  const int64_t most = problem.MostPixels(axis);
  if (geometry.samples > 0) return most;
  A largest = 0;
  for (int64_t region = 0; region < problem.regions; ++region) {
    const A* corner = rois + 5 * region + 2 - axis;
    const A size = RegionAxisAt(geometry, corner[0], corner[2]).size;
    if (size > largest) largest = size;
  }
  // Four more pixels: one before the first sample, one after the last, and two for rounding.
  const A pixels = std::ceil(largest / static_cast<A>(geometry.pooled_size[axis])) + 4;
  return pixels < static_cast<A>(most) ? static_cast<int64_t>(pixels) : most;
}

// The extent of the largest bin: where regions are small, memory of this size for each worker is
// far less than the image.
template <typename A>
BinExtent LargestBin(const DeformRoIPoolProblem& problem, const A* rois) {
  return {LargestBinAlong(0, problem, rois), LargestBinAlong(1, problem, rois)};
}

template <typename T>
class BinLocator {
 public:
  using A = typename Accumulator<T>::type;

  // An arena without memory counts the bytes that the locator needs.
  BinLocator(const DeformRoIPoolProblem& problem, const DeformRoIPoolPrimals<T>& primals,
             const BinExtent& largest, Arena& arena)
      : problem_(problem),
        primals_(primals),
        rows_(arena.Take<AxisPixel<A>>(largest.rows)),
        columns_(arena.Take<AxisPixel<A>>(largest.columns)),
        pixels_(arena.Take<BinPixel<A>>(largest.pixels())) {}

  Bin<A> operator()(int64_t region, int64_t bin, int64_t group) const {
    const A* roi = primals_.rois + 5 * region;
    const A* offset = primals_.offset == nullptr
                          ? nullptr
                          : primals_.offset + 2 * problem_.OffsetIndex(region, bin, group);
    const BinAxis<A> y = AxisAt(0, roi[2], roi[4], bin, offset);
    const BinAxis<A> x = AxisAt(1, roi[1], roi[3], bin, offset);
    const AxisPixels<A> rows = PixelsOf(problem_.geometry, y, problem_.height, rows_);
    const AxisPixels<A> columns = PixelsOf(problem_.geometry, x, problem_.width, columns_);
    const A scale = MeanScale(rows, columns);
    BinPixel<A>* pixel = pixels_;
    for (int64_t i = 0; i < rows.count; ++i) {
      const A weight = rows_[i].weight * scale, slope = rows_[i].slope * scale * y.shift_unit;
      for (int64_t j = 0; j < columns.count; ++j) {
        *pixel++ = {rows_[i].index * problem_.width + columns_[j].index,
                    weight * columns_[j].weight, slope * columns_[j].weight,
                    weight * columns_[j].slope * x.shift_unit};
      }
    }
    return {pixels_, pixel - pixels_, scale == scale ? A(0) : scale};
  }

 private:
  BinAxis<A> AxisAt(int axis, A low, A high, int64_t bin, const A* offset) const {
    return BinAxisAt(problem_.geometry, axis, problem_.size(axis),
                     RegionAxisAt(problem_.geometry, low, high), problem_.BinOf(axis, bin), offset);
  }

  const DeformRoIPoolProblem& problem_;
  const DeformRoIPoolPrimals<T>& primals_;
  AxisPixel<A>* const rows_;
  AxisPixel<A>* const columns_;
  BinPixel<A>* const pixels_;
};

// The modulation of a bin: 1 where the call has no mask.
template <typename A>
A MaskOf(const DeformRoIPoolProblem& problem, const A* mask, int64_t region, int64_t bin) {
  return mask == nullptr ? A(1) : mask[region * problem.bins() + bin];
}

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_DEFORM_ROI_POOL_BINS_H_
