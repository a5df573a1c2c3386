// SPDX-License-Identifier: MIT
// Forward and tangent of deformable aggregation. Queries run in parallel; each output channel is
// summed in registers over all samples.
#ifndef JAX_DCN_CPU_DEFORM_AGGREGATE_FORWARD_H_
#define JAX_DCN_CPU_DEFORM_AGGREGATE_FORWARD_H_

#include <cstdint>

#include "common/deform_aggregate/problem.h"
#include "cpu/deform_aggregate/query_samples.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/simd.h"
#include "cpu/sampling/samples.h"

namespace jax_dcn::JAX_DCN_ISA {

// The maps of an image, and the weights of the four corners of each sample in these maps.
template <typename T, typename A>
struct WeightedMaps {
  const T* x;
  A* const* weights;
};

// y = Σ_images Σ_samples Σ_corners weight x[pixel], over the channels of one group.
template <bool kInside, bool kAhead, typename T, typename A>
struct SampleSum {
  const WeightedMaps<T, A>* images;
  int image_count;
  const IndexOf<A>* const* pixels;
  const T* zeros;      // read outside the maps
  int64_t step;        // distance of pixels in x
  int64_t first;       // element of x: the first channel of the group
  int64_t begin, end;  // the samples
  CornersAhead<kAhead, T, IndexOf<A>> ahead;
  T* y;

  template <typename V, int kCount>
  JAX_DCN_INLINE void At(int64_t c) const {
    // A few vectors get sums for each corner: a single sum would wait for itself.
    constexpr int kChains = kCount < 4 ? kCorners : 1;
    V sums[kChains][kCount] = {};
    for (int k = 0; k < image_count; ++k) {
      const T* x = images[k].x + first;
      for (int64_t i = begin; i < end; ++i) {
        ahead.template Fetch<kCount * sizeof(V) / sizeof(A) * sizeof(T)>(i, c);
#pragma GCC unroll 4
        for (int corner = 0; corner < kCorners; ++corner) {
          V pixel[kCount];
          LoadBlock(Row(x, pixels[corner][i]) + c, pixel);
          const A weight = images[k].weights[corner][i];
#pragma GCC unroll 4
          for (int v = 0; v < kCount; ++v) sums[corner % kChains][v] += weight * pixel[v];
        }
      }
    }
    if constexpr (kChains == kCorners) {
#pragma GCC unroll 4
      for (int v = 0; v < kCount; ++v) {
        sums[0][v] = (sums[0][v] + sums[1][v]) + (sums[2][v] + sums[3][v]);
      }
    }
    StoreBlock(y + c, sums[0]);
  }

 private:
  JAX_DCN_INLINE const T* Row(const T* x, int64_t pixel) const {
    return !kInside && pixel < 0 ? zeros : x + pixel * step;
  }
};

// y, or its tangent where there are tangents.
template <typename T>
class Aggregation {
 public:
  using A = typename Accumulator<T>::type;

