// SPDX-License-Identifier: MIT
// Bilinear interpolation: where a position lies between four pixels, and what that makes of them.
#ifndef JAX_DCN_COMMON_SAMPLING_BILINEAR_H_
#define JAX_DCN_COMMON_SAMPLING_BILINEAR_H_

#include <cstdint>

#if defined(__CUDACC__)
#define JAX_DCN_INLINE __host__ __device__ __forceinline__
#else
// Never emitted as a function of its own: the linker must not keep a copy that was compiled for a
// newer processor than the one it runs on.
#define JAX_DCN_INLINE inline __attribute__((always_inline))
#endif

namespace jax_dcn {

constexpr int kCorners = 4;
constexpr int64_t kOutside = -1;

// One read of an image. Corners are in the order (top, left), (top, right), (bottom, left),
// (bottom, right).
template <typename A>
struct BilinearSample {
  int64_t corner[kCorners];  // row * width + column, or kOutside: contributes nothing
  A y, x;                    // position within the square of the corners, [0, 1)
};

// How the corners are weighted; the weights of a sample, or of its derivative.
template <typename A>
struct CornerWeights {
  A corner[kCorners];
};

// Reads at (h, w), in pixels. Inside is -1 < h < height, or 0 <= h < height by the legacy rule,
// where the last row and column stand in for those beyond the image. A position that is not a
// number has no corners and fractions that are not numbers.
template <typename A>
JAX_DCN_INLINE BilinearSample<A> SampleAt(A h, A w, int64_t height, int64_t width, bool legacy) {
  BilinearSample<A> sample = {{kOutside, kOutside, kOutside, kOutside}, A(0), A(0)};
  const bool inside = (legacy ? h >= 0 && w >= 0 : h > -1 && w > -1) &&
                      h < static_cast<A>(height) && w < static_cast<A>(width);
  if (!inside) {
    if (h != h || w != w) sample.y = sample.x = h + w;
    return sample;
  }
  // Rounds towards zero, then down: positions inside are small enough for an integer.
  int64_t top = static_cast<int64_t>(h), left = static_cast<int64_t>(w);
  top -= h < static_cast<A>(top);
  left -= w < static_cast<A>(left);
  sample.y = h - static_cast<A>(top);
  sample.x = w - static_cast<A>(left);
  for (int i = 0; i < kCorners; ++i) {
    int64_t row = top + i / 2, column = left + i % 2;
    if (legacy) {
      row = row < height ? row : height - 1;
      column = column < width ? column : width - 1;
    }
    const bool in_image = row >= 0 && row < height && column >= 0 && column < width;
    sample.corner[i] = in_image ? row * width + column : kOutside;
  }
  return sample;
}

// Weights of the interpolated value, times `scale`.
template <typename A>
JAX_DCN_INLINE CornerWeights<A> ValueWeights(const BilinearSample<A>& s, A scale) {
  const A bottom = s.y * scale, top = scale - bottom;
  return {{top * (1 - s.x), top * s.x, bottom * (1 - s.x), bottom * s.x}};
}

// Weights of the value's derivative along (y_dot, x_dot).
template <typename A>
JAX_DCN_INLINE CornerWeights<A> DerivativeWeights(const BilinearSample<A>& s, A y_dot, A x_dot) {
  return {{-(1 - s.x) * y_dot - (1 - s.y) * x_dot,  //
           -s.x * y_dot + (1 - s.y) * x_dot,        //
           (1 - s.x) * y_dot - s.y * x_dot,         //
           s.x * y_dot + s.y * x_dot}};
}

// What the corners make of dot products with them.
template <typename A>
JAX_DCN_INLINE A Combine(const CornerWeights<A>& weights, const A* dots) {
  A sum = 0;
  for (int i = 0; i < kCorners; ++i) sum += weights.corner[i] * dots[i];
  return sum;
}

}  // namespace jax_dcn

#endif  // JAX_DCN_COMMON_SAMPLING_BILINEAR_H_
