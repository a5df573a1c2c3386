// SPDX-License-Identifier: MIT
// How many pixels one thread multiplies at once, and in what type it sums them.
#ifndef JAX_DCN_CPU_KERNELS_STRIPS_H_
#define JAX_DCN_CPU_KERNELS_STRIPS_H_

#include <cstdint>

#include "common/deform_conv2d.h"
#include "cpu/kernels/simd.h"

namespace jax_dcn::JAX_DCN_ISA {

// A strip is what one thread multiplies at once: its rows of features fill about a quarter of a
// second-level cache.
constexpr int64_t kStripPixels = 192, kStripBytes = 128 << 10;

// Whether sums are of the type of the result, and can be made in its place.
template <typename T>
constexpr bool kSumsInPlace = sizeof(T) == sizeof(typename Accumulator<T>::type);

// Pixels whose rows of features, in the type of sums, fit into a strip.
template <typename A>
int64_t StripPixels(const DeformConv2dProblem& problem) {
  const int64_t fit = kStripBytes / (problem.features * static_cast<int64_t>(sizeof(A)));
  return Max(1, Min(kStripPixels, fit) / kTileRows) * kTileRows;
}

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_KERNELS_STRIPS_H_
