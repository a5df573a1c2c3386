// SPDX-License-Identifier: MIT
// The problem that the kernels of deformable aggregation solve, for every backend.
#ifndef JAX_DCN_COMMON_DEFORM_AGGREGATE_PROBLEM_H_
#define JAX_DCN_COMMON_DEFORM_AGGREGATE_PROBLEM_H_

#include <cstdint>

#include "common/sampling/half.h"
#include "common/sampling/inline.h"

namespace jax_dcn {

// One map of pixels, and the samples that read it. Maps and their samples follow each other.
struct AggregateMap {
  int64_t height, width;
  int64_t first_pixel;
  int64_t first_sample, samples;
};

// Sizes of the arrays:
//   x [N, S, C]   positions [N, Q, G, T, 2]   weights [N, Q, G, T] if weighted
//   y [N, Q, C]
// Positions are (y, x) in pixels. In the unit square they are (x, y), and 0 and 1 are the outer
// edges of the map. Whole positions are pixels: no pixel beside them is read.
struct DeformAggregateProblem {
  int64_t batch, pixels, channels;   // N, S, C
  int64_t queries, groups, samples;  // Q, G, T
  bool weighted, legacy_boundary, unit_square, whole_positions;
  const AggregateMap* maps;
  int64_t map_count;

  JAX_DCN_INLINE int64_t group_channels() const { return channels / groups; }
  JAX_DCN_INLINE int64_t image_size() const { return pixels * channels; }
  // Index in `weights` of the first sample of a query's group. In `positions`, the sample begins at
  // twice this index.
  JAX_DCN_INLINE int64_t SampleIndex(int64_t image, int64_t query, int64_t group) const {
    return ((image * queries + query) * groups + group) * samples;
  }
};

// The arrays that derivatives are taken at.
template <typename T>
struct DeformAggregatePrimals {
  using A = typename Accumulator<T>::type;
  const T* x;
  const A* positions;
  const A* weights;  // null: every weight is one
};

// Tangents. Null stands for zero.
template <typename T>
struct DeformAggregateTangents {
  using A = typename Accumulator<T>::type;
  const T* x;
  const A* positions;
  const A* weights;
};

// Cotangents. Null stands for a cotangent that is not wanted.
template <typename T>
struct DeformAggregateCotangents {
  using A = typename Accumulator<T>::type;
  T* x;
  A* positions;
  A* weights;
};

// The operator as a template argument: the types of its kernels' arguments.
struct DeformAggregate {
  using Problem = DeformAggregateProblem;
  template <typename T>
  using Primals = DeformAggregatePrimals<T>;
  template <typename T>
  using Tangents = DeformAggregateTangents<T>;
  template <typename T>
  using Cotangents = DeformAggregateCotangents<T>;
};

}  // namespace jax_dcn

#endif  // JAX_DCN_COMMON_DEFORM_AGGREGATE_PROBLEM_H_
