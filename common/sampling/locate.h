// SPDX-License-Identifier: MIT
// The boundary rule: which pixels surround a position in a map, and which of them count.
//
// `V` is float, double or a GCC vector of either. One body serves all of them, so that the CPU
// locates a vector of positions by the same rule as a CUDA thread locates one position.
#ifndef JAX_DCN_COMMON_SAMPLING_LOCATE_H_
#define JAX_DCN_COMMON_SAMPLING_LOCATE_H_

#include <cstdint>
#include <limits>
#include <type_traits>

#include "common/sampling/inline.h"

namespace jax_dcn {

// The element offset of a pixel that contributes nothing.
constexpr int64_t kOutside = -1;

// The size of a map along each axis, and the rule at its boundary:
//   padded   A position is inside if -1 < position < size. Pixels outside the map are zero.
//   legacy   A position is inside if 0 <= position < size. The last pixel also serves as the pixel
//            after the last.
// `Size` is an integer, or a vector of coordinates where each position has a map of its own.
template <int kAxes, typename Size = int64_t>
struct SampledMap {
  Size size[kAxes];
  bool legacy_boundary;
  bool whole_positions = false;  // every position is a pixel, and the pixels after it are outside

  JAX_DCN_INLINE Size last(int axis) const { return size[axis] - 1; }
};

// The pixels around a position: along each axis, `low` is the last pixel at or before the position
// and `low + 1` the pixel after it. `Flags` are booleans, or integers with all bits set or none.
template <int kAxes, typename V, typename Flags = decltype(V{} < V{})>
struct Location {
  V low[kAxes];
  V fraction[kAxes];  // position - low, in [0, 1], where 1 is a rounded value; NaN if any
                      // coordinate is NaN
  Flags outside_low[kAxes], outside_high[kAxes];  // whether `low` or `low + 1` is outside
  Flags repeats_low[kAxes];                       // whether `low` serves as `low + 1`
};

// Largest whole number that is at most `v`. A scalar must fit into 64 bits.
template <typename V>
JAX_DCN_INLINE V Floor(V v) {
  if constexpr (std::is_floating_point_v<V>) {
    const V towards_zero = static_cast<V>(static_cast<int64_t>(v));
    return v < towards_zero ? towards_zero - 1 : towards_zero;
  } else {
#if !defined(__CUDACC__)
    using A = std::decay_t<decltype(v[0])>;
    using Whole = decltype(v < v);
    constexpr A kWhole = A(int64_t{1} << (std::numeric_limits<A>::digits - 1));  // all larger are
    const V towards_zero = __builtin_convertvector(__builtin_convertvector(v, Whole), V);
    const V floor = v < towards_zero ? towards_zero - 1 : towards_zero;
    return ((v > -kWhole) & (v < kWhole)) ? floor : v;
#endif
  }
}

// A size as a coordinate.
template <typename A, typename Size>
JAX_DCN_INLINE auto Coordinate(Size size) {
  if constexpr (std::is_integral_v<Size>) {
    return static_cast<A>(size);
  } else {
    return size;
  }
}

template <typename V, typename A>
JAX_DCN_INLINE auto IsInside(V position, A size, bool legacy) -> decltype(position < position) {
  return (legacy ? position >= 0 : position > -1) & (position < size);
}

// `Map` is a SampledMap, or has the same members.
template <typename A, typename Map, int kAxes, typename V>
JAX_DCN_INLINE Location<kAxes, V> Locate(const Map& map, const V (&position)[kAxes]) {
  using Flags = decltype(V{} < V{});
  const V zero = {};
  const Flags yes = zero == zero, no = zero != zero;
  Flags inside = yes, undefined = no;
  V sum = zero;
  for (int axis = 0; axis < kAxes; ++axis) {
    inside &= IsInside(position[axis], Coordinate<A>(map.size[axis]), map.legacy_boundary);
    undefined |= position[axis] != position[axis];
    sum += position[axis];
  }
  const V nan_or_zero = undefined ? sum : zero;
  Location<kAxes, V> at;
  for (int axis = 0; axis < kAxes; ++axis) {
    const V low = Floor(inside ? position[axis] : zero);
    const Flags has_next = low < Coordinate<A>(map.last(axis));
    at.low[axis] = low;
    at.fraction[axis] = inside ? position[axis] - low : nan_or_zero;
    at.outside_low[axis] = (inside & (low >= A(0))) ^ yes;
    const Flags reads_next = map.legacy_boundary ? inside : inside & has_next;
    at.outside_high[axis] = map.whole_positions ? yes : reads_next ^ yes;
    at.repeats_low[axis] = map.legacy_boundary ? has_next ^ yes : no;
  }
  return at;
}

// Whole numbers as integers, in vectors of as many lanes. `V` is also a vector of flags.
template <typename Index, typename V>
JAX_DCN_INLINE Index ToIndex(V v) {
  if constexpr (std::is_arithmetic_v<V>) {
    return static_cast<Index>(v);
  } else {
#if !defined(__CUDACC__)
    return __builtin_convertvector(v, Index);
#endif
  }
}

// A flag as an integer: all bits set, or none.
template <typename Index, typename Flags>
JAX_DCN_INLINE Index AllBits(Flags flags) {
  if constexpr (std::is_same_v<Flags, bool>) {
    return -static_cast<Index>(flags);
  } else {
    return ToIndex<Index>(flags);
  }
}

// Element offsets of the 2^kAxes pixels around a position, or kOutside. The last axis varies
// fastest: (top, left), (top, right), (bottom, left), (bottom, right). The first pixel of the map
// is the element `first`; neighbours along an axis are `stride[axis]` elements apart. `Index` is
// an integer, or a vector of integers where `V` is one.
template <int kAxes, typename V, typename Flags, typename First, typename Stride, typename Index>
JAX_DCN_INLINE void SetCorners(const Location<kAxes, V, Flags>& at, First first,
                               const Stride (&stride)[kAxes], Index (&corner)[1 << kAxes]) {
  static_assert(kOutside == -1, "kOutside has all bits set");
  Index low = Index{} + first, step[kAxes];
  for (int axis = 0; axis < kAxes; ++axis) {
    low += ToIndex<Index>(at.low[axis]) * stride[axis];
    step[axis] = stride[axis] & ~AllBits<Index>(at.repeats_low[axis]);
  }
  for (int i = 0; i < 1 << kAxes; ++i) {
    Index element = low, outside = {};
    for (int axis = 0; axis < kAxes; ++axis) {
      const bool high = i >> (kAxes - 1 - axis) & 1;
      if (high) element += step[axis];
      outside |= AllBits<Index>(high ? at.outside_high[axis] : at.outside_low[axis]);
    }
    corner[i] = element | outside;
  }
}

}  // namespace jax_dcn

#endif  // JAX_DCN_COMMON_SAMPLING_LOCATE_H_
