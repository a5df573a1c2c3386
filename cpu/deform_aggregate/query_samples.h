// SPDX-License-Identifier: MIT
// Locates the samples of some queries, in vectors.
#ifndef JAX_DCN_CPU_DEFORM_AGGREGATE_QUERY_SAMPLES_H_
#define JAX_DCN_CPU_DEFORM_AGGREGATE_QUERY_SAMPLES_H_

#include <cstdint>

#include "common/deform_aggregate/problem.h"
#include "common/sampling/bilinear.h"
#include "common/sampling/locate.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/simd.h"
#include "cpu/runtime/vector_blocks.h"

namespace jax_dcn::JAX_DCN_ISA {

// Some queries of an image, and some of their groups.
struct Queries {
  int64_t image;
  Range queries, groups;
};

// The map of each sample, repeated, so that a vector of samples reads a vector of sizes.
template <typename A>
struct SampleMaps {
  using Index = IndexOf<A>;
  A *height, *width;             // [size]
  A *last_row, *last_column;     // [size], exact for maps of more than 2^24 pixels, too
  Index *columns, *first_pixel;  // [size]
  int64_t size;

  SampleMaps(const DeformAggregateProblem& problem, int64_t rows, Arena& arena)
      : size(RoundUp(rows * problem.samples, kLanes<A>)) {
    height = arena.Take<A>(size), width = arena.Take<A>(size);
    last_row = arena.Take<A>(size), last_column = arena.Take<A>(size);
    columns = arena.Take<Index>(size), first_pixel = arena.Take<Index>(size);
  }

  void Fill(const DeformAggregateProblem& problem) const {
    for (int64_t i = 0; i < size;) {
      for (int64_t m = 0; m < problem.map_count; ++m) {
        const AggregateMap& map = problem.maps[m];
        for (int64_t j = 0; j < map.samples && i < size; ++j, ++i) {
          height[i] = map.height, width[i] = map.width;
          last_row[i] = map.height - 1, last_column[i] = map.width - 1;
          columns[i] = map.width, first_pixel[i] = map.first_pixel;
        }
      }
    }
  }
};

// The maps of a call's samples, in memory of their own.
template <typename A>
class SharedSampleMaps {
 public:
  SharedSampleMaps(const DeformAggregateProblem& problem, int64_t rows)
      : memory_(Count(problem, rows)), arena_(memory_.arena()), maps(problem, rows, arena_) {
    maps.Fill(problem);
  }

 private:
  static int64_t Count(const DeformAggregateProblem& problem, int64_t rows) {
    Arena counted;
    SampleMaps<A>(problem, rows, counted);
    return counted.bytes();
  }

  Shared memory_;
  Arena arena_;

 public:
  const SampleMaps<A> maps;
};

// Samples in rows of T, a row for each query and group.
template <typename A>
class QuerySamples {
 public:
  using Index = IndexOf<A>;

  QuerySamples(const DeformAggregateProblem& problem, const SampleMaps<A>& maps, Arena& arena)
      : problem_(problem), maps_(maps), positions_(arena.Take<A>(2 * maps.size)) {
    y = arena.Take<A>(maps.size), x = arena.Take<A>(maps.size);
    weight = arena.Take<A>(maps.size);
    for (Index*& p : pixel) p = arena.Take<Index>(maps.size);
    any_outside_ = arena.Take<Index>(maps.size);
  }

  template <typename T>
  void Locate(const DeformAggregatePrimals<T>& primals, const Queries& of) {
    const int64_t row = of.groups.size() * problem_.samples;
    count_ = 0;
    if (row == 0) return;
    for (int64_t query = of.queries.begin; query < of.queries.end; ++query, count_ += row) {
      const int64_t index = problem_.SampleIndex(of.image, query, of.groups.begin);
      __builtin_memcpy(positions_ + 2 * count_, primals.positions + 2 * index, 2 * row * sizeof(A));
      if (primals.weights == nullptr) continue;
      __builtin_memcpy(weight + count_, primals.weights + index, row * sizeof(A));
    }
    if (primals.weights == nullptr) {
      for (int64_t i = 0; i < count_; ++i) weight[i] = A(1);
    }
    for (int64_t i = count_; i < RoundUp(count_, kLanes<A>); ++i) {
      positions_[2 * i] = positions_[2 * i + 1] = weight[i] = A(0);
    }
    for (int64_t i = 0; i < count_; i += kLanes<A>) LocateVector(i);
  }

  int64_t count() const { return count_; }

  // Places of samples between their corners: sample `i`, or a vector of samples from `i` on.
  template <typename V = A>
  JAX_DCN_INLINE BilinearSample<V> At(int64_t i) const {
    return {{}, Read<V>(y + i), Read<V>(x + i)};
  }