  Aggregation(const DeformAggregateProblem& problem, const DeformAggregatePrimals<T>& primals,
              const DeformAggregateTangents<T>* tangents, T* y)
      : problem_(problem),
        primals_(primals),
        tangents_(tangents),
        y_(y),
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
        Sum(item / strips, {begin, Min(begin + queries_, end)}, scratch);
      }
    });
  }

 private:
  struct Scratch {
    Scratch(const DeformAggregateProblem& problem, const SampleMaps<A>& maps, Arena& arena)
        : samples(problem, maps, arena), zeros(arena.Take<T>(problem.group_channels())) {
      for (auto& of_image : weights) {
        for (A*& w : of_image) w = arena.Take<A>(maps.size);
      }
    }
    QuerySamples<A> samples;
    T* zeros;
    A* weights[2][kCorners];
    WeightedMaps<T, A> images[2] = {};
    int image_count = 0;
  };

  void Sum(int64_t image, Range queries, Scratch& scratch) const {
    scratch.samples.Locate(primals_, {image, queries, {0, problem_.groups}});
    Weigh(problem_.SampleIndex(image, queries.begin, 0), scratch);
    T* y = y_ + (image * problem_.queries + queries.begin) * problem_.channels;
    const int64_t rows = queries.size() * problem_.groups, count = problem_.samples;
    const bool fetch = AreWorthFetching(problem_.image_size() * sizeof(T));
    for (int64_t row = 0; row < rows; ++row, y += problem_.group_channels()) {
      WithFlag(scratch.samples.AllInside(row * count, (row + 1) * count), [&](auto inside) {
        WithFlag(fetch && row + 1 < rows,
                 [&](auto ahead) { SumRow<inside.value, ahead.value>(image, row, scratch, y); });
      });
    }
  }

  // Sums the samples of a row: of a query and a group.
  template <bool kInside, bool kAhead>
  void SumRow(int64_t image, int64_t row, const Scratch& scratch, T* y) const {
    const int64_t begin = row * problem_.samples, end = begin + problem_.samples;
    const auto first_of = [&](int64_t row) {
      return image * problem_.image_size() + row % problem_.groups * problem_.group_channels();
    };
    const CornersAhead<kAhead, T, IndexOf<A>> next = {scratch.images[0].x + first_of(row + 1),
                                                      problem_.channels, scratch.samples.pixel,
                                                      problem_.samples};
    const SampleSum<kInside, kAhead, T, A> sum = {scratch.images,
                                                  scratch.image_count,
                                                  scratch.samples.pixel,
                                                  scratch.zeros,
                                                  problem_.channels,
                                                  first_of(row),
                                                  begin,
                                                  end,
                                                  next,
                                                  y};
    InBlocks<A>(problem_.group_channels(), sum);
  }

  // Weighs the corners of all samples, in each image that is read.
  void Weigh(int64_t index, Scratch& scratch) const {
    int& count = scratch.image_count;
    count = 0;
    const T* x = tangents_ == nullptr ? primals_.x : tangents_->x;
    if (x != nullptr) {
      scratch.images[count] = {x, scratch.weights[count]};
      scratch.samples.Weigh(scratch.weights[count++]);
    }
    const bool samples_move =
        tangents_ != nullptr && (tangents_->positions != nullptr || tangents_->weights != nullptr);
    if (samples_move) {
      scratch.images[count] = {primals_.x, scratch.weights[count]};
      WeighTangents(scratch.samples, index, scratch.weights[count++]);
    }
  }

  void WeighTangents(const QuerySamples<A>& samples, int64_t index, A* const* weights) const {
    for (int64_t i = 0; i < samples.count(); ++i) {
      const CornerWeights<A> w = TangentWeights(samples, i, index + i);
      for (int corner = 0; corner < kCorners; ++corner) weights[corner][i] = w.corner[corner];
    }
  }

  CornerWeights<A> TangentWeights(const QuerySamples<A>& samples, int64_t i, int64_t index) const {
    const A* dots = tangents_->weights;
    const BilinearSample<A> sample = samples.At(i);
    CornerWeights<A> sum = ValueWeights(sample, dots == nullptr ? A(0) : dots[index]);
    if (tangents_->positions == nullptr) return sum;
    const A* dot = tangents_->positions + 2 * index;
    const int row = problem_.unit_square ? 1 : 0;
    const A weight = samples.weight[i];
    const auto moved = DerivativeWeights(sample, weight * samples.RowsPerUnit(i) * dot[row],
                                         weight * samples.ColumnsPerUnit(i) * dot[1 - row]);
    for (int corner = 0; corner < kCorners; ++corner) sum.corner[corner] += moved.corner[corner];
    return sum;
  }

  const DeformAggregateProblem& problem_;
  const DeformAggregatePrimals<T>& primals_;
  const DeformAggregateTangents<T>* const tangents_;
  T* const y_;
  const int64_t queries_;
};

template <typename T>
void DeformAggregateForward(Executor& executor, const DeformAggregateProblem& problem,
                            const DeformAggregatePrimals<T>& primals, T* y) {
  Aggregation<T>(problem, primals, nullptr, y).Run(executor);
}

template <typename T>
void DeformAggregateJvp(Executor& executor, const DeformAggregateProblem& problem,
                        const DeformAggregatePrimals<T>& primals,
                        const DeformAggregateTangents<T>& tangents, T* y_dot) {
  Aggregation<T>(problem, primals, &tangents, y_dot).Run(executor);
}

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_DEFORM_AGGREGATE_FORWARD_H_
