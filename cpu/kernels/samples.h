// SPDX-License-Identifier: MIT
// What is done with the four pixels of a sample, vectorised over channels.
#ifndef JAX_DCN_CPU_KERNELS_SAMPLES_H_
#define JAX_DCN_CPU_KERNELS_SAMPLES_H_

#include <cstdint>

#include "common/bilinear.h"
#include "common/deform_conv2d.h"
#include "cpu/kernels/simd.h"

namespace jax_dcn::JAX_DCN_ISA {

// The four pixels of a sample, at the first channel of a block. Those outside are a row of zeros:
// never the image multiplied by zero, which would turn an infinity into a NaN.
template <typename T>
struct Corners {
  const T* row[kCorners];
};

template <typename T, typename A>
JAX_DCN_INLINE Corners<T> CornersOf(const BilinearSample<A>& sample, const T* image,
                                    int64_t channels, const T* zeros) {
  Corners<T> corners;
  for (int i = 0; i < kCorners; ++i) {
    const int64_t pixel = sample.corner[i];
    corners.row[i] = pixel == kOutside ? zeros : image + pixel * channels;
  }
  return corners;
}

// out = (out +) Σ_i w_i row_i
template <bool kAdd, typename T, typename A>
JAX_DCN_INLINE void Interpolate(const Corners<T>& corners, const CornerWeights<A>& weights,
                                int64_t channels, A* out) {
  const A* w = weights.corner;
  int64_t c = 0;
  for (; c + kLanes<A> <= channels; c += kLanes<A>) {
    Vector<A> value = w[0] * LoadSums(corners.row[0] + c);
    if (kAdd) value += Load(out + c);
    for (int i = 1; i < kCorners; ++i) value += w[i] * LoadSums(corners.row[i] + c);
    Store<A>(out + c, value);
  }
  for (; c < channels; ++c) {
    A value = w[0] * ToFloat(corners.row[0][c]);
    if (kAdd) value += out[c];
    for (int i = 1; i < kCorners; ++i) value += w[i] * ToFloat(corners.row[i][c]);
    out[c] = value;
  }
}

// dots_i = Σ_c row_i[c] g[c]
template <typename T, typename A>
JAX_DCN_INLINE void Dot(const Corners<T>& corners, const A* g, int64_t channels, A* dots) {
  Vector<A> sums[kCorners] = {};
  int64_t c = 0;
  for (; c + kLanes<A> <= channels; c += kLanes<A>) {
    const Vector<A> factor = Load(g + c);
    for (int i = 0; i < kCorners; ++i) sums[i] += factor * LoadSums(corners.row[i] + c);
  }
  for (int i = 0; i < kCorners; ++i) dots[i] = Sum<A>(sums[i]);
  for (; c < channels; ++c) {
    for (int i = 0; i < kCorners; ++i) dots[i] += g[c] * ToFloat(corners.row[i][c]);
  }
}

// row += weight g
template <typename A>
JAX_DCN_INLINE void AddScaled(A* row, A weight, const A* g, int64_t channels) {
  int64_t c = 0;
  for (; c + kLanes<A> <= channels; c += kLanes<A>) {
    Store<A>(row + c, Load(row + c) + weight * Load(g + c));
  }
  for (; c < channels; ++c) row[c] += weight * g[c];
}

template <typename T, typename A>
A MaskAt(const DeformConv2dProblem& problem, const DeformConv2dPrimals<T>& primals, int64_t pixel,
         int64_t group, int64_t tap) {
  return primals.mask == nullptr ? A(1) : primals.mask[problem.SampleIndex(pixel, group, tap)];
}

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_KERNELS_SAMPLES_H_
