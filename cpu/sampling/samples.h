// SPDX-License-Identifier: MIT
// Sums over the four pixels of a sample, vectorised over channels.
#ifndef JAX_DCN_CPU_SAMPLING_SAMPLES_H_
#define JAX_DCN_CPU_SAMPLING_SAMPLES_H_

#include <cstdint>
#include <limits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "common/sampling/bilinear.h"
#include "common/sampling/locate.h"
#include "cpu/runtime/pairs.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/simd.h"
#include "cpu/runtime/vector_blocks.h"

namespace jax_dcn::JAX_DCN_ISA {

// A sample and its mask. Each corner is the offset of a pixel's first channel in an array of images
// [.., H, W, C], or kOutside.
template <typename A>
struct MaskedSample : BilinearSample<A> {
  A mask;
};

// The elements that the lanes of `index` name: zero for kOutside.
template <typename A>
JAX_DCN_INLINE Vector<A> Gather(const A* data, Vector<IndexOf<A>> index) {
  const Vector<IndexOf<A>> inside = index < 0 ? Vector<IndexOf<A>>{} : index;
  Vector<A> elements;
#pragma GCC unroll 16
  for (int lane = 0; lane < kLanes<A>; ++lane) elements[lane] = data[inside[lane]];
  return index < 0 ? Vector<A>{} : elements;
}

#if defined(__AVX2__) && !defined(JAX_DCN_EMULATE_AVX512)
JAX_DCN_INLINE Vector<float> Gather(const float* data, Vector<int32_t> index) {
#if defined(__AVX512F__)
  const auto wide = (__m512i)index;
  const __mmask16 inside = _mm512_cmpge_epi32_mask(wide, _mm512_setzero_si512());
  return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), inside, wide, data, sizeof(float));
#else
  const auto inside = (__m256)~index;  // the sign of a lane tells whether the lane is loaded
  return _mm256_mask_i32gather_ps(_mm256_setzero_ps(), data, (__m256i)index, inside, sizeof(float));
#endif
}
#endif

// Offsets in a map up to this one are computed in integers of the size of a coordinate, which takes
// less time. A build with little memory lets tests see wide offsets in small maps.
#if defined(JAX_DCN_LITTLE_MEMORY)
template <typename A>
constexpr int64_t kNarrowOffsets = 1 << 10;
#else
template <typename A>
constexpr int64_t kNarrowOffsets = std::numeric_limits<IndexOf<A>>::max();
#endif

// Samples as arrays of their parts, in whole vectors.
template <typename A>
class SampleArrays {
 public:
  SampleArrays(int64_t count, Arena& arena) {
    const int64_t size = RoundUp(count, kLanes<A>);
    for (int64_t*& corner : corners_) corner = arena.Take<int64_t>(size);
    for (A** part : {&y, &x, &mask}) *part = arena.Take<A>(size);
    for (A*& weight : weights_) weight = arena.Take<A>(size);
  }

  // Locates the samples from `begin` to `end`, and the rest of the last vector. Before the call, y
  // and x are positions in the map. The map starts at the element `first`; neighbours along an axis
  // are `strides` elements apart.
  void Locate(const SampledMap<2>& map, int64_t first, const int64_t (&strides)[2], int64_t begin,
              int64_t end) const {
    const bool narrow = (map.size[0] + 1) * strides[0] <= kNarrowOffsets<A>;
    for (int64_t i = begin; i < end; i += kLanes<A>) {
      const Vector<A> position[] = {Load(y + i), Load(x + i)};
      const auto at = jax_dcn::Locate<A>(map, position);
      Store<A>(y + i, at.fraction[0]);
      Store<A>(x + i, at.fraction[1]);
      const auto weights =
          ValueWeights<Vector<A>>({{}, at.fraction[0], at.fraction[1]}, Load(mask + i));
      for (int c = 0; c < kCorners; ++c) Store<A>(weights_[c] + i, weights.corner[c]);
      if (narrow) {
        SetNarrowCorners(at, first, strides, i);
      } else {
        for (int part = 0; part < kParts; ++part) SetCorners(at, part, first, strides, i);
      }
    }
  }

  // Samples single channels of a map: the samples from `begin` to `end`, and the rest of the last
  // vector, each into its element of `columns`. The sample after channel `turns[i]` is of channel
  // `turns[i + 1]`, and the first of every `channels` samples is of channel `turns[0]`. Before, y
  // and x are positions in the map. IndexOf<A> can index the map.
  void SampleInTurn(const SampledMap<2>& map, const A* image, const IndexOf<A> (&strides)[2],
                    const IndexOf<A>* turns, int64_t channels, int64_t begin, int64_t end,
                    A* columns) const {
    const int64_t step = kLanes<A> % channels;
    for (int64_t i = begin, turn = 0; i < end; i += kLanes<A>) {
      const Vector<A> position[] = {Load(y + i), Load(x + i)};
      const auto at = jax_dcn::Locate<A>(map, position);
      const auto weights =
          ValueWeights<Vector<A>>({{}, at.fraction[0], at.fraction[1]}, Load(mask + i));
      Vector<IndexOf<A>> corner[kCorners];
      jax_dcn::SetCorners(at, Load(turns + turn), strides, corner);
      Vector<A> value = weights.corner[0] * Gather(image, corner[0]);
      for (int c = 1; c < kCorners; ++c) value += weights.corner[c] * Gather(image, corner[c]);
      Store<A>(columns + i, value);
      turn += turn + step < channels ? step : step - channels;
    }
  }

