// SPDX-License-Identifier: MIT
// Vectors of the width of the instruction set that the including file is compiled for.
//
// The build compiles the kernels once for each instruction set, with JAX_DCN_ISA naming it:
// everything here and in the kernels lives in a namespace of that name, so that the linker never
// mixes two of them.
#ifndef JAX_DCN_CPU_RUNTIME_SIMD_H_
#define JAX_DCN_CPU_RUNTIME_SIMD_H_

#include <cstdint>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "common/sampling/half.h"

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

// Vectors of the type that sums have, from and to arrays of a narrower one.
template <typename T>
using Sums = Vector<decltype(ToFloat(T{}))>;

template <typename T>
JAX_DCN_INLINE Sums<T> LoadSums(const T* data) {
  if constexpr (sizeof(T) >= sizeof(float)) {
    return Load(data);
  } else {
    Sums<T> sums;
    for (int i = 0; i < kLanes<float>; ++i) sums[i] = ToFloat(data[i]);
    return sums;
  }
}

template <typename T>
JAX_DCN_INLINE void StoreRounded(T* data, Sums<T> sums) {
  for (int i = 0; i < kLanes<decltype(ToFloat(T{}))>; ++i) {
    data[i] = FromFloat<T>::Round(sums[i]);
  }
}

// The upper halves of floats, all at once.
JAX_DCN_INLINE Vector<float> LoadSums(const BFloat16* data) {
  typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));
  typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
  Halves halves;
  __builtin_memcpy(&halves, data, sizeof(halves));
  return BitCast<Vector<float>>(__builtin_convertvector(halves, Words) << 16);
}

JAX_DCN_INLINE void StoreRounded(BFloat16* data, Vector<float> sums) {
  typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));
  typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
  const Words bits = BitCast<Words>(sums), nan = bits >> 16 | 0x40u;
  const Words nearest = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const Halves halves = __builtin_convertvector(sums != sums ? nan : nearest, Halves);
  __builtin_memcpy(data, &halves, sizeof(halves));
}

#if defined(__F16C__) && !defined(JAX_DCN_EMULATE_AVX512)
#if defined(__AVX512F__)
JAX_DCN_INLINE Vector<float> LoadSums(const Float16* data) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(data)));
}

JAX_DCN_INLINE void StoreRounded(Float16* data, Vector<float> sums) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(data),
                      _mm512_cvtps_ph(sums, _MM_FROUND_TO_NEAREST_INT));
}
#else
JAX_DCN_INLINE Vector<float> LoadSums(const Float16* data) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data)));
}

JAX_DCN_INLINE void StoreRounded(Float16* data, Vector<float> sums) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(data),
                   _mm256_cvtps_ph(sums, _MM_FROUND_TO_NEAREST_INT));
}
#endif
#endif

// Adds the halves of a vector, and theirs.
template <typename A, int kBytes = kVectorBytes>
JAX_DCN_INLINE A Sum(const A* lanes) {
  if constexpr (kBytes == sizeof(A)) {
    return *lanes;
  } else {
    typedef A Half __attribute__((vector_size(kBytes / 2)));
    Half low, high;
    __builtin_memcpy(&low, lanes, sizeof(low));
    __builtin_memcpy(&high, lanes + sizeof(low) / sizeof(A), sizeof(high));
    low += high;
    return Sum<A, kBytes / 2>(reinterpret_cast<const A*>(&low));
  }
}

// A vector, or at the end of an array a single number, so that loops over both read alike.
template <typename V, typename T>
JAX_DCN_INLINE V Read(const T* data) {
  if constexpr (sizeof(V) == kVectorBytes) {
    return LoadSums(data);
  } else {
    return ToFloat(*data);
  }
}

template <typename V, typename A>
JAX_DCN_INLINE void Write(A* data, V value) {
  __builtin_memcpy(data, &value, sizeof(value));
}

// Calls `f.template At<V>(i)` for every i in [0, size), in vectors and what is left in numbers.
template <typename A, typename F>
JAX_DCN_INLINE void Vectorised(int64_t size, F& f) {
  int64_t i = 0;
  for (; i + kLanes<A> <= size; i += kLanes<A>) f.template At<Vector<A>>(i);
  for (; i < size; ++i) f.template At<A>(i);
}

// Rounds sums to the type of the result.
template <typename T, typename A>
void RoundInto(T* result, const A* sums, int64_t size) {
  int64_t i = 0;
  for (; i + kLanes<A> <= size; i += kLanes<A>) StoreRounded(result + i, Load(sums + i));
  for (; i < size; ++i) result[i] = FromFloat<T>::Round(sums[i]);
}

template <typename T, typename A>
void Widen(A* sums, const T* data, int64_t size) {
  int64_t i = 0;
  for (; i + kLanes<A> <= size; i += kLanes<A>) Store<A>(sums + i, LoadSums(data + i));
  for (; i < size; ++i) sums[i] = ToFloat(data[i]);
}

JAX_DCN_INLINE int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
JAX_DCN_INLINE int64_t Max(int64_t a, int64_t b) { return a > b ? a : b; }
JAX_DCN_INLINE int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
JAX_DCN_INLINE int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_RUNTIME_SIMD_H_
