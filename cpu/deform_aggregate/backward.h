// SPDX-License-Identifier: MIT
// Cotangents of deformable aggregation, by two loops.
//
//   positions, weights   queries in parallel; four dot products of grad_y with a sample's corners
//   x                    blocks of channels in parallel; each block adds its queries in their order
#ifndef JAX_DCN_CPU_DEFORM_AGGREGATE_BACKWARD_H_
#define JAX_DCN_CPU_DEFORM_AGGREGATE_BACKWARD_H_

#include <cstdint>

#include "common/deform_aggregate/problem.h"
#include "cpu/deform_aggregate/query_samples.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/simd.h"
#include "cpu/sampling/samples.h"

namespace jax_dcn::JAX_DCN_ISA {

// Dot products of grad_y with the four pixels of a sample.
template <typename T>
struct CornerDots {
  using A = typename Accumulator<T>::type;
  const T* rows[kCorners];
  const A* grad_y;
  LaneSums<A> dots[kCorners];

  template <typename V>
  JAX_DCN_INLINE void At(int64_t c) {
    const V g = Read<V>(grad_y + c);
    for (int i = 0; i < kCorners; ++i) dots[i].template Of<V>() += Read<V>(rows[i] + c) * g;
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
    Arena needed;
    Scratch(problem_, maps.maps, needed);
    const int64_t strip = queries_ * kSteps, strips = CeilDiv(problem_.queries, strip);
    ParallelFor(executor, problem_.batch * strips, needed.bytes(), [&](int64_t item, char* data) {
      Arena arena(data);
      Scratch scratch(problem_, maps.maps, arena);
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
          grad_y(arena.Take<A>(problem.channels)),
          zeros(arena.Take<T>(problem.group_channels())) {
      for (A*& of_corner : dots) of_corner = arena.Take<A>(maps.size);
    }
    QuerySamples<A> samples;
    A* grad_y;          // [C], of one query
    T* zeros;           // [C / G]
    A* dots[kCorners];  // of each sample
  };

  void Differentiate(int64_t image, Range queries, Scratch& scratch) const {
    scratch.samples.Locate(primals_, {image, queries, {0, problem_.groups}});
    int64_t i = 0;
    for (int64_t query = queries.begin; query < queries.end; ++query) {
      const T* grad_y = grad_y_ + (image * problem_.queries + query) * problem_.channels;
      Widen(scratch.grad_y, grad_y, problem_.channels);
      for (int64_t group = 0; group < problem_.groups; ++group, i += problem_.samples) {
        Dots(image, group, i, scratch);
      }
    }
    Combine(problem_.SampleIndex(image, queries.begin, 0), scratch);
  }

  void Dots(int64_t image, int64_t group, int64_t begin, const Scratch& scratch) const {
    const int64_t channels = problem_.group_channels();
    const T* x = primals_.x + image * problem_.image_size() + group * channels;
    for (int64_t i = begin; i < begin + problem_.samples; ++i) {
      CornerDots<T> products;
      products.grad_y = scratch.grad_y + group * channels;
      for (int corner = 0; corner < kCorners; ++corner) {
        const int64_t pixel = scratch.samples.pixel[corner][i];
        products.rows[corner] = pixel < 0 ? scratch.zeros : x + pixel * problem_.channels;
      }
      Vectorised<A>(channels, products);
      for (int corner = 0; corner < kCorners; ++corner) {
        scratch.dots[corner][i] = products.dots[corner].Total();
      }
    }
  }

  void Combine(int64_t index, const Scratch& scratch) const {
    const QuerySamples<A>& samples = scratch.samples;
    for (int64_t i = 0; i < samples.count(); ++i) {
      const BilinearSample<A> sample = samples.At(i);
      const A dots[] = {scratch.dots[0][i], scratch.dots[1][i], scratch.dots[2][i],
                        scratch.dots[3][i]};
      if (grads_.weights != nullptr) {
        grads_.weights[index + i] = jax_dcn::Combine(ValueWeights(sample, A(1)), dots);
      }
      if (grads_.positions == nullptr) continue;
      const A weight = samples.weight[i];
      A* grad = grads_.positions + 2 * (index + i);
      grad[0] = jax_dcn::Combine(DerivativeWeights(sample, weight, A(0)), dots);
      grad[1] = jax_dcn::Combine(DerivativeWeights(sample, A(0), weight), dots);
    }
  }

  const DeformAggregateProblem& problem_;
  const DeformAggregatePrimals<T>& primals_;
  const T* const grad_y_;
  const DeformAggregateCotangents<T>& grads_;
  const int64_t queries_;
};

// sums_i += w_i grad_y, for the four pixels of a sample.
template <typename A>
struct Scatter {
  A* rows[kCorners];
  CornerWeights<A> weights;
  const A* grad_y;

  template <typename V>
  JAX_DCN_INLINE void At(int64_t c) {
    const V g = Read<V>(grad_y + c);
    // One after the other: by the legacy rule two corners may be the same pixel.
    for (int i = 0; i < kCorners; ++i) {
      Write(rows[i] + c, Read<V>(rows[i] + c) + weights.corner[i] * g);
    }
  }
};

// The cotangent of x. A block's sums lie together, whatever their distance in x.
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
        queries_(QueriesAtOnce(problem, 1)) {}

  void Run(Executor& executor) const {
    const SharedSampleMaps<A> maps(problem_, queries_);
    Arena needed;
    Scratch(*this, maps.maps, needed);
    ParallelFor(executor, problem_.batch * problem_.groups * blocks_, needed.bytes(),
                [&](int64_t item, char* memory) {
                  Arena arena(memory);
                  Scratch scratch(*this, maps.maps, arena);
                  const int64_t group = item / blocks_;
                  Block(group / problem_.groups, group % problem_.groups, item % blocks_, scratch);
                });
  }

 private:
  static constexpr int64_t kChannels = 32;  // two lines of cache in each pixel

  struct Scratch {
    Scratch(const ImageCotangent& of, const SampleMaps<A>& maps, Arena& arena)
        : samples(of.problem_, maps, arena),
          grad_y(arena.Take<A>(of.most_channels_)),
          nowhere(arena.Take<A>(of.most_channels_)),
          sums(arena.Take<A>(of.problem_.pixels * of.most_channels_)) {}
    QuerySamples<A> samples;
    A* grad_y;   // [channels] of one query
    A* nowhere;  // [channels]: takes what falls outside
    A* sums;     // [S, channels]
  };

  void Block(int64_t image, int64_t group, int64_t block, Scratch& scratch) const {
    const int64_t first = group * problem_.group_channels(),
                  end = first + problem_.group_channels();
    const int64_t channel = first + block * most_channels_;
    const int64_t channels = Min(most_channels_, end - channel);
    __builtin_memset(scratch.sums, 0, problem_.pixels * channels * sizeof(A));
    __builtin_memset(scratch.nowhere, 0, channels * sizeof(A));
    for (int64_t begin = 0; begin < problem_.queries; begin += queries_) {
      const Range queries = {begin, Min(begin + queries_, problem_.queries)};
      scratch.samples.Locate(primals_, {image, queries, {group, group + 1}});
      Add(image, queries, channel, channels, scratch);
    }
    T* result = grad_x_ + image * problem_.image_size() + channel;
    for (int64_t pixel = 0; pixel < problem_.pixels; ++pixel) {
      RoundInto(result + pixel * problem_.channels, scratch.sums + pixel * channels, channels);
    }
  }

  void Add(int64_t image, Range queries, int64_t channel, int64_t channels,
           const Scratch& scratch) const {
    const QuerySamples<A>& samples = scratch.samples;
    int64_t i = 0;
    for (int64_t query = queries.begin; query < queries.end; ++query) {
      const T* grad_y = grad_y_ + (image * problem_.queries + query) * problem_.channels + channel;
      Widen(scratch.grad_y, grad_y, channels);
      for (int64_t end = i + problem_.samples; i < end; ++i) {
        Scatter<A> scatter;
        scatter.weights = ValueWeights(samples.At(i), samples.weight[i]);
        scatter.grad_y = scratch.grad_y;
        for (int corner = 0; corner < kCorners; ++corner) {
          const int64_t pixel = samples.pixel[corner][i];
          scatter.rows[corner] = pixel < 0 ? scratch.nowhere : scratch.sums + pixel * channels;
        }
        Vectorised<A>(channels, scatter);
      }
    }
  }

  const DeformAggregateProblem& problem_;
  const DeformAggregatePrimals<T>& primals_;
  const T* const grad_y_;
  T* const grad_x_;
  const int64_t blocks_, most_channels_, queries_;
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
