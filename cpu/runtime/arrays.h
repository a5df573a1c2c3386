// SPDX-License-Identifier: MIT
// Items of loops over whole arrays, which all threads share.
#ifndef JAX_DCN_CPU_RUNTIME_ARRAYS_H_
#define JAX_DCN_CPU_RUNTIME_ARRAYS_H_

#include <cstdint>

#include "cpu/runtime/parallel.h"
#include "cpu/runtime/simd.h"

namespace jax_dcn::JAX_DCN_ISA {

// Items that call `f(begin, size)` for the chunks of an array.
template <typename F>
auto Chunks(int64_t size, const F& f) {
  constexpr int64_t kChunk = 1 << 13;  // elements that one thread visits at a time
  return Items{CeilDiv(size, kChunk), [=](int64_t chunk, char*) {
                 f(chunk * kChunk, Min(kChunk, size - chunk * kChunk));
               }};
}

// Items that clear an array.
template <typename A>
auto Cleared(A* sums, int64_t size) {
  return Chunks(size, [=](int64_t begin, int64_t count) {
    __builtin_memset(sums + begin, 0, count * sizeof(A));
  });
}

// sums += terms
template <typename A, typename T>
struct Addition {
  A* const sums;
  const T* const terms;

  template <typename V>
  JAX_DCN_INLINE void At(int64_t i) {
    Write(sums + i, Read<V>(sums + i) + Read<V>(terms + i));
  }
};

template <typename A, typename T>
JAX_DCN_INLINE void AddTo(A* sums, const T* terms, int64_t size) {
  Addition<A, T> addition = {sums, terms};
  Vectorised<A>(size, addition);
}

// Items that round sums to the type of the result.
template <typename T, typename A>
auto Rounded(T* result, const A* sums, int64_t size) {
  return Chunks(
      size, [=](int64_t begin, int64_t count) { RoundInto(result + begin, sums + begin, count); });
}

// Items that convert an array of a narrower type.
template <typename T, typename A>
auto Widened(A* wide, const T* data, int64_t size) {
  return Chunks(size,
                [=](int64_t begin, int64_t count) { Widen(wide + begin, data + begin, count); });
}

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_RUNTIME_ARRAYS_H_
