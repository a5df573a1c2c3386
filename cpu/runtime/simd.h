// SPDX-License-Identifier: MIT
// Vectors of the width of the instruction set that the including file is compiled for.
//
// The build compiles the kernels once for each instruction set, with JAX_DCN_ISA naming it:
// everything here and in the kernels lives in a namespace of that name, so that the linker never
// mixes two of them.
#ifndef JAX_DCN_CPU_RUNTIME_SIMD_H_
#define JAX_DCN_CPU_RUNTIME_SIMD_H_

#include <cstdint>
#include <type_traits>

#if defined(__F16C__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "common/sampling/half.h"

namespace jax_dcn::JAX_DCN_ISA {

// Bytes of a vector register, and the tile of a product: kTileRows rows of kTileVectors vectors. A
// tile takes at most fourteen of sixteen registers, or twenty-six of thirty-two; operands take the
// rest. The emulation lets processors without AVX-512 test the shape of its tiles. kFactorBytes:
// bytes of factors that one instruction loads, on processors whose products cannot read a factor
// from memory; the other registers then hold several rows of the panel.
#if defined(__AVX512F__) || defined(JAX_DCN_EMULATE_AVX512)
constexpr int kVectorBytes = 64, kTileVectors = 2, kTileRows = 12;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32, kTileVectors = 2, kTileRows = 6;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16, kTileVectors = 2, kTileRows = 8;
#else
constexpr int kVectorBytes = 16, kTileVectors = 2, kTileRows = 6;
#endif
#if defined(__aarch64__)
constexpr int64_t kFactorBytes = 16;
#else
constexpr int64_t kFactorBytes = 0;
#endif

template <typename A, int kBytes>
struct VectorOf {
  typedef A type __attribute__((vector_size(kBytes)));
};
template <typename A, int kBytes = kVectorBytes>
using Vector = typename VectorOf<A, kBytes>::type;

// Bytes of the narrowest vector. Elements that are left after vectors of all widths are scalars.
constexpr int kNarrowestBytes = 16;

template <typename A>
constexpr int kLanes = kVectorBytes / sizeof(A);

// An integer as wide as a coordinate, so that a vector holds as many.
template <typename A>
using IndexOf = std::conditional_t<sizeof(A) == sizeof(int64_t), int64_t, int32_t>;

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

// Vectors of the type of sums, loaded from and stored to arrays of a narrower type.
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

// Loads a vector of bfloat16, which are the upper halves of floats.
template <typename V>
JAX_DCN_INLINE V LoadSumsAs(const BFloat16* data) {
  using Halves = Vector<uint16_t, sizeof(V) / 2>;
  using Words = Vector<uint32_t, sizeof(V)>;
  Halves halves;
  __builtin_memcpy(&halves, data, sizeof(halves));
#if defined(__AVX512F__) && !defined(JAX_DCN_EMULATE_AVX512)
  if constexpr (sizeof(V) == 64) {  // GCC makes two vectors of half the width
    return BitCast<V>((Words)_mm512_cvtepu16_epi32((__m256i)halves) << 16);
  }
#endif
  return BitCast<V>(__builtin_convertvector(halves, Words) << 16);
}

JAX_DCN_INLINE Vector<float> LoadSums(const BFloat16* data) {
  return LoadSumsAs<Vector<float>>(data);
}

// Rounds a float or a vector of floats to the nearest bfloat16, in the upper half of each word.
template <typename Words, typename V>
JAX_DCN_INLINE Words RoundedBits(V value) {
  const Words bits = BitCast<Words>(value);
  return value != value ? (bits | 0x400000u) : bits + 0x7fffu + (bits >> 16 & 1u);
}

template <typename V>
JAX_DCN_INLINE void StoreRoundedAs(BFloat16* data, V sums) {
  using Halves = Vector<uint16_t, sizeof(V) / 2>;
  const auto words = RoundedBits<Vector<uint32_t, sizeof(V)>>(sums);
  const Halves halves = __builtin_convertvector(words >> 16, Halves);
  __builtin_memcpy(data, &halves, sizeof(halves));
}

JAX_DCN_INLINE void StoreRounded(BFloat16* data, Vector<float> sums) { StoreRoundedAs(data, sums); }

#if defined(__aarch64__)
JAX_DCN_INLINE Vector<float> LoadSums(const Float16* data) {
  float16x4_t halves;
  __builtin_memcpy(&halves, data, sizeof(halves));
  return BitCast<Vector<float>>(vcvt_f32_f16(halves));
}

JAX_DCN_INLINE void StoreRounded(Float16* data, Vector<float> sums) {
  const float16x4_t halves = vcvt_f16_f32(BitCast<float32x4_t>(sums));
  __builtin_memcpy(data, &halves, sizeof(halves));
}
#endif

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

// Reads or writes a scalar, or a vector of any width, in an array of its type or a narrower type.
template <typename V, typename T>
JAX_DCN_INLINE V Read(const T* data) {
  using A = decltype(ToFloat(T{}));
  V value;
  if constexpr (sizeof(V) == sizeof(A)) {
    value = ToFloat(*data);
  } else if constexpr (sizeof(T) == sizeof(A)) {
    __builtin_memcpy(&value, data, sizeof(value));
  } else if constexpr (std::is_same<T, BFloat16>::value) {
    value = LoadSumsAs<V>(data);
  } else if constexpr (sizeof(V) == kVectorBytes) {
    value = LoadSums(data);
  } else {
    for (size_t i = 0; i < sizeof(V) / sizeof(A); ++i) value[i] = ToFloat(data[i]);
  }
  return value;
}

template <typename V, typename T>
JAX_DCN_INLINE void Write(T* data, V value) {
  if constexpr (sizeof(T) >= sizeof(float)) {
    __builtin_memcpy(data, &value, sizeof(value));
  } else if constexpr (sizeof(V) == sizeof(float)) {
    *data = FromFloat<T>::Round(value);
  } else if constexpr (std::is_same<T, BFloat16>::value) {
    StoreRoundedAs(data, value);
  } else if constexpr (sizeof(V) == kVectorBytes) {
    StoreRounded(data, value);
  } else {
    for (size_t i = 0; i < sizeof(V) / sizeof(float); ++i) data[i] = FromFloat<T>::Round(value[i]);
  }
}

// Calls `f.template At<V>(i)` for an array of `size` elements, from element i on: in full vectors,
// then in at most one vector of each narrower width, then in scalars.
template <typename A, int kBytes = kVectorBytes, typename F>
JAX_DCN_INLINE void Vectorised(int64_t size, F& f, int64_t i = 0) {
  if constexpr (kBytes < kNarrowestBytes) {
    for (; i < size; ++i) f.template At<A>(i);
  } else {
    constexpr int64_t kWidth = kBytes / sizeof(A);
    for (; i + kWidth <= size; i += kWidth) f.template At<Vector<A, kBytes>>(i);
    Vectorised<A, kBytes / 2>(size, f, i);
  }
}

// Calls `f(Number<size>())` if `size` is a power of two of at most 32 bytes, or is 256 bytes, so
// that the compiler knows the number of steps of a short loop. Calls `f(Number<0>())` for all other
// sizes.
template <int kValue>
struct Number {
  static constexpr int value = kValue;
};

template <typename A, int kMost = 32 / sizeof(A), typename F>
JAX_DCN_INLINE void WithWidth(int64_t size, const F& f) {
  constexpr int kLargest = 256 / sizeof(A);
  if constexpr (kMost == 0) {
    size == kLargest ? f(Number<kLargest>()) : f(Number<0>());
  } else {
    size == kMost ? f(Number<kMost>()) : WithWidth<A, kMost / 2>(size, f);
  }
}

// Like `Vectorised`, for the size kWidth; if kWidth is 0, for any `size`.
template <typename A, int kWidth, typename F>
JAX_DCN_INLINE void VectorisedBy(int64_t size, F& f) {
  if constexpr (kWidth == 0) {
    Vectorised<A>(size, f);
  } else if constexpr (kWidth == 1) {
    f.template At<A>(0);
  } else if constexpr (kWidth > kLanes<A>) {
#pragma GCC unroll 16
    for (int64_t i = 0; i < kWidth; i += kLanes<A>) f.template At<Vector<A>>(i);
  } else {
    f.template At<Vector<A, kWidth * sizeof(A)>>(0);
  }
}

// The sum of a vector's lanes: adds its halves, then the halves of the result.
template <typename A, int kBytes>
JAX_DCN_INLINE A Sum(Vector<A, kBytes> vector) {
  if constexpr (kBytes == sizeof(A)) {
    return vector[0];
  } else {
    Vector<A, kBytes / 2> halves[2];
    __builtin_memcpy(halves, &vector, sizeof(halves));
    return Sum<A, kBytes / 2>(halves[0] + halves[1]);
  }
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

constexpr JAX_DCN_INLINE int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr JAX_DCN_INLINE int64_t Max(int64_t a, int64_t b) { return a > b ? a : b; }
JAX_DCN_INLINE int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
JAX_DCN_INLINE int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_RUNTIME_SIMD_H_
