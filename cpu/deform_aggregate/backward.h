// SPDX-License-Identifier: MIT
// Cotangents of deformable aggregation, by two loops.
//
//   positions, weights   queries in parallel; four dot products of grad_y with a sample's corners
//   x                    groups, blocks of their channels and parts of the queries in parallel; a
//                        part adds its queries in their order, and then the parts are added
#ifndef JAX_DCN_CPU_DEFORM_AGGREGATE_BACKWARD_H_
#define JAX_DCN_CPU_DEFORM_AGGREGATE_BACKWARD_H_

#include <cstdint>
#include <type_traits>

#include "common/deform_aggregate/problem.h"
#include "cpu/deform_aggregate/query_samples.h"
#include "cpu/runtime/arrays.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/simd.h"
#include "cpu/runtime/vector_blocks.h"

namespace jax_dcn::JAX_DCN_ISA {

// Adds to `dots` the dot products of grad_y with the four pixels of each sample of a query's group.
template <bool kAhead, typename T, typename A>
struct CornerDots {
  const T* x;  // the first channel of the group
  int64_t step;
  const IndexOf<A>* const* pixels;
  const T* zeros;  // read outside the maps
  const T* grad_y;
  int64_t begin, end;  // the samples
  CornersAhead<kAhead, T, IndexOf<A>> ahead;
  A* dots;  // [samples, corners]

  template <typename V, int kCount>
  JAX_DCN_INLINE void At(int64_t c) const {
    V g[kCount];
    LoadBlock(grad_y + c, g);
    for (int64_t i = begin; i < end; ++i) {
      ahead.template Fetch<kCount * sizeof(V) / sizeof(A) * sizeof(T)>(i, c);
      V products[kCorners] = {};
#pragma GCC unroll 4
      for (int corner = 0; corner < kCorners; ++corner) {
        const int64_t pixel = pixels[corner][i];
        V value[kCount];
        LoadBlock((pixel < 0 ? zeros : x + pixel * step) + c, value);
#pragma GCC unroll 4
        for (int v = 0; v < kCount; ++v) products[corner] += value[v] * g[v];
      }
      AddSums(products, dots + kCorners * i);
    }
  }
};

// The cotangents of positions and weights.
template <typename T>
class SampleCotangents {
 public:
  using A = typename Accumulator<T>::type;

  SampleCotangents(const DeformAggregateProblem& problem, const DeformAggregatePrimals<T>& primals,
                   const T* grad_y, const DeformAggregateCotangents<T>& grads)
      : problem_(problem),
        primals_(primals),
        grad_y_(grad_y),
        grads_(grads),
        queries_(QueriesAtOnce(problem, problem.groups)) {}

  void Run(Executor& executor) const {
    constexpr int64_t kSteps = 8;  // of one work item
    const SharedSampleMaps<A> maps(problem_, queries_ * problem_.groups);
    const int64_t strip = queries_ * kSteps, strips = CeilDiv(problem_.queries, strip);
    const auto make = [&](Arena& arena) { return Scratch(problem_, maps.maps, arena); };
    ParallelForWith(executor, problem_.batch * strips, make, [&](int64_t item, Scratch& scratch) {
      __builtin_memset(scratch.zeros, 0, problem_.group_channels() * sizeof(T));
      const int64_t first = item % strips * strip, end = Min(first + strip, problem_.queries);
      for (int64_t begin = first; begin < end; begin += queries_) {
        Differentiate(item / strips, {begin, Min(begin + queries_, end)}, scratch);
      }
    });
  }

 private:
  struct Scratch {
    Scratch(const DeformAggregateProblem& problem, const SampleMaps<A>& maps, Arena& arena)
        : samples(problem, maps, arena),
          zeros(arena.Take<T>(problem.group_channels())),
          dots(arena.Take<A>(kCorners * maps.size)),
          weights(arena.Take<A>(maps.size)),
          positions(arena.Take<A>(2 * maps.size)) {}
    QuerySamples<A> samples;
    T* zeros;                // [C / G]
    A* dots;                 // [samples, corners]
    A *weights, *positions;  // cotangents of the samples
  };

