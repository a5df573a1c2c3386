// SPDX-License-Identifier: MIT
// How many pixels one thread multiplies at once, and in what type it sums them.
#ifndef JAX_DCN_CPU_DEFORM_CONV2D_STRIPS_H_
#define JAX_DCN_CPU_DEFORM_CONV2D_STRIPS_H_

#include <cstdint>
#include <type_traits>

#include "common/deform_conv2d/problem.h"
#include "cpu/runtime/pairs.h"
#include "cpu/runtime/simd.h"
#include "cpu/sampling/samples.h"

namespace jax_dcn::JAX_DCN_ISA {

// A strip is the pixels that one thread multiplies at once. The columns of a strip fill about half
// of a second-level cache, and the other arrays of a strip a quarter. This constant bounds the
// samples of a strip, which are many with the largest kernels.
constexpr int64_t kStripPixels = 192, kStripBytes = 128 << 10, kStripSampleBytes = 1 << 20;

// Whether sums have the type of the result, so that the result holds the sums.
template <typename T>
constexpr bool kSumsInPlace = sizeof(T) == sizeof(typename Accumulator<T>::type);

// Whether columns may be rounded to T and multiplied as pairs.
template <typename T>
constexpr bool kMayPair = kHasPairs && std::is_same<T, BFloat16>::value;

// The fewest channels of an offset group for which products of pairs are faster: rounding the
// samples of fewer channels takes longer than the products save.
constexpr int64_t kPairedChannels = 8;

// Whether columns are rounded and multiplied as pairs. They are not if the call asks for float32,
// nor if a channel or a feature would have no partner. The problem alone decides.
inline bool MakesPairs(const DeformConv2dProblem& problem) {
  return !problem.float32_columns && problem.offset_group_channels() >= kPairedChannels &&
         problem.offset_group_channels() % 2 == 0 && problem.group_channels() % 2 == 0 &&
         problem.group_features() % 2 == 0;
}

// Images of a narrower type are widened before they are sampled, since every pixel is read dozens
// of times. This constant bounds the widened images in memory; one image always fits.
constexpr int64_t kWideImageBytes = 4 << 20;

// The pixels of a strip that keeps `pixel_bytes` for each pixel in cache.
JAX_DCN_INLINE int64_t StripPixels(const DeformConv2dProblem& problem, int64_t pixel_bytes) {
  const int64_t sample_bytes = problem.taps() * sizeof(MaskedSample<double>);
  const int64_t fit = Min(kStripBytes / Max(1, pixel_bytes), kStripSampleBytes / sample_bytes);
  return Max(1, Min(kStripPixels, fit) / kTileRows) * kTileRows;
}

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_DEFORM_CONV2D_STRIPS_H_
