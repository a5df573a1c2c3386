// SPDX-License-Identifier: MIT
// Gradients of deformable RoI pooling.
//
// The gradients of offset and mask belong to one region each, so regions run in parallel. Every
// region of an image adds to the gradient of x, so images and blocks of their channels run in
// parallel, and each item visits its regions in order. No two threads add to the same number, and
// sums do not depend on the number of threads.
#ifndef JAX_DCN_CPU_DEFORM_ROI_POOL_BACKWARD_H_
#define JAX_DCN_CPU_DEFORM_ROI_POOL_BACKWARD_H_

#include <cstdint>
#include <type_traits>

#include "common/deform_roi_pool/problem.h"
#include "cpu/deform_roi_pool/bins.h"
#include "cpu/runtime/arrays.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/simd.h"

namespace jax_dcn::JAX_DCN_ISA {

// Σ_c a[c] b[c]
template <typename T>
auto Dot(const T* a, const T* b, int64_t size) {
  using A = typename Accumulator<T>::type;
  constexpr int kVectors = 4;  // this many sums hide the latency of an addition
  Vector<A> sums[kVectors] = {};
  int64_t c = 0;
  for (; c + kVectors * kLanes<A> <= size; c += kVectors * kLanes<A>) {
    for (int v = 0; v < kVectors; ++v) {
      sums[v] += LoadSums(a + c + v * kLanes<A>) * LoadSums(b + c + v * kLanes<A>);
    }
  }
  for (; c + kLanes<A> <= size; c += kLanes<A>) sums[0] += LoadSums(a + c) * LoadSums(b + c);
  const Vector<A> total = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  A sum = Sum<A, kVectorBytes>(total);
  for (; c < size; ++c) sum += ToFloat(a[c]) * ToFloat(b[c]);
  return sum;
}

// sums += weight data
template <typename T, typename A>
struct AddWeighted {
  const T* data;
  const A weight;
  A* const sums;

  template <typename V>
  JAX_DCN_INLINE void At(int64_t c) {
    Write(sums + c, Read<V>(sums + c) + weight * Read<V>(data + c));
  }
};

template <typename T>
class RoIPoolBackward {
 public:
  using A = typename Accumulator<T>::type;

  RoIPoolBackward(const DeformRoIPoolProblem& problem, const DeformRoIPoolPrimals<T>& primals,
                  const T* grad_y, const DeformRoIPoolCotangents<T>& grads)
      : problem_(problem),
        primals_(primals),
        grad_y_(grad_y),
        grads_(grads),
        largest_(LargestBin(problem, primals.rois)) {}

  void Run(Executor& executor) const {
    if (grads_.offset != nullptr || grads_.mask != nullptr) {
      ParallelForWith(
          executor, problem_.regions,
          [&](Arena& arena) { return BinLocator<T>(problem_, primals_, largest_, arena); },
          [&](int64_t region, const BinLocator<T>& locate) { Region(region, locate); });
    }
    if (grads_.x != nullptr) RunImages(executor);
  }

 private:
  // The gradient of a bin of y, at the first feature of a class.
  const T* GradOf(int64_t region, int64_t bin, int64_t group) const {
    return grad_y_ + (region * problem_.bins() + bin) * problem_.features() +
           group * problem_.class_features();
  }

  void Region(int64_t region, const BinLocator<T>& locate) const {
    const int64_t bins = problem_.bins(), first = problem_.OffsetIndex(region, 0, 0);
    if (grads_.offset != nullptr) {
      const int64_t size = 2 * problem_.parts[0] * problem_.parts[1] * problem_.classes;
      __builtin_memset(grads_.offset + 2 * first, 0, size * sizeof(A));
    }
    if (grads_.mask != nullptr) {
      __builtin_memset(grads_.mask + region * bins, 0, bins * sizeof(A));
    }
    const int64_t image = ImageOfRegion(problem_, primals_.rois + 5 * region);
    if (image < 0) return;
    for (int64_t bin = 0; bin < bins; ++bin) {
      for (int64_t group = 0; group < problem_.classes; ++group) {
        AddOffsetAndMask(region, image, bin, group, locate(region, bin, group));
      }
    }
  }

  // The dot product of each pixel with the gradient of y serves the offset and the mask.
  void AddOffsetAndMask(int64_t region, int64_t image, int64_t bin, int64_t group,
                        const Bin<A>& located) const {
    const int64_t size = problem_.class_features();
    const T* x = primals_.x + image * problem_.image_pixels() * problem_.channels +
                 problem_.CellOf(bin) * problem_.features() + group * size;
    const T* grad = GradOf(region, bin, group);
    A mean = located.undefined, dy = mean, dx = mean;
    for (int64_t k = 0; k < located.count; ++k) {
      const BinPixel<A>& pixel = located.pixels[k];
      const A dot = Dot(x + pixel.pixel * problem_.channels, grad, size);
      mean += pixel.mean * dot;
      dy += pixel.dy * dot;
      dx += pixel.dx * dot;
    }
    if (grads_.mask != nullptr) grads_.mask[region * problem_.bins() + bin] += mean;
    if (grads_.offset != nullptr) {
      const A mask = MaskOf(problem_, primals_.mask, region, bin);
      A* offset = grads_.offset + 2 * problem_.OffsetIndex(region, bin, group);
      offset[0] += mask * dy;
      offset[1] += mask * dx;
    }
  }

