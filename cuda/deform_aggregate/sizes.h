// SPDX-License-Identifier: MIT
// The sizes of a deformable aggregation as its kernels take them: in 32 bits, with the divisors of
// their index arithmetic, all made on the host.
#ifndef JAX_DCN_CUDA_DEFORM_AGGREGATE_SIZES_H_
#define JAX_DCN_CUDA_DEFORM_AGGREGATE_SIZES_H_

#include <cstdint>

#include "common/deform_aggregate/problem.h"
#include "common/sampling/bilinear.h"
#include "cuda/runtime/divisor.h"

namespace jax_dcn {

// A kernel has its sizes, and so its maps, in the memory of its parameters.
constexpr int kMostMaps = 16;

// See AggregateMap.
struct DeformAggregateMap {
  int32_t height, width, first_pixel, first_sample;
};

// The read of a sample: where it lies in its map, and the map.
template <typename A>
struct AggregateRead {
  BilinearSample<A> sample;
  DeformAggregateMap map;
};

// See DeformAggregateProblem. Each size fits into 32 bits. Products of sizes need not. A row is
// a query's group: rows are [N, Q, G].
struct DeformAggregateSizes {
  int32_t rows, queries, groups, samples, pixels;
  int32_t channels, group_channels;
  int32_t pixel_bytes;  // between pixels of x, and between queries of y
  int32_t map_count;
  bool legacy_boundary, unit_square, whole_positions;
  Divisor by_queries, by_groups, by_samples, by_pixels;
  DeformAggregateMap maps[kMostMaps];

  DeformAggregateSizes() = default;
  DeformAggregateSizes(const DeformAggregateProblem& p, int element_bytes)
      : rows(p.batch * p.queries * p.groups),
        queries(p.queries),
        groups(p.groups),
        samples(p.samples),
        pixels(p.pixels),
        channels(p.channels),
        group_channels(p.group_channels()),
        pixel_bytes(p.channels * element_bytes),
        map_count(p.map_count),
        legacy_boundary(p.legacy_boundary),
        unit_square(p.unit_square),
        whole_positions(p.whole_positions),
        by_queries(p.queries),
        by_groups(p.groups),
        by_samples(p.samples),
        by_pixels(p.pixels) {
    for (int i = 0; i < map_count; ++i) {
      const AggregateMap& map = p.maps[i];
      maps[i] = {static_cast<int32_t>(map.height), static_cast<int32_t>(map.width),
                 static_cast<int32_t>(map.first_pixel), static_cast<int32_t>(map.first_sample)};
    }
  }

  // Index in x of the first channel of a group of an image.
  JAX_DCN_INLINE int64_t FirstChannel(int32_t image, int32_t group) const {
    return int64_t{image} * pixels * channels + int64_t{group} * group_channels;
  }

  // The read of a row's sample, at (y, x) in pixels or at (x, y) in the unit square.
  template <typename A>
  JAX_DCN_INLINE AggregateRead<A> ReadAt(int32_t sample, const A* position) const {
    const DeformAggregateMap map = MapOf(sample);
    const SampledMap<2, int32_t> sampled = {
        {map.height, map.width}, legacy_boundary, whole_positions};
    A y = position[0], x = position[1];
    if (unit_square) {
      const A column = y;
      y = x * static_cast<A>(map.height) - A(0.5);
      x = column * static_cast<A>(map.width) - A(0.5);
    }
    return {SampleAt(sampled, y, x), map};
  }

 private:
  // The last map that starts at the sample or before. Maps without samples are passed over.
  JAX_DCN_INLINE DeformAggregateMap MapOf(int32_t sample) const {
    int map = 0;
    for (int i = 1; i < map_count; ++i) {
      if (maps[i].first_sample <= sample) map = i;
    }
    return maps[map];
  }
};

}  // namespace jax_dcn

#endif  // JAX_DCN_CUDA_DEFORM_AGGREGATE_SIZES_H_
