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
template <typename A>
struct Corners {
  const A* row[kCorners];
};

template <typename A>
JAX_DCN_INLINE Corners<A> CornersOf(const BilinearSample<A>& sample, const A* image,
                                    int64_t channels, const A* zeros) {
  Corners<A> corners;
  for (int i = 0; i < kCorners; ++i) {
    const int64_t pixel = sample.corner[i];
    corners.row[i] = pixel == kOutside ? zeros : image + pixel * channels;
  }
  return corners;
}

// Where the gradients of the four pixels are summed. Those outside are a row that nobody reads.
template <typename A>
struct CornerSums {
  A* row[kCorners];
};

template <typename A>
JAX_DCN_INLINE CornerSums<A> CornerSumsOf(const BilinearSample<A>& sample, A* image,
                                          int64_t channels, A* nowhere) {
  CornerSums<A> sums;
  for (int i = 0; i < kCorners; ++i) {
    const int64_t pixel = sample.corner[i];
    sums.row[i] = pixel == kOutside ? nowhere : image + pixel * channels;
  }
  return sums;
}

// column = (column +) Σ_i w_i row_i
template <bool kAdd, typename A>
struct Interpolation {
  const Corners<A> corners;
  const CornerWeights<A> weights;
  A* const column;

  template <typename V>
  JAX_DCN_INLINE void At(int64_t c) {
    V value = weights.corner[0] * Read<V>(corners.row[0] + c);
    if (kAdd) value += Read<V>(column + c);
    for (int i = 1; i < kCorners; ++i) value += weights.corner[i] * Read<V>(corners.row[i] + c);
    Write(column + c, value);
  }
};

// What a sample contributes to gradients, given the gradient g of its column:
//   dots_i = Σ_c row_i[c] g[c]     sums_i += w_i g     and in the place of g, Σ_i w_i row_i
template <bool kDots, bool kSums, bool kColumn, typename A>
struct SampleGradients {
  const Corners<A> corners;
  const CornerWeights<A> weights;
  const CornerSums<A> sums;
  A* const column;
  Vector<A> dot_vectors[kCorners];
  A dot_rests[kCorners];

  JAX_DCN_INLINE SampleGradients(const Corners<A>& corners, const CornerWeights<A>& weights,
                                 const CornerSums<A>& sums, A* column)
      : corners(corners), weights(weights), sums(sums), column(column) {
    // One by one: of arrays, GCC would make a string instruction, which takes longer than the rest.
    for (int i = 0; i < kCorners; ++i) dot_vectors[i] = Vector<A>{}, dot_rests[i] = A(0);
  }

  template <typename V>
  JAX_DCN_INLINE void At(int64_t c) {
    const V g = Read<V>(column + c);
    V value = {};
    for (int i = 0; i < kCorners; ++i) {
      if (kDots || kColumn) {
        const V pixel = Read<V>(corners.row[i] + c);
        if (kDots) Dots<V>()[i] += pixel * g;
        if (kColumn) value += weights.corner[i] * pixel;
      }
      // One after the other: by the legacy rule two corners may be the same pixel.
      if (kSums) Write(sums.row[i] + c, Read<V>(sums.row[i] + c) + weights.corner[i] * g);
    }
    if (kColumn) Write(column + c, value);
  }

  template <typename V>
  JAX_DCN_INLINE auto& Dots() {
    if constexpr (sizeof(V) == kVectorBytes) {
      return dot_vectors;
    } else {
      return dot_rests;
    }
  }

  JAX_DCN_INLINE void StoreDots(A* dots) const {
    for (int i = 0; i < kCorners; ++i) {
      dots[i] = Sum(reinterpret_cast<const A*>(&dot_vectors[i])) + dot_rests[i];
    }
  }
};

// The samples of all taps for one output position.
template <typename A>
JAX_DCN_INLINE void LocateTaps(const DeformConv2dProblem& problem, const A* offset, int64_t pixel,
                               int64_t group, BilinearSample<A>* samples) {
  const OutputPixel output = OutputPixelAt(problem, pixel);
  const A* displacement = offset + 2 * problem.SampleIndex(pixel, group, 0);
  for (int64_t tap_y = 0; tap_y < problem.kernel_height; ++tap_y) {
    for (int64_t tap_x = 0; tap_x < problem.kernel_width; ++tap_x, displacement += 2) {
      *samples++ = SampleOf(problem, output, tap_y, tap_x, displacement);
    }
  }
}

template <typename T, typename A>
A MaskAt(const DeformConv2dProblem& problem, const DeformConv2dPrimals<T>& primals, int64_t pixel,
         int64_t group, int64_t tap) {
  return primals.mask == nullptr ? A(1) : primals.mask[problem.SampleIndex(pixel, group, tap)];
}

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_KERNELS_SAMPLES_H_
