// SPDX-License-Identifier: MIT
// Floating-point types: the 16-bit types and their conversions, and the type in which sums are
// kept.
#ifndef JAX_DCN_COMMON_SAMPLING_HALF_H_
#define JAX_DCN_COMMON_SAMPLING_HALF_H_

#include <cstdint>

#include "common/sampling/inline.h"

namespace jax_dcn {

// The upper half of a float.
struct BFloat16 {
  uint16_t bits;
};

// IEEE half: 5 bits of exponent, 10 of fraction.
struct Float16 {
  uint16_t bits;
};

// The type of coordinates and sums: never narrower than float.
template <typename T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};

template <typename To, typename From>
JAX_DCN_INLINE To BitCast(From from) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

JAX_DCN_INLINE float ToFloat(float value) { return value; }
JAX_DCN_INLINE double ToFloat(double value) { return value; }

JAX_DCN_INLINE float ToFloat(BFloat16 value) {
  return BitCast<float>(static_cast<uint32_t>(value.bits) << 16);
}

JAX_DCN_INLINE float ToFloat(Float16 value) {
#if defined(__CUDA_ARCH__)
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
#else
  const uint32_t sign = (value.bits & 0x8000u) << 16, rest = value.bits & 0x7fffu;
  float magnitude;
  if (rest < 0x0400u) {  // subnormal: exact as an integer, which no mode of the processor flushes
    magnitude = static_cast<float>(rest) * 0x1p-24f;
  } else {
    const uint32_t exponent = rest >= 0x7c00u ? 255 - 31 : 127 - 15;
    magnitude = BitCast<float>((rest << 13) + (exponent << 23));
  }
  return BitCast<float>(BitCast<uint32_t>(magnitude) | sign);
#endif
}

// Rounds to the nearest value; of two nearest values, to the even one.
template <typename T>
struct FromFloat;

template <>
struct FromFloat<float> {
  static JAX_DCN_INLINE float Round(float value) { return value; }
};

template <>
struct FromFloat<double> {
  static JAX_DCN_INLINE double Round(double value) { return value; }
};

template <>
struct FromFloat<BFloat16> {
  static JAX_DCN_INLINE BFloat16 Round(float value) {
#if defined(__CUDA_ARCH__)
    BFloat16 rounded;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded.bits) : "f"(value));
    return rounded;
#else
    const uint32_t bits = BitCast<uint32_t>(value);
    if (value != value) return {static_cast<uint16_t>(bits >> 16 | 0x40u)};
    return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
#endif
  }
};

template <>
struct FromFloat<Float16> {
  static JAX_DCN_INLINE Float16 Round(float value) {
#if defined(__CUDA_ARCH__)
    Float16 rounded;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(rounded.bits) : "f"(value));
    return rounded;
#else
    const uint32_t bits = BitCast<uint32_t>(value), sign = bits >> 16 & 0x8000u;
    const uint32_t rest = bits & 0x7fffffffu;
    uint32_t half;
    if (rest > 0x7f800000u) {
      half = 0x7e00u;
    } else if (rest >= 0x477ff000u) {  // 65520 and above round to infinity
      half = 0x7c00u;
    } else if (rest < 0x38800000u) {  // below 2^-14: a whole number of 2^-24
      // Adding 2^23 leaves, in the last bits, the number rounded to the nearest integer.
      half = BitCast<uint32_t>(BitCast<float>(rest) * 0x1p24f + 0x1p23f) - 0x4b000000u;
    } else {
      half = (rest - (112u << 23) + 0xfffu + (rest >> 13 & 1u)) >> 13;
    }
    return {static_cast<uint16_t>(half | sign)};
#endif
  }
};

}  // namespace jax_dcn

#endif  // JAX_DCN_COMMON_SAMPLING_HALF_H_
