// SPDX-License-Identifier: MIT
// Loops over whole arrays, which all threads share.
#ifndef JAX_DCN_CPU_RUNTIME_ARRAYS_H_
#define JAX_DCN_CPU_RUNTIME_ARRAYS_H_

#include <cstdint>

#include "cpu/runtime/parallel.h"
#include "cpu/runtime/simd.h"

namespace jax_dcn::JAX_DCN_ISA {

// Calls `f(begin, size)` for the chunks of an array.
template <typename F>
void ForEachChunk(Executor& executor, int64_t size, const F& f) {
  constexpr int64_t kChunk = 1 << 16;  // numbers that one thread visits at a time
  ParallelFor(executor, CeilDiv(size, kChunk), 0,
              [&](int64_t chunk, char*) { f(chunk * kChunk, Min(kChunk, size - chunk * kChunk)); });
}

template <typename A>
void ParallelClear(Executor& executor, A* sums, int64_t size) {
  ForEachChunk(executor, size, [=](int64_t begin, int64_t count) {
    __builtin_memset(sums + begin, 0, count * sizeof(A));
  });
}

template <typename T, typename A>
void ParallelRound(Executor& executor, T* result, const A* sums, int64_t size) {
  ForEachChunk(executor, size, [=](int64_t begin, int64_t count) {
    RoundInto(result + begin, sums + begin, count);
  });
}

template <typename T, typename A>
void ParallelWiden(Executor& executor, A* wide, const T* data, int64_t size) {
  ForEachChunk(executor, size,
               [=](int64_t begin, int64_t count) { Widen(wide + begin, data + begin, count); });
}

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_RUNTIME_ARRAYS_H_
