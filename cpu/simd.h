// SPDX-License-Identifier: MIT
// Vectors of the width of the instruction set that the including file is compiled for.
//
// The build compiles the kernels once for each instruction set, with JAX_DCN_ISA naming it:
// everything here and in the kernels lives in a namespace of that name, so that the linker never
// mixes two of them.
#ifndef JAX_DCN_CPU_SIMD_H_
#define JAX_DCN_CPU_SIMD_H_

#include <cstdint>

#include "common/bilinear.h"

namespace jax_dcn::JAX_DCN_ISA {

// Bytes of a vector register, and how many vectors by how many rows of a product they can hold
// besides the operands: fourteen of sixteen registers, or twenty-six of thirty-two. The emulation
// lets processors without AVX-512 test the shape of its tiles.
#if defined(__AVX512F__) || defined(JAX_DCN_EMULATE_AVX512)
constexpr int kVectorBytes = 64, kTileVectors = 2, kTileRows = 12;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32, kTileVectors = 2, kTileRows = 6;
#else
constexpr int kVectorBytes = 16, kTileVectors = 2, kTileRows = 6;
#endif

template <typename A>
struct VectorOf {
  typedef A type __attribute__((vector_size(kVectorBytes)));
};
template <typename A>
using Vector = typename VectorOf<A>::type;

template <typename A>
constexpr int kLanes = kVectorBytes / sizeof(A);

template <typename A>
JAX_DCN_INLINE Vector<A> Load(const A* data) {
  Vector<A> vector;
  __builtin_memcpy(&vector, data, sizeof(vector));
  return vector;
}

template <typename A>
JAX_DCN_INLINE void Store(A* data, Vector<A> vector) {
  __builtin_memcpy(data, &vector, sizeof(vector));
}

template <typename A>
JAX_DCN_INLINE A Sum(Vector<A> vector) {
  A sum = 0;
  for (int i = 0; i < kLanes<A>; ++i) sum += vector[i];
  return sum;
}

JAX_DCN_INLINE int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
JAX_DCN_INLINE int64_t Max(int64_t a, int64_t b) { return a > b ? a : b; }
JAX_DCN_INLINE int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
JAX_DCN_INLINE int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_SIMD_H_