  // Factors of the derivatives by positions in pixels, for samples from `i` on.
  template <typename V = A>
  JAX_DCN_INLINE V RowsPerUnit(int64_t i) const {
    return problem_.unit_square ? Read<V>(maps_.height + i) : V{} + 1;
  }
  template <typename V = A>
  JAX_DCN_INLINE V ColumnsPerUnit(int64_t i) const {
    return problem_.unit_square ? Read<V>(maps_.width + i) : V{} + 1;
  }

  // The factor of each corner of each sample.
  void Weigh(A* const* corner_weights) const {
    for (int64_t i = 0; i < count_; i += kLanes<A>) {
      const CornerWeights<Vector<A>> w = ValueWeights(At<Vector<A>>(i), Load(weight + i));
      for (int corner = 0; corner < kCorners; ++corner) {
        Store<A>(corner_weights[corner] + i, w.corner[corner]);
      }
    }
  }

  // Whether all corners of the samples [begin, end) are inside their maps.
  bool AllInside(int64_t begin, int64_t end) const {
    Index any = 0;
    for (int64_t i = begin; i < end; ++i) any |= any_outside_[i];
    return any >= 0;
  }

  A *y, *x, *weight;       // within the square of the corners; the factor of the sample
  Index* pixel[kCorners];  // in x, or kOutside

 private:
  // The map of each sample of a vector, with the members of SampledMap.
  struct MapOfEach {
    Vector<A> size[2], last_pixel[2];
    bool legacy_boundary, whole_positions;

    JAX_DCN_INLINE Vector<A> last(int axis) const { return last_pixel[axis]; }
  };

  JAX_DCN_INLINE void LocateVector(int64_t i) {
    const MapOfEach map = {{Load(maps_.height + i), Load(maps_.width + i)},
                           {Load(maps_.last_row + i), Load(maps_.last_column + i)},
                           problem_.legacy_boundary,
                           problem_.whole_positions};
    const Vector<A> low = Load(positions_ + 2 * i), high = Load(positions_ + 2 * i + kLanes<A>);
    Vector<A> position[] = {Evens<A>(low, high), Odds<A>(low, high)};
    if (problem_.unit_square) {
      const Vector<A> column = position[0];
      position[0] = position[1] * map.size[0] - A(0.5);
      position[1] = column * map.size[1] - A(0.5);
    }
    const auto at = jax_dcn::Locate<A>(map, position);
    Store(y + i, at.fraction[0]);
    Store(x + i, at.fraction[1]);
    const Vector<Index> strides[] = {Load(maps_.columns + i), Vector<Index>{} + 1};
    Vector<Index> corner[kCorners];
    SetCorners(at, Load(maps_.first_pixel + i), strides, corner);
    for (int c = 0; c < kCorners; ++c) Store<Index>(pixel[c] + i, corner[c]);
    Store<Index>(any_outside_ + i, corner[0] | corner[1] | corner[2] | corner[3]);
  }

  const DeformAggregateProblem& problem_;
  const SampleMaps<A>& maps_;
  A* const positions_;  // as they are given
  Index* any_outside_;  // negative where a corner is outside
  int64_t count_ = 0;
};

// Brings into the cache what a later step reads: a row of bytes at each corner of a sample. Samples
// lie anywhere, and the processor cannot guess where.
template <bool kAny, typename T, typename Index>
struct CornersAhead {
  const T* data;  // the first channel of the later step, if there is any
  int64_t step;   // distance of pixels
  const Index* const* pixels;
  int64_t samples;  // from a sample to one of the later step

  template <int kBytes>
  JAX_DCN_INLINE void Fetch(int64_t sample, int64_t c) const {
    constexpr int kLine = 64;
    if constexpr (!kAny) return;
#pragma GCC unroll 4
    for (int corner = 0; corner < kCorners; ++corner) {
      // Outside the map, a row that nobody needs.
      const char* row =
          reinterpret_cast<const char*>(data + c + pixels[corner][sample + samples] * step);
      for (int byte = 0; byte < kBytes; byte += kLine) __builtin_prefetch(row + byte);
    }
  }
};

// Whether an image of so many bytes is too large for a fast cache, so that it pays to prefetch
// pixels. With little memory, small maps are read like large ones.
inline bool AreWorthFetching(int64_t bytes) {
#if defined(JAX_DCN_LITTLE_MEMORY)
  return bytes > 0;
#else
  return bytes > int64_t{1} << 21;
#endif
}

// Queries of which one thread locates all samples at once.
inline int64_t QueriesAtOnce(const DeformAggregateProblem& problem, int64_t groups) {
  constexpr int64_t kSamples = 256;
  return Max(1, kSamples / Max(1, groups * problem.samples));
}

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_DEFORM_AGGREGATE_QUERY_SAMPLES_H_