  void Differentiate(int64_t image, Range queries, Scratch& scratch) const {
    const QuerySamples<A>& samples = scratch.samples;
    const int64_t channels = problem_.group_channels(), step = problem_.channels;
    const int64_t index = problem_.SampleIndex(image, queries.begin, 0);
    const T* grad_y = grad_y_ + (image * problem_.queries + queries.begin) * step;
    scratch.samples.Locate(primals_, {image, queries, {0, problem_.groups}});
    __builtin_memset(scratch.dots, 0, kCorners * RoundUp(samples.count(), kLanes<A>) * sizeof(A));
    const int64_t rows = queries.size() * problem_.groups;
    const auto x_of = [&](int64_t row) {
      return primals_.x + image * problem_.image_size() + row % problem_.groups * channels;
    };
    const bool fetch = AreWorthFetching(problem_.image_size() * sizeof(T));
    for (int64_t row = 0; row < rows; ++row, grad_y += channels) {
      const int64_t begin = row * problem_.samples, end = begin + problem_.samples;
      WithFlag(fetch && row + 1 < rows, [&](auto ahead) {
        const CornersAhead<ahead.value, T, IndexOf<A>> next = {x_of(row + 1), step, samples.pixel,
                                                               problem_.samples};
        CornerDots<ahead.value, T, A> f = {x_of(row), step, samples.pixel, scratch.zeros, grad_y,
                                           begin,     end,  next,          scratch.dots};
        InBlocks<A>(channels, f);
      });
    }
    for (int64_t i = 0; i < samples.count(); i += kLanes<A>) Combine(i, scratch);
    Copy(scratch.weights, samples.count(), index, grads_.weights);
    Copy(scratch.positions, 2 * samples.count(), 2 * index, grads_.positions);
  }

  static void Copy(const A* from, int64_t count, int64_t to, A* grads) {
    if (grads != nullptr) __builtin_memcpy(grads + to, from, count * sizeof(A));
  }

  // Makes a vector of cotangents of the dot products.
  JAX_DCN_INLINE void Combine(int64_t i, const Scratch& scratch) const {
    using V = Vector<A>;
    const QuerySamples<A>& samples = scratch.samples;
    const A* by_sample = scratch.dots + kCorners * i;
    const V loaded[] = {Load(by_sample), Load(by_sample + kLanes<A>),
                        Load(by_sample + 2 * kLanes<A>), Load(by_sample + 3 * kLanes<A>)};
    const V left[] = {Evens<A>(loaded[0], loaded[1]), Evens<A>(loaded[2], loaded[3])};
    const V right[] = {Odds<A>(loaded[0], loaded[1]), Odds<A>(loaded[2], loaded[3])};
    const V dots[] = {Evens<A>(left[0], left[1]), Evens<A>(right[0], right[1]),
                      Odds<A>(left[0], left[1]), Odds<A>(right[0], right[1])};
    const BilinearSample<V> sample = samples.template At<V>(i);
    const V weight = Load(samples.weight + i), one = V{} + 1, zero = {};
    Store<A>(scratch.weights + i, jax_dcn::Combine(ValueWeights(sample, one), dots));
    const V dy = weight * samples.template RowsPerUnit<V>(i),
            dx = weight * samples.template ColumnsPerUnit<V>(i);
    const V y = jax_dcn::Combine(DerivativeWeights(sample, dy, zero), dots);
    const V x = jax_dcn::Combine(DerivativeWeights(sample, zero, dx), dots);
    const bool swapped = problem_.unit_square;
    StoreInterleaved(scratch.positions + 2 * i, swapped ? x : y, swapped ? y : x);
  }

  static JAX_DCN_INLINE void StoreInterleaved(A* to, Vector<A> first, Vector<A> second) {
    for (int64_t lane = 0; lane < kLanes<A>; ++lane) {
      to[2 * lane] = first[lane], to[2 * lane + 1] = second[lane];
    }
  }

  const DeformAggregateProblem& problem_;
  const DeformAggregatePrimals<T>& primals_;
  const T* const grad_y_;
  const DeformAggregateCotangents<T>& grads_;
  const int64_t queries_;
};

// sums += weight grad_y, for the four pixels of each sample of a query's group.
template <bool kAhead, typename T, typename A>
struct Scatter {
  A* sums;  // the first channel of the block
  int64_t step;
  const IndexOf<A>* const* pixels;
  A* const* weights;
  const T* grad_y;
  int64_t begin, end;  // the samples
  CornersAhead<kAhead, A, IndexOf<A>> ahead;