  // The elements between the first and the last corner of some samples, where a corner is `size`
  // elements. Begins at INT64_MAX if all corners are outside.
  Range Reach(int64_t count, int64_t size) const {
    uint64_t begin = INT64_MAX;  // less than kOutside
    int64_t last = kOutside;
    for (const int64_t* corner : corners_) {
      for (int64_t i = 0; i < count; ++i) {
        const auto index = static_cast<uint64_t>(corner[i]);
        begin = index < begin ? index : begin;
        last = corner[i] > last ? corner[i] : last;
      }
    }
    return {static_cast<int64_t>(begin), last == kOutside ? 0 : last + size};
  }

  // Element by element: processors wait for a struct that is copied as a whole just after its parts
  // are written.
  JAX_DCN_INLINE void CopyTo(MaskedSample<A>& sample, int64_t i) const {
    for (int c = 0; c < kCorners; ++c) sample.corner[c] = corners_[c][i];
    sample.y = y[i], sample.x = x[i], sample.mask = mask[i];
  }

  JAX_DCN_INLINE MaskedSample<A> operator[](int64_t i) const {
    return {{{corners_[0][i], corners_[1][i], corners_[2][i], corners_[3][i]}, y[i], x[i]},
            mask[i]};
  }

  JAX_DCN_INLINE CornerWeights<A> WeightsOf(int64_t i) const {
    return {{weights_[0][i], weights_[1][i], weights_[2][i], weights_[3][i]}};
  }

  A *y, *x, *mask;

 private:
  // Vectors of 64-bit corners that belong to one vector of samples.
  static constexpr int kParts = sizeof(int64_t) / sizeof(A);
  using Part = Vector<A, kVectorBytes / kParts>;

  template <typename U, typename V>
  static JAX_DCN_INLINE U PartOf(const V& vector, int part) {
    U found;
    __builtin_memcpy(&found, reinterpret_cast<const char*>(&vector) + part * sizeof(U), sizeof(U));
    return found;
  }

  JAX_DCN_INLINE void SetNarrowCorners(const Location<2, Vector<A>>& at, int64_t first,
                                       const int64_t (&strides)[2], int64_t i) const {
    using Index = IndexOf<A>;
    const Index steps[] = {static_cast<Index>(strides[0]), static_cast<Index>(strides[1])};
    Vector<Index> corner[kCorners];
    jax_dcn::SetCorners(at, Index{0}, steps, corner);
    for (int c = 0; c < kCorners; ++c) {
      for (int part = 0; part < kParts; ++part) {
        using Some = Vector<Index, kVectorBytes / kParts>;
        const auto offset = ToIndex<Vector<int64_t>>(PartOf<Some>(corner[c], part));
        Store<int64_t>(corners_[c] + i + part * kLanes<int64_t>, (offset + first) | (offset < 0));
      }
    }
  }

  JAX_DCN_INLINE void SetCorners(const Location<2, Vector<A>>& at, int part, int64_t first,
                                 const int64_t (&strides)[2], int64_t i) const {
    using Flags = decltype(Part{} < Part{});
    Location<2, Part> some;
    for (int axis = 0; axis < 2; ++axis) {
      some.low[axis] = PartOf<Part>(at.low[axis], part);
      some.outside_low[axis] = PartOf<Flags>(at.outside_low[axis], part);
      some.outside_high[axis] = PartOf<Flags>(at.outside_high[axis], part);
      some.repeats_low[axis] = PartOf<Flags>(at.repeats_low[axis], part);
    }
    Vector<int64_t> corner[kCorners];
    jax_dcn::SetCorners(some, first, strides, corner);
    for (int c = 0; c < kCorners; ++c) {
      Store<int64_t>(corners_[c] + i + part * kLanes<int64_t>, corner[c]);
    }
  }

  int64_t* corners_[kCorners];
  A* weights_[kCorners];
};

// Whether the column of a sample is zero whatever the image holds.
template <typename A>
JAX_DCN_INLINE bool HasZeroColumn(const MaskedSample<A>& sample) {
  const int64_t* corner = sample.corner;
  const A weight = sample.y + sample.x + sample.mask;
  return (corner[0] & corner[1] & corner[2] & corner[3]) == kOutside && weight - weight == 0;
}

// The four pixels of a sample, at the first channel of a block.
template <typename P>
struct Corners {
  P* row[kCorners];
};

