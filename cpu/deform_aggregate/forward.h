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

// An image, and the weights of the four corners of each sample in it.
template <typename T, typename A>
struct WeightedImage {
  const T* x;
  A* const* weights;
};

// y = Σ_images Σ_samples Σ_corners weight x[pixel], over the channels of one group.
template <typename T, typename A>
struct SampleSum {
  using Index = IndexOf<A>;
  const WeightedImage<T, A>* images;
  int image_count;
  const Index* const* pixels;
  const T* zeros;              // read outside the maps
  int64_t step;                // distance of pixels in x
  int64_t first = 0;           // element of x: the first channel of the group
  int64_t begin = 0, end = 0;  // the samples

  template <bool kInside>
  void Into(T* y, int64_t channels) const {
    int64_t c = InVectors<kInside, 4>(y, 0, channels);
    c = InVectors<kInside, 2>(y, c, channels);
    c = InVectors<kInside, 1>(y, c, channels);
    for (; c < channels; ++c) y[c] = FromFloat<T>::Round(Channel(c));
  }

 private:
  template <bool kInside>
  JAX_DCN_INLINE const T* Row(const T* x, int64_t pixel) const {
    if (!kInside && pixel < 0) return zeros;
    return x + pixel * step;
  }

  // Sums kVectors vectors of channels at once, as often as they fit; returns the next channel.
  template <bool kInside, int kVectors>
  JAX_DCN_INLINE int64_t InVectors(T* y, int64_t c, int64_t channels) const {
    constexpr int64_t kStep = kVectors * kLanes<A>;
    for (; c + kStep <= channels; c += kStep) {
      Vector<A> sums[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[v] = Vector<A>{};
      for (int k = 0; k < image_count; ++k) {
        const T* x = images[k].x + first;
        for (int64_t i = begin; i < end; ++i) {
#pragma GCC unroll 4
          for (int corner = 0; corner < kCorners; ++corner) {
            const T* row = Row<kInside>(x, pixels[corner][i]) + c;
            const A weight = images[k].weights[corner][i];
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) sums[v] += weight * LoadSums(row + v * kLanes<A>);
          }
        }
      }
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) StoreRounded(y + c + v * kLanes<A>, sums[v]);
    }
    return c;
  }

  A Channel(int64_t c) const {
    A sum = 0;
    for (int k = 0; k < image_count; ++k) {
      for (int64_t i = begin; i < end; ++i) {
        for (int corner = 0; corner < kCorners; ++corner) {
          const T* row = Row<false>(images[k].x + first, pixels[corner][i]);
          sum += images[k].weights[corner][i] * ToFloat(row[c]);
        }
      }
    }
    return sum;
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
    Arena needed;
    Scratch(problem_, maps.maps, needed);
    const int64_t strip = queries_ * kSteps, strips = CeilDiv(problem_.queries, strip);
    ParallelFor(executor, problem_.batch * strips, needed.bytes(), [&](int64_t item, char* data) {
      Arena arena(data);
      Scratch scratch(problem_, maps.maps, arena);
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
  };

  void Sum(int64_t image, Range queries, Scratch& scratch) const {
    const int64_t channels = problem_.group_channels(), count = problem_.samples;
    scratch.samples.Locate(primals_, {image, queries, {0, problem_.groups}});
    WeightedImage<T, A> images[2];
    const int64_t index = problem_.SampleIndex(image, queries.begin, 0);
    const int image_count = Weigh(scratch, index, images);
    SampleSum<T, A> sum = {images, image_count, scratch.samples.pixel, scratch.zeros,
                           problem_.channels};
    T* y = y_ + (image * problem_.queries + queries.begin) * problem_.channels;
    for (int64_t row = 0; row < queries.size() * problem_.groups; ++row, y += channels) {
      sum.begin = row * count, sum.end = sum.begin + count;
      sum.first = image * problem_.image_size() + row % problem_.groups * channels;
      if (scratch.samples.AllInside(sum.begin, count)) {
        sum.template Into<true>(y, channels);
      } else {
        sum.template Into<false>(y, channels);
      }
    }
  }

  // Weighs the corners of all samples; returns how many images are read.
  int Weigh(Scratch& scratch, int64_t index, WeightedImage<T, A>* images) const {
    int count = 0;
    const T* x = tangents_ == nullptr ? primals_.x : tangents_->x;
    if (x != nullptr) {
      images[count] = {x, scratch.weights[count]};
      WeighValues(scratch.samples, scratch.weights[count++]);
    }
    const bool samples_move =
        tangents_ != nullptr && (tangents_->positions != nullptr || tangents_->weights != nullptr);
    if (samples_move) {
      images[count] = {primals_.x, scratch.weights[count]};
      WeighTangents(scratch.samples, index, scratch.weights[count++]);
    }
    return count;
  }

  static void WeighValues(const QuerySamples<A>& samples, A* const* weights) {
    for (int64_t i = 0; i < samples.count(); i += kLanes<A>) {
      const Vector<A> scale = Load(samples.weight + i), x = Load(samples.x + i);
      const Vector<A> bottom = Load(samples.y + i) * scale, top = scale - bottom;
      Store<A>(weights[0] + i, top * (1 - x));
      Store<A>(weights[1] + i, top * x);
      Store<A>(weights[2] + i, bottom * (1 - x));
      Store<A>(weights[3] + i, bottom * x);
    }
  }

  void WeighTangents(const QuerySamples<A>& samples, int64_t index, A* const* weights) const {
    for (int64_t i = 0; i < samples.count(); ++i) {
      const CornerWeights<A> w = TangentWeights(samples.At(i), samples.weight[i], index + i);
      for (int corner = 0; corner < kCorners; ++corner) weights[corner][i] = w.corner[corner];
    }
  }

  CornerWeights<A> TangentWeights(const BilinearSample<A>& sample, A weight, int64_t index) const {
    const A* dots = tangents_->weights;
    CornerWeights<A> sum = ValueWeights(sample, dots == nullptr ? A(0) : dots[index]);
    if (tangents_->positions == nullptr) return sum;
    const A* dot = tangents_->positions + 2 * index;
    const auto moved = DerivativeWeights(sample, weight * dot[0], weight * dot[1]);
    for (int i = 0; i < kCorners; ++i) sum.corner[i] += moved.corner[i];
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