  template <typename V, int kCount>
  JAX_DCN_INLINE void At(int64_t c) const {
    V g[kCount];
    LoadBlock(grad_y + c, g);
    for (int64_t i = begin; i < end; ++i) {
      ahead.template Fetch<kCount * sizeof(V)>(i, c);
      // One after the other: by the legacy rule two corners may be the same pixel.
      for (int corner = 0; corner < kCorners; ++corner) {
        const int64_t pixel = pixels[corner][i];
        // A branch: sums of what falls outside would wait for each other.
        if (pixel < 0) continue;
        A* row = sums + pixel * step + c;
        const A weight = weights[corner][i];
#pragma GCC unroll 4
        for (int v = 0; v < kCount; ++v) {
          constexpr int64_t kWidth = sizeof(V) / sizeof(A);
          Write(row + v * kWidth, Read<V>(row + v * kWidth) + weight * g[v]);
        }
      }
    }
  }
};

// result = Σ_parts sums, rounded.
template <typename T, typename A>
struct SumOfParts {
  const A* sums;
  int64_t parts, distance;  // of the parts of `sums`
  T* result;

  template <typename V, int kCount>
  JAX_DCN_INLINE void At(int64_t c) const {
    constexpr int64_t kWidth = sizeof(V) / sizeof(A);
    V total[kCount] = {};
    for (int64_t part = 0; part < parts; ++part) {
      for (int v = 0; v < kCount; ++v) total[v] += Read<V>(sums + part * distance + c + v * kWidth);
    }
    StoreBlock(result + c, total);
  }
};

// The cotangent of x. The sums of a block lie together, whatever their distance in x. Few samples
// are added where the cotangent lies instead: passes over sums would take longer than the samples.
template <typename T>
class ImageCotangent {
 public:
  using A = typename Accumulator<T>::type;

  ImageCotangent(const DeformAggregateProblem& problem, const DeformAggregatePrimals<T>& primals,
                 const T* grad_y, T* grad_x)
      : problem_(problem),
        primals_(primals),
        grad_y_(grad_y),
        grad_x_(grad_x),
        blocks_(CeilDiv(problem.group_channels(), kChannels)),
        most_channels_(CeilDiv(problem.group_channels(), blocks_)),
        block_size_(problem.pixels * most_channels_),
        parts_(Parts(problem, problem.batch * problem.groups * blocks_)),
        queries_(QueriesAtOnce(problem, 1)) {}

  void Run(Executor& executor) const {
    const SharedSampleMaps<A> maps(problem_, queries_);
    if constexpr (std::is_same_v<T, A>) {
      const bool few = problem_.queries * problem_.samples <= problem_.pixels;
      if (few) return AddInPlace(executor, maps.maps);
    }
    const int64_t items = problem_.batch * problem_.groups * blocks_ * parts_;
    const int64_t own_sums = parts_ > 1 ? 0 : block_size_;
    Shared shared(parts_ > 1 ? items * block_size_ * sizeof(A) : 0);
    A* const shared_sums = shared.arena().template Take<A>(0);
    const auto make = [&](Arena& arena) { return Scratch(problem_, maps.maps, own_sums, arena); };
    ParallelForWith(executor, items, make, [&](int64_t item, Scratch& scratch) {
      const Block block = BlockOf(item / parts_);
      A* sums = parts_ > 1 ? shared_sums + item * block_size_ : scratch.sums;
      __builtin_memset(sums, 0, problem_.pixels * block.channels * sizeof(A));
      SumQueries(block, QueriesOf(item % parts_), {sums, block.channels}, scratch);
      if (parts_ == 1) Round(block, {0, problem_.pixels}, sums);
    });
    if (parts_ == 1) return;
    constexpr int64_t kStrip = 256;  // pixels of one work item
    const int64_t strips = CeilDiv(problem_.pixels, kStrip);
    ParallelFor(executor, items / parts_ * strips, 0, [&](int64_t item, char*) {
      const int64_t block = item / strips, first = item % strips * kStrip;
      Round(BlockOf(block), {first, Min(first + kStrip, problem_.pixels)},
            shared_sums + block * parts_ * block_size_);
    });
  }

 private:
  static constexpr int64_t kChannels = 32;  // two lines of cache in each pixel

  // Some channels of one group of an image.
  struct Block {
    int64_t image, group, channel, channels;
  };

  // Sums for the pixels of a block, `step` apart.
  struct Sums {
    A* first;
    int64_t step;
  };

  struct Scratch {
    Scratch(const DeformAggregateProblem& problem, const SampleMaps<A>& maps, int64_t sums_size,
            Arena& arena)
        : samples(problem, maps, arena), sums(arena.Take<A>(sums_size)) {
      for (A*& w : weights) w = arena.Take<A>(maps.size);
    }
    QuerySamples<A> samples;
    A* weights[kCorners];
    A* sums;  // [S, channels], or none
  };

