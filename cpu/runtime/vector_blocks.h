// SPDX-License-Identifier: MIT
// Arrays in blocks of a few vectors, which are held in registers together.
#ifndef JAX_DCN_CPU_RUNTIME_VECTOR_BLOCKS_H_
#define JAX_DCN_CPU_RUNTIME_VECTOR_BLOCKS_H_

#include <cstdint>
#include <type_traits>
#include <utility>

#include "cpu/runtime/pairs.h"
#include "cpu/runtime/simd.h"

namespace jax_dcn::JAX_DCN_ISA {

// Calls `f.template At<V, kCount>(i)` for an array of `size` elements, from element i on: for
// blocks of four, two and one full vectors, then for one vector of each narrower width, then for
// scalars.
template <typename A, int kBytes = kVectorBytes, typename F>
JAX_DCN_INLINE void InBlocks(int64_t size, const F& f, int64_t i = 0) {
  if constexpr (kBytes < kNarrowestBytes) {
    for (; i < size; ++i) f.template At<A, 1>(i);
  } else {
    constexpr int64_t kWidth = kBytes / sizeof(A);
    if constexpr (kBytes == kVectorBytes) {
      for (; i + 4 * kWidth <= size; i += 4 * kWidth) f.template At<Vector<A>, 4>(i);
      for (; i + 2 * kWidth <= size; i += 2 * kWidth) f.template At<Vector<A>, 2>(i);
    }
    for (; i + kWidth <= size; i += kWidth) f.template At<Vector<A, kBytes>, 1>(i);
    InBlocks<A, kBytes / 2>(size, f, i);
  }
}

// A block of an array. The order of elements within a block is `StoreBlock`'s business alone.
template <int kCount, typename V, typename T>
JAX_DCN_INLINE void LoadBlock(const T* data, V (&block)[kCount]) {
  constexpr int kLanesOfV = sizeof(V) / sizeof(ToFloat(T{}));
  if constexpr (std::is_same_v<T, BFloat16> && kCount % 2 == 0) {
    // Pairs of elements: the first elements are one vector, the second elements another one.
#pragma GCC unroll 2
    for (int v = 0; v < kCount; v += 2) {
      Vector<uint32_t, sizeof(V)> pairs;
      __builtin_memcpy(&pairs, data + v * kLanesOfV, sizeof(pairs));
      block[v] = FirstOf(pairs), block[v + 1] = SecondOf(pairs);
    }
  } else {
#pragma GCC unroll 4
    for (int v = 0; v < kCount; ++v) block[v] = Read<V>(data + v * kLanesOfV);
  }
}

// Rounds a block to the type of the array.
template <int kCount, typename V, typename T>
JAX_DCN_INLINE void StoreBlock(T* data, const V (&block)[kCount]) {
  constexpr int kLanesOfV = sizeof(V) / sizeof(ToFloat(T{}));
  if constexpr (std::is_same_v<T, BFloat16> && kCount % 2 == 0) {
#pragma GCC unroll 2
    for (int v = 0; v < kCount; v += 2) {
      const auto pairs = RoundToPairsAs<Vector<uint32_t, sizeof(V)>>(block[v], block[v + 1]);
      __builtin_memcpy(data + v * kLanesOfV, &pairs, sizeof(pairs));
    }
  } else {
#pragma GCC unroll 4
    for (int v = 0; v < kCount; ++v) Write(data + v * kLanesOfV, block[v]);
  }
}

// Every second lane of two vectors, one after the other, from lane kFirst on.
template <int kFirst, typename V, int... kLane>
JAX_DCN_INLINE V EverySecond(V a, V b, std::integer_sequence<int, kLane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (2 * kLane + kFirst)...);
#else
  return __builtin_shuffle(a, b, decltype(a < b){(2 * kLane + kFirst)...});
#endif
}

template <typename A, typename V>
using LaneNumbers = std::make_integer_sequence<int, sizeof(V) / sizeof(A)>;

template <typename A, typename V>
JAX_DCN_INLINE V Evens(V a, V b) {
  return EverySecond<0>(a, b, LaneNumbers<A, V>());
}

template <typename A, typename V>
JAX_DCN_INLINE V Odds(V a, V b) {
  return EverySecond<1>(a, b, LaneNumbers<A, V>());
}

// The number of lanes in 16 bytes, or in a narrower vector. Shuffles within 16 bytes are a single
// instruction.
template <typename A, typename V>
constexpr int kNearLanes = static_cast<int>(sizeof(V) < 16 ? sizeof(V) : 16) / sizeof(A);

// The lane of (a, b) that lane `lane` of `SumOfNeighbours` adds to the next lane.
template <typename A, typename V>
constexpr int NeighbourOf(int lane) {
  constexpr int kNear = kNearLanes<A, V>, kAll = sizeof(V) / sizeof(A);
  const int first = lane / kNear * kNear, step = lane % kNear;
  return step < kNear / 2 ? first + 2 * step : kAll + first + 2 * step - kNear;
}

template <typename A, typename V, int... kLane>
JAX_DCN_INLINE V SumOfNeighbours(V a, V b, std::integer_sequence<int, kLane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, NeighbourOf<A, V>(kLane)...) +
         __builtin_shufflevector(a, b, (NeighbourOf<A, V>(kLane) + 1)...);
#else
  using Lanes = decltype(a < b);
  return __builtin_shuffle(a, b, Lanes{NeighbourOf<A, V>(kLane)...}) +
         __builtin_shuffle(a, b, Lanes{NeighbourOf<A, V>(kLane) + 1 ...});
#endif
}

// In each 16 bytes: the sums of two neighbours of `a`, then the sums of two neighbours of `b`.
template <typename A, typename V>
JAX_DCN_INLINE V SumOfNeighbours(V a, V b) {
  return SumOfNeighbours<A>(a, b, LaneNumbers<A, V>());
}

// Adds the vectors of 16 bytes in `vector`, or a narrower vector itself, to totals.
template <typename A, typename V>
JAX_DCN_INLINE void AddNear(V vector, A* totals) {
  if constexpr (sizeof(V) <= 16) {
    Write(totals, Read<V>(totals) + vector);
  } else {
    Vector<A, sizeof(V) / 2> halves[2];
    __builtin_memcpy(halves, &vector, sizeof(halves));
    AddNear(halves[0] + halves[1], totals);
  }
}

// Adds the sum of each of four vectors to a total.
template <typename A, typename V>
JAX_DCN_INLINE void AddSums(const V (&vectors)[4], A* totals) {
  if constexpr (sizeof(V) == sizeof(A)) {
    for (int i = 0; i < 4; ++i) totals[i] += vectors[i];
  } else {
    const V low = SumOfNeighbours<A>(vectors[0], vectors[1]);
    const V high = SumOfNeighbours<A>(vectors[2], vectors[3]);
    if constexpr (kNearLanes<A, V> == 2) {
      AddNear(low, totals);
      AddNear(high, totals + 2);
    } else {
      AddNear(SumOfNeighbours<A>(low, high), totals);
    }
  }
}

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_RUNTIME_VECTOR_BLOCKS_H_