// The corners of a sample. A corner outside the map is the row `outside`: zeros that are read, or
// sums that nobody reads. An image multiplied by zero would turn an infinity into a NaN. The row is
// chosen without a branch, because no processor could predict the branch.
template <typename A, typename P>
JAX_DCN_INLINE Corners<P> CornersOf(const BilinearSample<A>& sample, P* images, P* outside) {
  const auto first = reinterpret_cast<intptr_t>(images);
  const intptr_t to_outside = reinterpret_cast<intptr_t>(outside) - first;
  Corners<P> corners;
  for (int i = 0; i < kCorners; ++i) {
    const intptr_t step = sample.corner[i] * static_cast<intptr_t>(sizeof(P));
    corners.row[i] = reinterpret_cast<P*>(first + (step < 0 ? to_outside : step));
  }
  return corners;
}

// column = (column +) Σ_i w_i row_i
template <bool kAdd, typename A>
struct Interpolation {
  const Corners<const A> corners;
  const CornerWeights<A> weights;
  A* const column;

  template <typename V>
  JAX_DCN_INLINE void At(int64_t c) {
    V value = weights.corner[0] * Read<V>(corners.row[0] + c);
    if (kAdd) value += Read<V>(column + c);
    for (int i = 1; i < kCorners; ++i) value += weights.corner[i] * Read<V>(corners.row[i] + c);
    Write(column + c, value);
  }
};

// column = Σ_i w_i row_i, rounded: rows of pairs of bfloat16.
struct PairInterpolation {
  const Corners<const BFloat16> corners;
  const CornerWeights<float> weights;
  BFloat16* const column;

  // The pairs from pair `p` on, as unsigned integers.
  template <typename V>
  JAX_DCN_INLINE void At(int64_t p) {
    AsFloats<V> first = {}, second = {};
    for (int i = 0; i < kCorners; ++i) {
      V pairs;
      __builtin_memcpy(&pairs, corners.row[i] + 2 * p, sizeof(pairs));
      first += weights.corner[i] * FirstOf(pairs);
      second += weights.corner[i] * SecondOf(pairs);
    }
    const V rounded = RoundToPairs(first, second);
    __builtin_memcpy(column + 2 * p, &rounded, sizeof(rounded));
  }
};

// A sum for each corner, over a loop of `Vectorised`, in lanes of each width that the loop takes.
template <typename A, int kBytes = kVectorBytes>
struct CornerSums {
  Vector<A, kBytes> lanes[kCorners] = {};
  CornerSums<A, kBytes / 2> narrower;

  template <typename V>
  JAX_DCN_INLINE auto& Of() {
    if constexpr (sizeof(V) == kBytes) {
      return lanes;
    } else {
      return narrower.template Of<V>();
    }
  }

  // With `kWhole`, the loop took no narrower vectors.
  template <bool kWhole>
  JAX_DCN_INLINE void AddTo(A* totals) const {
    AddSums<A>(lanes, totals);
    if constexpr (!kWhole) narrower.template AddTo<false>(totals);
  }
};

template <typename A>
struct CornerSums<A, kNarrowestBytes / 2> {
  A lanes[kCorners] = {};

  template <typename V>
  JAX_DCN_INLINE auto& Of() {
    return lanes;
  }

  template <bool>
  JAX_DCN_INLINE void AddTo(A* totals) const {
    AddSums<A>(lanes, totals);
  }
};

// What a sample contributes to gradients, given the gradient g of its column:
//   dots_i = Σ_c row_i[c] g[c]     sums_i += w_i g
template <bool kDots, bool kSums, typename A, typename E>
struct SampleGradients {
  const Corners<const E> corners;
  const CornerWeights<A> weights;
  const Corners<A> sums;
  const A* const column;
  CornerSums<A> dots;

  JAX_DCN_INLINE SampleGradients(const Corners<const E>& corners, const CornerWeights<A>& weights,
                                 const Corners<A>& sums, const A* column)
      : corners(corners), weights(weights), sums(sums), column(column) {}

  template <typename V>
  JAX_DCN_INLINE void At(int64_t c) {
    const V g = Read<V>(column + c);
    for (int i = 0; i < kCorners; ++i) {
      if (kDots) dots.template Of<V>()[i] += Read<V>(corners.row[i] + c) * g;
      // Each sum is written before the next is read: by the legacy rule two corners may be one
      // pixel.
      if (kSums) Write(sums.row[i] + c, Read<V>(sums.row[i] + c) + weights.corner[i] * g);
    }
  }

  // With `kWhole`, whole vectors make up the channels.
  template <bool kWhole>
  JAX_DCN_INLINE void StoreDots(A* result) const {
    A totals[kCorners] = {};
    dots.template AddTo<kWhole>(totals);
    __builtin_memcpy(result, totals, sizeof(totals));
  }
};

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_SAMPLING_SAMPLES_H_
