// SPDX-License-Identifier: MIT
// Bilinear interpolation: the four pixels around a position, and their weights.
#ifndef JAX_DCN_COMMON_SAMPLING_BILINEAR_H_
#define JAX_DCN_COMMON_SAMPLING_BILINEAR_H_

#include <cstdint>

#include "common/sampling/inline.h"
#include "common/sampling/locate.h"

namespace jax_dcn {

constexpr int kCorners = 4;

// Four pixels, (top, left), (top, right), (bottom, left), (bottom, right), and a position between
// them.
template <typename A>
struct BilinearSample {
  int64_t corner[kCorners];  // element offset of each pixel, or kOutside: contributes nothing
  A y, x;                    // position within the square of the corners, in [0, 1]
};

// The weight of each corner in a sample's value, or in its derivative.
template <typename A>
struct CornerWeights {
  A corner[kCorners];
};

// The sample at (h, w), in pixels; its corners are row * width + column.
template <typename A, typename Size>
JAX_DCN_INLINE BilinearSample<A> SampleAt(const SampledMap<2, Size>& map, A h, A w) {
  const A position[] = {h, w};
  const Location<2, A> at = Locate<A>(map, position);
  const int64_t stride[] = {map.size[1], 1};
  BilinearSample<A> sample = {{}, at.fraction[0], at.fraction[1]};
  SetCorners(at, 0, stride, sample.corner);
  return sample;
}

// Weights of the interpolated value, times `scale`.
template <typename A>
JAX_DCN_INLINE CornerWeights<A> ValueWeights(const BilinearSample<A>& s, A scale) {
  const A bottom = s.y * scale, top = scale - bottom;
  return {{top * (1 - s.x), top * s.x, bottom * (1 - s.x), bottom * s.x}};
}

// Weights of the derivative of the value as the position moves by (y_dot, x_dot).
template <typename A>
JAX_DCN_INLINE CornerWeights<A> DerivativeWeights(const BilinearSample<A>& s, A y_dot, A x_dot) {
  return {{-(1 - s.x) * y_dot - (1 - s.y) * x_dot,  //
           -s.x * y_dot + (1 - s.y) * x_dot,        //
           (1 - s.x) * y_dot - s.y * x_dot,         //
           s.x * y_dot + s.y * x_dot}};
}

// Sum of products: weights times dot products, corner by corner.
template <typename A>
JAX_DCN_INLINE A Combine(const CornerWeights<A>& weights, const A* dots) {
  A sum = {};
  for (int i = 0; i < kCorners; ++i) sum += weights.corner[i] * dots[i];
  return sum;
}

}  // namespace jax_dcn

#endif  // JAX_DCN_COMMON_SAMPLING_BILINEAR_H_
