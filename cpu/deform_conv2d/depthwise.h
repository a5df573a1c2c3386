// SPDX-License-Identifier: MIT
// Products with the kernel of a depthwise convolution, whose channels each have a feature of their
// own: as matrices they would be of one row and one column.
#ifndef JAX_DCN_CPU_DEFORM_CONV2D_DEPTHWISE_H_
#define JAX_DCN_CPU_DEFORM_CONV2D_DEPTHWISE_H_

#include <cstdint>

#include "common/deform_conv2d/problem.h"
#include "cpu/runtime/simd.h"

namespace jax_dcn::JAX_DCN_ISA {

inline bool IsDepthwise(const DeformConv2dProblem& problem) {
  return problem.group_channels() == 1 && problem.group_features() == 1;
}

// sums = base + Σ_i a_i b_i, with rows a_i and b_i that are `a_step` and `b_step` apart
template <typename E, typename T, typename A>
struct DepthwiseProduct {
  const E* const a;
  const int64_t a_step;
  const T* const b;
  const int64_t b_step, terms;
  const A* const base;
  A* const sums;

  template <typename V>
  JAX_DCN_INLINE void At(int64_t c) {
    V sum = Read<V>(base + c);
    for (int64_t i = 0; i < terms; ++i) {
      sum += Read<V>(a + i * a_step + c) * Read<V>(b + i * b_step + c);
    }
    Write(sums + c, sum);
  }
};

// sums += Σ_i columns_i grad_y_i, where grad_y_i is the row `rows[i]` of grad_y. The samples are
// added among themselves first: added one by one to the sums of many pixels, they would lose their
// last digits.
template <typename E, typename A>
struct DepthwiseSampleSum {
  const E* const columns;  // [count, channels]
  const int64_t channels;
  const E* const grad_y;  // [pixels, features], from the first feature of the channels on
  const int64_t features;
  const int32_t* const rows;
  const int64_t count;
  A* const sums;

  template <typename V>
  JAX_DCN_INLINE void At(int64_t c) {
    V even = {}, odd = {};
    int64_t i = 0;
    for (; i + 1 < count; i += 2) {
      even += Product<V>(i, c);
      odd += Product<V>(i + 1, c);
    }
    if (i < count) even += Product<V>(i, c);
    Write(sums + c, Read<V>(sums + c) + (even + odd));
  }

  template <typename V>
  JAX_DCN_INLINE V Product(int64_t i, int64_t c) const {
    return Read<V>(columns + i * channels + c) * Read<V>(grad_y + rows[i] * features + c);
  }
};

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_DEFORM_CONV2D_DEPTHWISE_H_