  // Parts of the queries, so that several threads find work. The division does not depend on the
  // number of threads, nor do the sums. A part costs a pass over all pixels, and must be worth it.
  static int64_t Parts(const DeformAggregateProblem& problem, int64_t blocks) {
    constexpr int64_t kItems = 8;
    const int64_t worth = problem.queries * problem.samples / Max(1, problem.pixels);
    return Max(1, Min(worth, kItems / Max(1, blocks)));
  }

  Block BlockOf(int64_t index) const {
    const int64_t image_group = index / blocks_, group = image_group % problem_.groups;
    const int64_t begin = index % blocks_ * most_channels_;
    return {image_group / problem_.groups, group, group * problem_.group_channels() + begin,
            Min(most_channels_, problem_.group_channels() - begin)};
  }

  Range QueriesOf(int64_t part) const {
    const int64_t size = CeilDiv(problem_.queries, parts_);
    return {Min(part * size, problem_.queries), Min((part + 1) * size, problem_.queries)};
  }

  // Adds the samples of all queries to the cotangent itself.
  void AddInPlace(Executor& executor, const SampleMaps<A>& maps) const {
    ParallelForAll(executor, 0, Cleared(grad_x_, problem_.batch * problem_.image_size()));
    const int64_t items = problem_.batch * problem_.groups * blocks_;
    const auto make = [&](Arena& arena) { return Scratch(problem_, maps, 0, arena); };
    ParallelForWith(executor, items, make, [&](int64_t item, Scratch& scratch) {
      const Block block = BlockOf(item);
      T* first = grad_x_ + block.image * problem_.image_size() + block.channel;
      SumQueries(block, {0, problem_.queries}, {first, problem_.channels}, scratch);
    });
  }

  void SumQueries(const Block& block, Range queries, Sums sums, Scratch& scratch) const {
    for (int64_t begin = queries.begin; begin < queries.end; begin += queries_) {
      const Range some = {begin, Min(begin + queries_, queries.end)};
      scratch.samples.Locate(primals_, {block.image, some, {block.group, block.group + 1}});
      scratch.samples.Weigh(scratch.weights);
      Add(block, some, sums, scratch);
    }
  }

  void Add(const Block& block, Range queries, Sums sums, const Scratch& scratch) const {
    const T* grad_y = grad_y_ + block.image * problem_.queries * problem_.channels + block.channel;
    const bool fetch = AreWorthFetching(problem_.pixels * sums.step * sizeof(A));
    for (int64_t query = queries.begin; query < queries.end; ++query) {
      const int64_t begin = (query - queries.begin) * problem_.samples;
      WithFlag(fetch && query + 1 < queries.end, [&](auto ahead) {
        const QuerySamples<A>& samples = scratch.samples;
        const CornersAhead<ahead.value, A, IndexOf<A>> next = {sums.first, sums.step, samples.pixel,
                                                               problem_.samples};
        const Scatter<ahead.value, T, A> f = {sums.first,
                                              sums.step,
                                              samples.pixel,
                                              scratch.weights,
                                              grad_y + query * problem_.channels,
                                              begin,
                                              begin + problem_.samples,
                                              next};
        InBlocks<A>(block.channels, f);
      });
    }
  }

  void Round(const Block& block, Range pixels, const A* sums) const {
    T* result = grad_x_ + block.image * problem_.image_size() + block.channel;
    for (int64_t pixel = pixels.begin; pixel < pixels.end; ++pixel) {
      const SumOfParts<T, A> f = {sums + pixel * block.channels, parts_, block_size_,
                                  result + pixel * problem_.channels};
      InBlocks<A>(block.channels, f);
    }
  }

  const DeformAggregateProblem& problem_;
  const DeformAggregatePrimals<T>& primals_;
  const T* const grad_y_;
  T* const grad_x_;
  const int64_t blocks_, most_channels_, block_size_, parts_, queries_;
};

template <typename T>
void DeformAggregateBackward(Executor& executor, const DeformAggregateProblem& problem,
                             const DeformAggregatePrimals<T>& primals, const T* grad_y,
                             const DeformAggregateCotangents<T>& grads) {
  if (grads.positions != nullptr || grads.weights != nullptr) {
    SampleCotangents<T>(problem, primals, grad_y, grads).Run(executor);
  }
  if (grads.x != nullptr) ImageCotangent<T>(problem, primals, grad_y, grads.x).Run(executor);
}

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_DEFORM_AGGREGATE_BACKWARD_H_
