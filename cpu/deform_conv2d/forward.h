// SPDX-License-Identifier: MIT
// Forward and tangent of deformable convolution.
//
// Tiles of output pixels run in parallel. The tangent is the same loop over two products.
#ifndef JAX_DCN_CPU_DEFORM_CONV2D_FORWARD_H_
#define JAX_DCN_CPU_DEFORM_CONV2D_FORWARD_H_

#include <cstdint>
#include <type_traits>

#include "common/deform_conv2d/problem.h"
#include "cpu/deform_conv2d/forward_pass.h"
#include "cpu/deform_conv2d/forward_tile.h"
#include "cpu/deform_conv2d/strips.h"
#include "cpu/runtime/arrays.h"
#include "cpu/runtime/parallel.h"

namespace jax_dcn::JAX_DCN_ISA {

// The most pixels of a tile. The columns of a tile then take about half of a second-level cache
// (Zen 1).
constexpr int64_t kTilePixels = 128;
// The work of a tile besides its products: reading the kernel takes as long as multiplying this
// many rows, and sampling a row as long as multiplying it for this many features (Zen 3 and 5).
constexpr int64_t kKernelRows = 1, kSampledFeatures = 16;

template <typename T, typename E>
class Forward {
 public:
  using A = typename Accumulator<T>::type;

  explicit Forward(const ForwardPass<T, E>& pass) : pass_(pass) {}

  void Run(Executor& executor) {
    const int64_t batch = pass_.problem.batch;
    Shared panels(pass_.PackAhead(executor, Arena()));
    pass_.PackAhead(executor, panels.arena());
    const int64_t bytes = SourceCount() * pass_.ImageSize() * static_cast<int64_t>(sizeof(E));
    const int64_t most = kReadInPlace ? batch : Max(1, kWideImageBytes / Max(1, bytes));
    Shared memory(kReadInPlace ? 0 : Min(most, batch) * (bytes + 64 * SourceCount()));
    for (Range images = {0, 0}; images.end < batch;) {
      images = {images.end, Min(images.end + most, batch)};
      ForEachSource([&, arena = memory.arena()](ColumnSource<T, E>& source) mutable {
        source.read = Read(executor, source.images, images, arena);
      });
      Visit(executor, images);
    }
  }

 private:
  static constexpr bool kReadInPlace = std::is_same<T, E>::value;

  template <typename F>
  void ForEachSource(F f) {
    for (int p = 0; p < pass_.product_count; ++p) {
      for (int i = 0; i < pass_.products[p].source_count; ++i) f(pass_.products[p].sources[i]);
    }
  }

  int64_t SourceCount() {
    int64_t count = 0;
    ForEachSource([&](const ColumnSource<T, E>&) { ++count; });
    return count;
  }

  const E* Read(Executor& executor, const T* source, Range images, Arena& arena) const {
    const T* first = source + images.begin * pass_.ImageSize();
    if constexpr (kReadInPlace) {
      return first;
    } else {
      E* wide = arena.Take<E>(images.size() * pass_.ImageSize());
      ParallelForAll(executor, 0, Widened(wide, first, images.size() * pass_.ImageSize()));
      return wide;
    }
  }

  void Visit(Executor& executor, Range images) {
    const DeformConv2dProblem& problem = pass_.problem;
    const int64_t image_pixels = problem.out_height * problem.out_width;
    const Range pixels = {images.begin * image_pixels, images.end * image_pixels};
    const int64_t rows = CeilDiv(pixels.size(), kTileRows);
    const int64_t parts = FeatureParts(rows, executor.workers());
    // A part of the features has as few tiles as fit in cache, the same number for each thread.
    // Tiles have about equal size, in whole tiles of the product.
    const int64_t workers = executor.workers() / parts;
    const int64_t most = workers * Min(kTilePixels, StripPixels(problem, 0));
    const int64_t tiles = Min(workers * CeilDiv(pixels.size(), most), rows);
    pass_.first_image = images.begin;
    pass_.tile_pixels = CeilDiv(rows, Max(1, tiles)) * kTileRows;
    const int64_t scratch_bytes = ForwardTile<T, E>::ScratchBytes(pass_);
    ParallelFor(executor, tiles * parts, scratch_bytes, [=](int64_t item, char* scratch) {
      const int64_t tile = item / parts, part = item % parts, panels = pass_.FeaturePanels();
      const int64_t begin = tile * rows / tiles * kTileRows;
      const int64_t end = Min((tile + 1) * rows / tiles * kTileRows, pixels.size());
      ForwardTile<T, E>(pass_, {pixels.begin + begin, pixels.begin + end},
                        {part * panels / parts, (part + 1) * panels / parts}, scratch)
          .Run();
    });
  }

  // The parts of the features that threads multiply by themselves. Each part samples the columns
  // again, so there is one unless there are many threads for few rows of pixels.
  int64_t FeatureParts(int64_t rows, int64_t workers) const {
    const int64_t panels = pass_.FeaturePanels();
    int64_t best = 0, least = INT64_MAX / 10;
    for (int64_t parts = 1; parts <= Min(panels, workers); ++parts) {
      const int64_t features = CeilDiv(panels, parts) * kPanel<A>;
      const int64_t tile_rows = CeilDiv(rows, workers / parts);
      const int64_t time = tile_rows * (features + kSampledFeatures) + kKernelRows * features;
      if (10 * time < 9 * least) best = parts, least = time;
    }
    return best;
  }

  ForwardPass<T, E> pass_;
};

template <typename T, typename E>
void ForwardOf(Executor& executor, const DeformConv2dProblem& problem,
               const DeformConv2dPrimals<T>& primals, T* y) {
  const DeformConv2dTangents<T> none = {};
  ForwardPass<T, E> pass(problem, primals, none, primals.bias, y);
  pass.Add({primals.kernel, 1, {{primals.x, false}}});
  Forward<T, E>(pass).Run(executor);
}

template <typename T>
void DeformConv2dForward(Executor& executor, const DeformConv2dProblem& problem,
                         const DeformConv2dPrimals<T>& primals, T* y) {
  using A = typename Accumulator<T>::type;
  if constexpr (kMayPair<T>) {
    if (MakesPairs(problem)) return ForwardOf<T, T>(executor, problem, primals, y);
  }
  ForwardOf<T, A>(executor, problem, primals, y);
}

template <typename T>
void DeformConv2dJvp(Executor& executor, const DeformConv2dProblem& problem,
                     const DeformConv2dPrimals<T>& primals, const DeformConv2dTangents<T>& tangents,
                     T* y_dot) {
  using A = typename Accumulator<T>::type;
  ForwardPass<T, A> pass(problem, primals, tangents, tangents.bias, y_dot);
  if (tangents.kernel != nullptr) pass.Add({tangents.kernel, 1, {{primals.x, false}}});
  ColumnProduct<T, A> moved = {primals.kernel, 0, {}};
  if (tangents.x != nullptr) moved.sources[moved.source_count++] = {tangents.x, false};
  if (tangents.offset != nullptr || tangents.mask != nullptr) {
    moved.sources[moved.source_count++] = {primals.x, true};
  }
  if (moved.source_count > 0) pass.Add(moved);
  Forward<T, A>(pass).Run(executor);
}

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_DEFORM_CONV2D_FORWARD_H_
