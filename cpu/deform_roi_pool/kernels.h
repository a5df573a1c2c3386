// SPDX-License-Identifier: MIT
// The loops of deformable RoI pooling, one set for each instruction set.
#ifndef JAX_DCN_CPU_DEFORM_ROI_POOL_KERNELS_H_
#define JAX_DCN_CPU_DEFORM_ROI_POOL_KERNELS_H_

#include "common/deform_roi_pool/problem.h"
#include "common/sampling/half.h"
#include "cpu/runtime/executor.h"

namespace jax_dcn {

template <typename T>
struct DeformRoIPoolKernels {
  using A = decltype(ToFloat(T{}));
  void (*forward)(Executor&, const DeformRoIPoolProblem&, const DeformRoIPoolPrimals<T, A>&, T* y);
  void (*jvp)(Executor&, const DeformRoIPoolProblem&, const DeformRoIPoolPrimals<T, A>&,
              const DeformRoIPoolTangents<T, A>&, T* y_dot);
  void (*backward)(Executor&, const DeformRoIPoolProblem&, const DeformRoIPoolPrimals<T, A>&,
                   const T* grad_y, const DeformRoIPoolCotangents<T, A>&);
};

// One namespace for each instruction set that the build compiles the kernels for.
#define JAX_DCN_DECLARE_KERNELS(isa)                                  \
  namespace isa {                                                     \
  extern const DeformRoIPoolKernels<float> kDeformRoIPoolFloat;       \
  extern const DeformRoIPoolKernels<double> kDeformRoIPoolDouble;     \
  extern const DeformRoIPoolKernels<BFloat16> kDeformRoIPoolBFloat16; \
  extern const DeformRoIPoolKernels<Float16> kDeformRoIPoolFloat16;   \
  }
JAX_DCN_DECLARE_KERNELS(baseline)
JAX_DCN_DECLARE_KERNELS(avx2)
JAX_DCN_DECLARE_KERNELS(avx512)
#undef JAX_DCN_DECLARE_KERNELS

}  // namespace jax_dcn

#endif  // JAX_DCN_CPU_DEFORM_ROI_POOL_KERNELS_H_
