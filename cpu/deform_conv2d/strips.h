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

// A strip of pixels is what one thread multiplies at once. Its columns fill about half of a
// second-level cache, what else it keeps for each pixel a quarter, and its samples, with the
// largest kernels, no more than this.
constexpr int64_t kStripPixels = 192, kStripBytes = 128 << 10, kStripSampleBytes = 1 << 20;

// Whether sums are of the type of the result, and can be made in its place.
template <typename T>
constexpr bool kSumsInPlace = sizeof(T) == sizeof(typename Accumulator<T>::type);

// Whether columns may be rounded to T and multiplied as pairs.
template <typename T>
constexpr bool kMayPair = kHasPairs && std::is_same<T, BFloat16>::value;

// Channels of an offset group from which on pairs pay: samples of fewer are slower to round.
constexpr int64_t kPairedChannels = 8;

// Whether columns are rounded and multiplied as pairs: not where float32 is asked for, nor where a
// channel or a feature would have no partner. The problem alone decides.
inline bool MakesPairs(const DeformConv2dProblem& problem) {
  return !problem.float32_columns && problem.offset_group_channels() >= kPairedChannels &&
         problem.offset_group_channels() % 2 == 0 && problem.group_channels() % 2 == 0 &&
         problem.group_features() % 2 == 0;
}

// Images of a narrower type are widened before they are sampled, since every pixel is read dozens
// of times: as many at once as fit into this, at least one.
constexpr int64_t kWideImageBytes = 4 << 20;

// Pixels of a strip that keeps `pixel_bytes` for each in cache.
JAX_DCN_INLINE int64_t StripPixels(const DeformConv2dProblem& problem, int64_t pixel_bytes) {
  const int64_t sample_bytes = problem.taps() * sizeof(MaskedSample<double>);
  const int64_t fit = Min(kStripBytes / Max(1, pixel_bytes), kStripSampleBytes / sample_bytes);
  return Max(1, Min(kStripPixels, fit) / kTileRows) * kTileRows;
}

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_DEFORM_CONV2D_STRIPS_H_
