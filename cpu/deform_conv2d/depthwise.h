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

}  // namespace jax_dcn::JAX_DCN_ISA

#endif  // JAX_DCN_CPU_DEFORM_CONV2D_DEPTHWISE_H_
