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

template <typename A, typename V>
JAX_DCN_INLINE V SumOfNeighbours(V a, V b) {
  return Evens<A>(a, b) + Odds<A>(a, b);
}

// Adds the sum of each of four vectors to a total.
template <typename A, typename V>
JAX_DCN_INLINE void AddSums(const V (&vectors)[4], A* totals) {
  constexpr int kLanesOfV = sizeof(V) / sizeof(A);
  if constexpr (kLanesOfV == 1) {
    for (int i = 0; i < 4; ++i) totals[i] += vectors[i];
  } else {
    const V low = SumOfNeighbours<A>(vectors[0], vectors[1]);
    const V high = SumOfNeighbours<A>(vectors[2], vectors[3]);
    if constexpr (kLanesOfV == 2) {
      Write(totals, Read<V>(totals) + low);
      Write(totals + 2, Read<V>(totals + 2) + high);
    } else {
      V sums = SumOfNeighbours<A>(low, high);
      for (int lanes = kLanesOfV; lanes > 4; lanes /= 2) sums = SumOfNeighbours<A>(sums, sums);
      using Four = Vector<A, 4 * sizeof(A)>;
      Four four;
      __builtin_memcpy(&four, &sums, sizeof(four));
      for (int i = 0; i < 4; ++i) totals[i] += four[i];
    }
  }
}

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_RUNTIME_VECTOR_BLOCKS_H_
