// SPDX-License-Identifier: MIT
// Pairs of bfloat16, and sums of their products as the instruction VDPBF16PS of AVX-512 BF16 makes
// them.
#ifndef JAX_DCN_CPU_RUNTIME_PAIRS_H_
#define JAX_DCN_CPU_RUNTIME_PAIRS_H_

#include <cmath>
#include <cstdint>
#include <type_traits>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "common/sampling/half.h"
#include "cpu/runtime/simd.h"

namespace jax_dcn::JAX_DCN_ISA {

// Whether products of bfloat16 elements are computed as pairs. The emulation lets processors
// without the instruction test the packing and the kernels.
#if defined(__AVX512BF16__) || defined(JAX_DCN_EMULATE_AVX512_BF16)
constexpr bool kHasPairs = true;
#else
constexpr bool kHasPairs = false;
#endif

// Two elements that are neighbours in the depth of a product.
struct Pair {
  BFloat16 first, second;
};
using Pairs = Vector<uint32_t>;  // the first element of each pair is the lower half

// How the elements E of a product are packed, and in what type their products are summed.
template <typename E>
struct Packed {
  using Element = E;
  using Row = E;  // element of a matrix whose rows are multiplied by a transposed one
  using Sum = E;
  static constexpr int64_t kDepth = 1;  // elements of depth in one packed element
};
template <>
struct Packed<BFloat16> {
  using Element = Pair;
  using Row = BFloat16;
  using Sum = float;
  static constexpr int64_t kDepth = 2;
};

JAX_DCN_INLINE Pairs LoadPacked(const Pair* data) {
  Pairs pairs;
  __builtin_memcpy(&pairs, data, sizeof(pairs));
  return pairs;
}

JAX_DCN_INLINE void StorePacked(Pair* data, Pairs pairs) {
  __builtin_memcpy(data, &pairs, sizeof(pairs));
}

template <typename A>
JAX_DCN_INLINE auto LoadPacked(const A* data) {
  return Load(data);
}

// Pairs of the elements of two rows.
JAX_DCN_INLINE Pairs LoadPairs(const BFloat16* first, const BFloat16* second) {
  return BitCast<Pairs>(LoadSums(second)) | BitCast<Pairs>(LoadSums(first)) >> 16;
}

// Pairs as unsigned integers V, one or a vector of them, and their elements as floats.
template <typename V>
struct FloatsLike {
  using type = Vector<float, sizeof(V)>;
};
template <>
struct FloatsLike<uint32_t> {
  using type = float;
};
template <typename V>
using AsFloats = typename FloatsLike<V>::type;

template <typename V>
JAX_DCN_INLINE AsFloats<V> FirstOf(V pairs) {
  return BitCast<AsFloats<V>>(pairs << 16);
}

template <typename V>
JAX_DCN_INLINE AsFloats<V> SecondOf(V pairs) {
  return BitCast<AsFloats<V>>(pairs & 0xffff0000u);
}

template <typename V>
JAX_DCN_INLINE V RoundToPairsAs(AsFloats<V> first, AsFloats<V> second) {
  return RoundedBits<V>(first) >> 16 | (RoundedBits<V>(second) & 0xffff0000u);
}

JAX_DCN_INLINE uint32_t RoundToPairs(float first, float second) {
  return RoundToPairsAs<uint32_t>(first, second);
}

template <typename F>
JAX_DCN_INLINE Vector<uint32_t, sizeof(F)> RoundToPairs(F first, F second) {
#if defined(__AVX512BF16__) && !defined(JAX_DCN_EMULATE_AVX512_BF16)
  if constexpr (sizeof(F) == kVectorBytes) {
    static const Vector<uint16_t> order = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                           21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                           11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return (Vector<uint32_t>)_mm512_permutexvar_epi16(
        (__m512i)order, (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first));
  }
#endif
  return RoundToPairsAs<Vector<uint32_t, sizeof(F)>>(first, second);
}

// pairs = the elements of two rows
struct RowPairs {
  const BFloat16 *const first, *const second;
  Pair* const pairs;

  template <typename V>
  JAX_DCN_INLINE void At(int64_t i) {
    using F = AsFloats<V>;
    const V both = BitCast<V>(Read<F>(second + i)) | BitCast<V>(Read<F>(first + i)) >> 16;
    __builtin_memcpy(pairs + i, &both, sizeof(both));
  }
};

template <typename V, typename A>
JAX_DCN_INLINE V AddProduct(V sum, A factor, V right) {
  return sum + factor * right;
}

// Subnormal numbers count as zero.
JAX_DCN_INLINE float Flushed(float value) {
  return std::abs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value;
}

JAX_DCN_INLINE float AddFlushed(float sum, BFloat16 a, BFloat16 b) {
  return Flushed(std::fma(Flushed(ToFloat(a)), Flushed(ToFloat(b)), Flushed(sum)));
}

// The instruction's result in each lane: two fused multiply-adds, of the second elements and
// then of the first.
JAX_DCN_INLINE float ModelOfProduct(float sum, Pair a, Pair b) {
  return AddFlushed(AddFlushed(sum, a.second, b.second), a.first, b.first);
}

#if defined(__AVX512BF16__) && !defined(JAX_DCN_EMULATE_AVX512_BF16)
JAX_DCN_INLINE Vector<float> AddProduct(Vector<float> sum, Pair factor, Pairs right) {
  return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(BitCast<int32_t>(factor)),
                          (__m512bh)right);
}
#else
JAX_DCN_INLINE Vector<float> AddProduct(Vector<float> sum, Pair factor, Pairs right) {
  for (int i = 0; i < kLanes<float>; ++i) {
    const uint32_t bits = right[i];
    sum[i] = ModelOfProduct(sum[i], factor, BitCast<Pair>(bits));
  }
  return sum;
}
#endif

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_RUNTIME_PAIRS_H_
