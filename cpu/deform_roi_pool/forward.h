// SPDX-License-Identifier: MIT
// Forward and tangent of deformable RoI pooling: every bin is a weighted sum of pixels. Rows of
// bins run in parallel.
#ifndef JAX_DCN_CPU_DEFORM_ROI_POOL_FORWARD_H_
#define JAX_DCN_CPU_DEFORM_ROI_POOL_FORWARD_H_

#include <cstdint>

#include "common/deform_roi_pool/problem.h"
#include "cpu/deform_roi_pool/bins.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/simd.h"

namespace jax_dcn::JAX_DCN_ISA {

// An image, at the first feature of a class, and the weights of a bin's pixels in it.
template <typename T, typename A>
struct WeightedImage {
  const T* image;
  const A* weights;
};

// result[c] = start + Σ_images Σ_pixels weight image[pixel, c]
template <typename T, typename A>
struct WeightedSum {
  Bin<A> bin;
  int64_t channels;  // the distance of pixels in the image, in elements
  int image_count;
  WeightedImage<T, A> images[2];
  A start;

  void Into(T* result, int64_t size) const {
    constexpr int kVectors = 4;  // this many sums hide the latency of an addition
    int64_t c = 0;
    for (; c + kVectors * kLanes<A> <= size; c += kVectors * kLanes<A>) Sum<kVectors>(result, c);
    for (; c + kLanes<A> <= size; c += kLanes<A>) Sum<1>(result, c);
    for (; c < size; ++c) result[c] = FromFloat<T>::Round(SumOf(c));
  }

 private:
  template <int kVectors>
  JAX_DCN_INLINE void Sum(T* result, int64_t c) const {
    Vector<A> sums[kVectors];
    for (int v = 0; v < kVectors; ++v) sums[v] = Vector<A>{} + start;
    for (int i = 0; i < image_count; ++i) {
      for (int64_t k = 0; k < bin.count; ++k) {
        const T* row = images[i].image + bin.pixels[k].pixel * channels + c;
        for (int v = 0; v < kVectors; ++v) {
          sums[v] += images[i].weights[k] * LoadSums(row + v * kLanes<A>);
        }
      }
    }
    for (int v = 0; v < kVectors; ++v) StoreRounded(result + c + v * kLanes<A>, sums[v]);
  }

  A SumOf(int64_t c) const {
    A sum = start;
    for (int i = 0; i < image_count; ++i) {
      for (int64_t k = 0; k < bin.count; ++k) {
        sum += images[i].weights[k] * ToFloat(images[i].image[bin.pixels[k].pixel * channels + c]);
      }
    }
    return sum;
  }
};

// Computes y, or the tangent of y where there are tangents.
template <typename T>
class BinMeans {
 public:
  using A = typename Accumulator<T>::type;

  BinMeans(const DeformRoIPoolProblem& problem, const DeformRoIPoolPrimals<T>& primals,
           const DeformRoIPoolTangents<T>* tangents, T* y)
      : problem_(problem),
        primals_(primals),
        tangents_(tangents),
        y_(y),
        largest_(LargestBin(problem, primals.rois)) {}

  void Run(Executor& executor) const {
    const int64_t rows = problem_.geometry.pooled_size[0];
    ParallelForWith(
        executor, problem_.regions * rows, [&](Arena& arena) { return Scratch(*this, arena); },
        [&](int64_t item, const Scratch& scratch) { Row(item / rows, item % rows, scratch); });
  }

 private:
  struct Scratch {
    Scratch(const BinMeans& means, Arena& arena)
        : locate(means.problem_, means.primals_, means.largest_, arena),
          weights{arena.Take<A>(means.largest_.pixels()), arena.Take<A>(means.largest_.pixels())} {}
    BinLocator<T> locate;
    A* weights[2];
  };

  void Row(int64_t region, int64_t row, const Scratch& scratch) const {
    const int64_t image = ImageOfRegion(problem_, primals_.rois + 5 * region);
    const int64_t columns = problem_.geometry.pooled_size[1], features = problem_.features();
    T* y = y_ + (region * problem_.bins() + row * columns) * features;
    if (image < 0) {
      __builtin_memset(y, 0, columns * features * sizeof(T));
      return;
    }
    for (int64_t bin = row * columns; bin < (row + 1) * columns; ++bin) {
      for (int64_t group = 0; group < problem_.classes; ++group) {
        Mean(region, image, bin, group, scratch, y);
        y += problem_.class_features();
      }
    }
  }

  // How the weights of a bin's pixels follow from the bin: their factors.
  struct Factors {
    A mean, dy, dx;
  };

  void Mean(int64_t region, int64_t image, int64_t bin, int64_t group, const Scratch& scratch,
            T* y) const {
    const int64_t first = image * problem_.image_pixels() * problem_.channels +
                          problem_.CellOf(bin) * problem_.features() +
                          group * problem_.class_features();
    const A mask = MaskOf(problem_, primals_.mask, region, bin);
    WeightedSum<T, A> sum = {scratch.locate(region, bin, group), problem_.channels, 0, {}, A(0)};
    const auto add = [&](const T* x, const Factors& factors) {
      if (x == nullptr) return;
      A* weights = scratch.weights[sum.image_count];
      SetWeights(sum.bin, factors, weights);
      sum.images[sum.image_count++] = {x + first, weights};
      sum.start += mask * sum.bin.undefined;
    };
    if (tangents_ == nullptr) {
      add(primals_.x, {mask, 0, 0});
    } else {
      add(tangents_->x, {mask, 0, 0});
      if (MovesBins()) add(primals_.x, TangentFactors(region, bin, group, mask));
    }
    sum.Into(y, problem_.class_features());
  }

  static void SetWeights(const Bin<A>& bin, const Factors& factors, A* weights) {
    for (int64_t k = 0; k < bin.count; ++k) {
      const BinPixel<A>& pixel = bin.pixels[k];
      weights[k] = factors.mean * pixel.mean + factors.dy * pixel.dy + factors.dx * pixel.dx;
    }
  }

  bool MovesBins() const { return tangents_->mask != nullptr || tangents_->offset != nullptr; }

  Factors TangentFactors(int64_t region, int64_t bin, int64_t group, A mask) const {
    Factors factors = {};
    if (tangents_->mask != nullptr) factors.mean = MaskOf(problem_, tangents_->mask, region, bin);
    if (tangents_->offset != nullptr) {
      const A* offset = tangents_->offset + 2 * problem_.OffsetIndex(region, bin, group);
      factors.dy = mask * offset[0], factors.dx = mask * offset[1];
    }
    return factors;
  }

  const DeformRoIPoolProblem& problem_;
  const DeformRoIPoolPrimals<T>& primals_;
  const DeformRoIPoolTangents<T>* tangents_;
  T* const y_;
  const BinExtent largest_;
};

template <typename T>
void DeformRoIPoolForward(Executor& executor, const DeformRoIPoolProblem& problem,
                          const DeformRoIPoolPrimals<T>& primals, T* y) {
  BinMeans<T>(problem, primals, nullptr, y).Run(executor);
}

template <typename T>
void DeformRoIPoolJvp(Executor& executor, const DeformRoIPoolProblem& problem,
                      const DeformRoIPoolPrimals<T>& primals,
                      const DeformRoIPoolTangents<T>& tangents, T* y_dot) {
  BinMeans<T>(problem, primals, &tangents, y_dot).Run(executor);
}

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_DEFORM_ROI_POOL_FORWARD_H_