  // Features of one cell that are summed at once.
  struct Block {
    int64_t image, cell, begin, end;
    int64_t size() const { return end - begin; }
  };

  // Sums for the pixels of a block, `step` apart.
  struct Sums {
    A* first;
    int64_t step;
  };

  struct Scratch {
    Scratch(const RoIPoolBackward& backward, int64_t features, Arena& arena)
        : locate(backward.problem_, backward.primals_, backward.largest_, arena),
          sums(arena.Take<A>(kInPlace ? 0 : backward.problem_.image_pixels() * features)) {}
    BinLocator<T> locate;
    A* sums;  // [H, W, features of the block], or none
  };

  // Whether the gradient of x holds the sums.
  static constexpr bool kInPlace = std::is_same_v<T, A>;

  void RunImages(Executor& executor) const {
    const int64_t cells = problem_.cells(), features = problem_.features();
    const int64_t block = BlockFeatures(executor.workers());
    const int64_t blocks = CeilDiv(features, block);
    if constexpr (kInPlace) {
      ParallelForAll(executor, 0, Cleared(grads_.x, problem_.batch * ImageSize()));
    }
    const auto make = [&](Arena& arena) { return Scratch(*this, block, arena); };
    const int64_t items = problem_.batch * cells * blocks;
    ParallelForWith(executor, items, make, [&](int64_t item, const Scratch& scratch) {
      const int64_t begin = item % blocks * block;
      Image({item / blocks / cells, item / blocks % cells, begin, Min(begin + block, features)},
            scratch);
    });
  }

  int64_t ImageSize() const { return problem_.image_pixels() * problem_.channels; }

  // The features of a block: few enough for two items a thread, and for sums aside that fit into a
  // cache. A block is whole lines of cache, so that threads rarely write to the same line. A block
  // is whole vectors, too, so that the block's end does not change how features are summed.
  int64_t BlockFeatures(int64_t workers) const {
    constexpr int64_t kSumsBytes = 1 << 20, kLine = 64 / sizeof(A);
    const int64_t items = Max(1, problem_.batch * problem_.cells());
    const int64_t wanted = CeilDiv(problem_.features(), CeilDiv(2 * workers, items));
    const int64_t fit = kSumsBytes / Max(1, problem_.image_pixels() * sizeof(A));
    return RoundUp(Max(1, kInPlace ? wanted : Min(wanted, fit)), kLine);
  }

  void Image(const Block& block, const Scratch& scratch) const {
    T* grad_x =
        grads_.x + block.image * ImageSize() + block.cell * problem_.features() + block.begin;
    if constexpr (kInPlace) {
      AddRegions(block, {grad_x, problem_.channels}, scratch.locate);
    } else {
      const int64_t pixels = problem_.image_pixels(), size = block.size();
      __builtin_memset(scratch.sums, 0, pixels * size * sizeof(A));
      AddRegions(block, {scratch.sums, size}, scratch.locate);
      for (int64_t pixel = 0; pixel < pixels; ++pixel) {
        RoundInto(grad_x + pixel * problem_.channels, scratch.sums + pixel * size, size);
      }
    }
  }

  void AddRegions(const Block& block, Sums sums, const BinLocator<T>& locate) const {
    for (int64_t region = 0; region < problem_.regions; ++region) {
      if (ImageOfRegion(problem_, primals_.rois + 5 * region) != block.image) continue;
      for (int64_t bin = 0; bin < problem_.bins(); ++bin) {
        if (problem_.CellOf(bin) == block.cell) AddBin(region, bin, block, sums, locate);
      }
    }
  }

  void AddBin(int64_t region, int64_t bin, const Block& block, Sums sums,
              const BinLocator<T>& locate) const {
    const int64_t size = problem_.class_features();
    const A mask = MaskOf(problem_, primals_.mask, region, bin);
    for (int64_t group = block.begin / size; group * size < block.end; ++group) {
      const int64_t begin = Max(block.begin, group * size);
      const int64_t end = Min(block.end, (group + 1) * size);
      const T* grad = GradOf(region, bin, group) + begin - group * size;
      const Bin<A> located = locate(region, bin, group);
      for (int64_t k = 0; k < located.count; ++k) {
        const BinPixel<A>& pixel = located.pixels[k];
        A* first = sums.first + pixel.pixel * sums.step + begin - block.begin;
        AddWeighted<T, A> add = {grad, mask * pixel.mean, first};
        Vectorised<A>(end - begin, add);
      }
    }
  }

  const DeformRoIPoolProblem& problem_;
  const DeformRoIPoolPrimals<T>& primals_;
  const T* const grad_y_;
  const DeformRoIPoolCotangents<T>& grads_;
  const BinExtent largest_;
};

template <typename T>
void DeformRoIPoolBackward(Executor& executor, const DeformRoIPoolProblem& problem,
                           const DeformRoIPoolPrimals<T>& primals, const T* grad_y,
                           const DeformRoIPoolCotangents<T>& grads) {
  RoIPoolBackward<T>(problem, primals, grad_y, grads).Run(executor);
}

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_DEFORM_ROI_POOL_BACKWARD_H_
